"""Decoding: one safe way from the bytes of any picture to pixels: known formats, capped sizes, no silent damage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from carrara.errors import BadPicture
from carrara.geometry import SideOrSize, extent
from carrara.images import planes, tiff
from carrara.images.channels import channels_of
from carrara.images.header import (
    MODES,
    Opened,
    colour_mode,
    is_heic,
    refusing_what_is_bad,
)
from carrara.images.tiff import Span

if TYPE_CHECKING:
    from torch import Tensor

_SIDEWAYS = (5, 6, 7, 8)
TINY = 32  # pixels of a side, below which a picture is worth a flag
LARGE = 64_000_000  # pixels, above which it is

Crop = Literal["centre", "start", "end"]  # which part of a picture, along the side of which some is cut off


def decode(
    data: bytes, *, channels: int = 3, short_side: int | None = None, span: Span | None = None
) -> Image.Image:
    """The picture in ``data`` as people see it: upright, in sRGB, on white where it is transparent.

    ``channels`` 1 gives luminance ("L"), 3 colour ("RGB"), 2 and 4 keep transparency ("LA", "RGBA"); always
    8 bits a channel, of a stack of pages the first. With ``short_side`` a JPEG may come smaller, but never
    below twice that many pixels on its short side: several times faster where the picture is shrunk anyway.
    ``span`` is the black and the white of numbers that do not say theirs (`Dataset.span`). Raises BadPicture.
    """
    if channels not in MODES:
        raise ValueError(f"channels is {channels}; expected one of {sorted(MODES)}")
    with refusing_what_is_bad(data):
        return Opened(data, short_side, span).shown(channels)


class Looked(NamedTuple):
    """Size as shown, mode as in the file ("RGB;16" for deep colour, "I;16 x 5" for a stack of five pages), words
    that one may want to filter by, and sentences about what could not be followed."""

    width: int
    height: int
    mode: str
    flags: tuple[str, ...]
    notes: tuple[str, ...] = ()


def examine(data: bytes) -> tuple[int, int, str]:
    """(width, height, mode) of `look`."""
    return look(data)[:3]


def look(data: bytes, span: Span | None = None, *, managed: bool = True) -> Looked:
    """Decodes all of a picture, to be sure of it. ``span`` as in `decode`, ``managed`` as in `pixels`. BadPicture."""
    with refusing_what_is_bad(data):
        opened = Opened(data, None, span, managed)
        flags = opened.flags()
        if opened.deep:
            height, width = opened.as_planes(channels_of(opened.mode)).shape[1:]
        elif opened.picture.format in ("JPEG", "MPO"):
            # All bits are read and checked also where few pixels are made of them.
            width, height = opened.size
            opened.picture.draft(None, (1, 1))
            opened.picture.load()
            opened.to_srgb(colour_mode(opened.picture))
            if opened.orientation in _SIDEWAYS:
                width, height = height, width
        else:
            width, height = opened.shown(3).size
        if min(width, height) < TINY:
            flags.append("tiny")
        if width * height > LARGE:
            flags.append("large")
        return Looked(width, height, opened.mode, tuple(flags), tuple(opened.notes))


def orientation(data: bytes) -> int:
    """How a picture lies in its file, as EXIF says (1 … 8; 1 is as it is shown). Raises BadPicture."""
    with refusing_what_is_bad(data):
        opened = Opened(data)
        if opened.tiff is not None:
            return opened.orientation
        opened.picture.load()  # a PNG may say it behind its pixels
        return planes.orientation(opened.picture)


def pixels(
    data: bytes,
    size: SideOrSize,
    channels: int = 3,
    *,
    bits: int = 8,
    crop: Crop = "centre",
    span: Span | None = None,
    managed: bool = True,
) -> Tensor:
    """``[channels h w]``, uint8 in 0..255 or, with 16 ``bits``, uint16 in 0..65535: scaled to cover ``size``, and
    what is too long cut off where ``crop`` says.

    A picture of 16 bits keeps them all the way; one of 8 bits becomes 257 times its number. More than four
    channels (or two to four, of pages in grey) are the pages of a TIFF, or its samples. ``span`` as in `decode`;
    without ``managed`` what a file says of its colours is not followed (for numbers that are no colours). Raises
    BadPicture where the picture has other channels than can become these.
    """
    with refusing_what_is_bad(data):
        area = extent(size)
        opened = Opened(data, max(area), span, managed)
        if bits == 8 and not opened.deep and channels in MODES:
            return to_tensor(resize_and_crop(opened.shown(channels), area, crop))
        found = opened.as_planes(channels)
        alpha = channels in (2, 4) and not planes.is_asked_whole(opened.mode, channels)
        height, width = found.shape[1:]
        return _of_depth(planes.resize(found, alpha, area, window((width, height), area, crop)), bits)


def class_ids(
    data: bytes, size: SideOrSize | None = None, *, crop: Crop = "centre"
) -> npt.NDArray[np.uint16]:
    """``[h w]``: the numbers as they are in the file, a palette's indices or a grey's values, cropped as `pixels`
    crops and scaled by taking the nearest; without ``size`` all of them. Raises BadPicture where a colour stands
    instead of a number, or where the way the file is packed changes numbers."""
    with refusing_what_is_bad(data):
        ids = _class_ids(data)
    if size is None:
        return ids
    area = extent(size)
    left, top, right, bottom = window((ids.shape[1], ids.shape[0]), area, crop)
    return ids[np.ix_(_nearest(top, bottom, area[0]), _nearest(left, right, area[1]))]


def _class_ids(data: bytes) -> npt.NDArray[np.uint16]:
    opened = Opened(data, managed=False)
    if opened.tiff is not None:
        return planes.upright(
            planes.classes(opened.tiff.class_numbers(), opened.tiff.name), opened.orientation
        )
    picture = opened.picture
    if lossy := lossy_format(data):
        raise BadPicture(f"{lossy} changes numbers as it packs them; expected PNG")
    if ";16" in opened.mode and opened.mode != "I;16":
        raise BadPicture(f"has mode {opened.mode}; expected one number a pixel (grey, or a palette)")
    stored = planes.stored_numbers(picture)
    stored = stored[..., None] if stored.ndim == 2 else stored
    if picture.format == "PNG" and picture.mode == "L":  # Pillow spreads 2 and 4 bits over 0 … 255
        stored = stored // {2: 85, 4: 17}.get(data[24], 1)
    return planes.upright(planes.classes(stored, picture.mode), planes.orientation(picture))


def lossy_format(data: bytes) -> str:
    """The name of a format, as the bytes say, that keeps numbers only nearly; else ""."""
    if data[8:12] == b"WEBP":
        return "" if b"VP8L" in (data[12:16], *_webp_chunks(data)) else "WebP (lossy)"
    if data[4:8] == b"ftyp":
        return "HEIC" if is_heic(data) else "AVIF"
    return "JPEG" if data.startswith(b"\xff\xd8") else ""


def _webp_chunks(data: bytes) -> Iterator[bytes]:
    """The names of a WebP's chunks, those of its first frame among them."""
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        yield kind
        at += 24 if kind == b"ANMF" else 8 + size + size % 2


def _nearest(start: float, end: float, count: int) -> npt.NDArray[np.int64]:
    """The pixels under the middles of ``count`` equal parts of a line."""
    return (start + (np.arange(count) + 0.5) * ((end - start) / count)).astype(np.int64)


def whole(
    data: bytes, channels: int = 3, *, bits: int = 8, span: Span | None = None, managed: bool = True
) -> Tensor:
    """``[channels h w]`` at the picture's own size, upright; the rest as in `pixels`."""
    with refusing_what_is_bad(data):
        opened = Opened(data, None, span, managed)
        if bits == 8 and not opened.deep and channels in MODES:
            return to_tensor(opened.shown(channels))
        return _of_depth(opened.as_planes(channels), bits)


def _of_depth(values: npt.NDArray[np.uint16], bits: int) -> Tensor:
    import torch

    return torch.from_numpy(planes.to_eight_bits(values, tiff.TOP) if bits == 8 else values)


def resize_and_crop(image: Image.Image, size: SideOrSize, crop: Crop = "centre") -> Image.Image:
    """``image`` scaled to cover ``size`` with an antialiased LANCZOS filter, and cropped to it."""
    height, width = extent(size)
    if image.size == (width, height):
        return image
    # The crop is the box of the resize, so that half a pixel stays half a pixel.
    box = window(image.size, (height, width), crop)
    return image.resize((width, height), Image.Resampling.LANCZOS, box)


def window(
    size: tuple[int, int], area: tuple[int, int], crop: Crop = "centre"
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom): the largest part of a picture of ``size`` (width, height) with the ratio of
    ``area`` (height, width), in the middle or where the side that is too long starts or ends."""
    width, height = size
    if width * area[0] > height * area[1]:
        across, down = height * area[1] / area[0], float(height)
    else:
        across, down = float(width), width * area[0] / area[1]
    share = {"start": 0.0, "centre": 0.5, "end": 1.0}[crop]
    left, top = (width - across) * share, (height - down) * share
    return left, top, left + across, top + down


def to_tensor(image: Image.Image) -> Tensor:
    """``uint8 [c h w]`` in 0..255 of an "L", "LA", "RGB" or "RGBA" picture."""
    import torch

    values = np.array(image, dtype=np.uint8)
    return torch.from_numpy(values[None] if values.ndim == 2 else values.transpose(2, 0, 1).copy())


def stack(
    pictures: Sequence[bytes], size: SideOrSize, channels: int = 3, *, bits: int = 8, crop: Crop = "centre"
) -> Tensor:
    """``[n channels h w]``: the `pixels` of each, uint8 or, with 16 ``bits``, uint16. Raises BadPicture."""
    import torch

    if not pictures:
        return torch.empty(0, channels, *extent(size), dtype=torch.uint8 if bits == 8 else torch.uint16)
    return torch.stack([pixels(data, size, channels, bits=bits, crop=crop) for data in pictures])
