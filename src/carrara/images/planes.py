"""Planes of numbers: pictures that Pillow's 8-bit modes cannot hold: 16 bits a channel, or a TIFF whose pages are
the channels.

They are planes of whole numbers in 0 … 65535, and floats where they are scaled, so nothing goes through 8 bits.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from carrara.errors import BadPicture
from carrara.images.channels import can_become, channels_of, has_more
from carrara.images.colours import Transform
from carrara.images.tiff import TOP, Tiff

Values = npt.NDArray[Any]  # as in the file, or floats; float32 holds every 16-bit number
Planes = npt.NDArray[np.uint16]  # [c h w]

# Of all channels together: at the worst, in pages of 32 bits, reading them takes 1.5 GB, and the planes 0.5 GB.
MAX_VALUES = 3 * 89_478_485
_LARGE = MAX_VALUES // 4
_ALONE = threading.Lock()  # the threads of an import would need several times as much for several large ones
_BLOCK = 1 << 20  # numbers that are floats at a time
_LUMINANCE = np.array([19595, 38470, 7471], np.float32) / 65536  # ITU-R 601-2, as Pillow's own "L"

# The turns and mirrorings that a camera's orientation tag asks for, of [h w ...].
_TURNS: dict[int, Callable[[Values], Values]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}

ToSrgb = Transform | None


def check_amount(mode: str, width: int, height: int, bits: int = 16) -> None:
    """BadPicture where a picture of this mode is more than there is memory for."""
    count = channels_of(mode) * width * height
    if is_deep(mode) and count * max(32, bits) // 32 > MAX_VALUES:
        kind, _, pages = mode.partition(" x ")
        what = f"{pages} pages of {width} x {height}" if pages else f"{width} x {height} in {kind}"
        raise BadPicture(f"{what} are more than {MAX_VALUES} numbers")


def is_deep(mode: str) -> bool:
    """Whether Pillow's own reading would drop something of a picture of this mode."""
    kind, _, pages = mode.partition(" x ")
    return bool(pages) or ";" in kind or kind in ("I", "F", "LX", "RGBX")


class Layer(NamedTuple):
    """A picture's numbers ``[h w n]``, upright, and how rows of them become floats in 0 … 65535: grey or colour, in
    sRGB, with transparency last if there is any."""

    numbers: Values
    floats: Callable[[Values], Values]


def first_page(layer: Callable[[], Layer], channels: int, large: bool) -> Planes:
    """What one sees of a picture of any number of pages and samples, ``[channels h w]`` with 1 to 4 channels.

    ``large`` ones are read one at a time.
    """
    with _ALONE if large else contextlib.nullcontext():
        seen = layer()
        planes = np.empty((channels, *seen.numbers.shape[:2]), np.uint16)
        for rows in _blocks(seen.numbers):
            values = _to_channels(seen.floats(seen.numbers[rows]), channels)
            planes[:, rows] = np.rint(np.moveaxis(values, -1, 0))
        return planes


def all_samples(tiff: Tiff, large: bool) -> Planes:
    """All samples of all pages as they are, ``[pages * samples h w]``; they share their range."""
    with _ALONE if large else contextlib.nullcontext():
        return _all_samples(tiff)


def _all_samples(tiff: Tiff) -> Planes:
    found = [upright(tiff.numbers(page), tiff.orientation) for page in range(tiff.pages)]
    ends = [_extremes(numbers) for numbers in found]
    span = tiff.span(min(low for low, _ in ends), max(high for _, high in ends))
    height, width, bands = found[0].shape
    planes = np.empty((tiff.pages * bands, height, width), np.uint16)
    for page in range(tiff.pages):
        numbers = found.pop(0)  # and so its memory is free again before the last plane is filled
        for rows in _blocks(numbers):
            values = np.moveaxis(tiff.scaled(numbers[rows], span), -1, 0)
            planes[page * bands : (page + 1) * bands, rows] = np.rint(values)
    return planes


def is_large(mode: str, width: int, height: int) -> bool:
    """Whether several pictures of this mode and size at a time would take too much memory."""
    return channels_of(mode) * width * height > _LARGE


def is_asked_whole(mode: str, channels: int) -> bool:
    """Whether ``channels`` are all numbers of a picture that has more than its colours. BadPicture where a picture of
    this mode cannot have so many."""
    if not can_become(mode, channels):
        raise BadPicture(f"has {channels_of(mode)} channels; the recipe asks for {channels}")
    return channels_of(mode) == channels and (" x " in mode or has_more(mode))


def resize(
    planes: Planes, alpha: bool, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Planes:
    """``[c h w]`` of ``size`` (h, w) from a ``box`` of the planes, by LANCZOS; unchanged where it fits already."""
    if planes.shape[1:] == size:
        return planes
    # What is transparent has no colour that could spread into its neighbours.
    cover = planes[-1].astype(np.float32) / TOP if alpha else None
    scaled = np.empty((len(planes), *size), np.float32)

    def one(plane: Planes, cover: Values | None) -> Values:  # a function, so that nothing of it stays
        values = plane.astype(np.float32)
        if cover is not None:
            values *= cover
        return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.LANCZOS, box))

    for index, plane in enumerate(planes):
        scaled[index] = one(plane, cover if index < len(planes) - 1 else None)
    if alpha:
        scaled[:-1] /= np.maximum(scaled[-1] / TOP, 1 / TOP)
    whole: Planes = np.rint(scaled.clip(0, TOP)).astype(np.uint16)
    return whole


def classes(stored: Values, mode: str) -> npt.NDArray[np.uint16]:
    """Numbers ``[h w n]`` of a map as ``[h w]``; of a colour ``mode`` those whose channels are all equal, as grey.

    Raises BadPicture for what is no whole number of each pixel.
    """
    bands = 3 if mode.startswith("RGB") else 1
    if stored.shape[-1] not in (bands, bands + 1) or (stored[..., 1:bands] != stored[..., :1]).any():
        raise BadPicture(f"holds colours ({mode}); expected one number a pixel (grey, or a palette)")
    found = stored[..., 0]
    low, high = float(found.min()), float(found.max())
    if not (low >= 0 and high <= TOP) or (found.dtype.kind == "f" and (found != np.rint(found)).any()):
        raise BadPicture(f"holds numbers that are not whole ones in 0 … {TOP}")
    return found.astype(np.uint16)


def to_eight_bits(numbers: Values, top: float) -> npt.NDArray[np.uint8]:
    """Numbers in 0 … ``top``, of any shape and kind, in 0 … 255; what lies beyond is clipped."""
    flat = numbers.reshape(-1)
    eight = np.empty(flat.shape, np.uint8)
    for part in _blocks(flat):
        eight[part] = np.rint(flat[part].astype(np.float64).clip(0, top) * (255.0 / top))
    return eight.reshape(numbers.shape)


def orientation(picture: Image.Image) -> int:
    """What the camera's tag says of a picture that was loaded, 1 … 8; damaged EXIF says 1."""
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:
        return 1


def of_png(open_: Callable[[], Image.Image], mode: str, to_srgb: ToSrgb) -> Layer:
    """The layer of a PNG of 16 bits; ``open_`` gives the picture, unread, as often as it is asked."""
    picture = open_()
    key: Any = picture.info.get("transparency")  # the grey or the colour that stands for transparency
    numbers = (
        _upright(stored_numbers(picture), picture)[..., None]
        if mode.startswith("I")
        else _colours(open_, mode)
    )
    alpha = numbers.shape[-1] in (2, 4)

    def floats(rows: Values) -> Values:
        values = _managed(rows.astype(np.float32), alpha, to_srgb)
        if key is None or alpha:
            return values
        cover = np.where((rows == np.array(key)).all(-1, keepdims=True), 0, TOP)
        return np.concatenate([values, cover], -1)

    return Layer(numbers, floats)


def of_eight_bits(picture: Image.Image) -> Layer:
    """The layer of a picture "L", "RGB" or "RGBA" that is upright and in sRGB."""
    numbers = np.asarray(picture)
    numbers = numbers[..., None] if numbers.ndim == 2 else numbers
    return Layer(numbers, lambda rows: rows.astype(np.float32) * (TOP / 255))


def of_tiff(tiff: Tiff, to_srgb: ToSrgb) -> Layer:
    numbers = upright(tiff.numbers(), tiff.orientation)
    span = tiff.span(*_extremes(numbers))

    def floats(rows: Values) -> Values:
        if to_srgb is not None and to_srgb.space == "CMYK" and tiff.name == "CMYK" and not tiff.kind.extra:
            return to_srgb.sixteen(tiff.scaled(rows, span))
        values = tiff.coloured(rows, span)
        return _managed(values, tiff.transparent, to_srgb)

    return Layer(numbers, floats)


def _managed(values: Values, alpha: bool, to_srgb: ToSrgb) -> Values:
    if to_srgb is None or to_srgb.space == "CMYK":
        return values
    if not alpha:
        return to_srgb.sixteen(values)
    return np.concatenate([to_srgb.sixteen(values[..., :-1]), values[..., -1:]], -1)


def _extremes(numbers: Values) -> tuple[float, float]:
    return float(numbers.min()), float(numbers.max())


def png_mode(picture: Image.Image) -> str:
    """Pillow's mode, or the deep one that it would reduce to 8 bits."""
    found = re.fullmatch(r"((?:RGB|RGBA|LA);16)B", _raw(picture))
    return found[1] if found else picture.mode


def _raw(picture: Image.Image) -> str:
    """How the file's bytes are packed, in Pillow's words; empty where its decoder does not say."""
    tiles: Any = getattr(picture, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) else ""


def stored_numbers(picture: Image.Image) -> Values:
    """The numbers ``[h w]`` or ``[h w c]`` as they are in the file (Pillow's own way there copies them twice)."""
    picture.load()
    width, height = picture.size
    step = max(1, _BLOCK // width)
    parts = (np.asarray(picture.crop((0, y, width, min(y + step, height)))) for y in range(0, height, step))
    first = next(parts)
    values = np.empty((height, *first.shape[1:]), first.dtype)
    values[:step] = first
    for number, part in enumerate(parts, 1):
        values[number * step : (number + 1) * step] = part
    return values


def _blocks(numbers: Values) -> Iterator[slice]:
    """Slices of rows: what is computed in floats is never a whole picture."""
    step = max(1, _BLOCK * len(numbers) // max(1, numbers.size))
    for top in range(0, len(numbers), step):
        yield slice(top, top + step)


def _colours(open_: Callable[[], Image.Image], mode: str) -> Values:
    """16-bit colour ``[h w c]``. Pillow keeps one byte of each number: the high one, or, told the other byte
    order, the low one; grey with transparency it can read as if its four bytes were four channels."""

    def read(raw: str) -> Values:
        picture = open_()
        picture.tile = [tile._replace(args=_with_raw(tile.args, raw)) for tile in picture.tile]  # type: ignore[attr-defined]
        return _upright(stored_numbers(picture), picture)

    raw = _raw(open_())
    if mode == "LA;16":
        four = read("RGBA")
        return four[..., ::2].astype(np.uint16) << 8 | four[..., 1::2]
    numbers = read(raw).astype(np.uint16)
    numbers <<= 8
    numbers |= read(raw[:-1] + "L")
    return numbers


def upright(values: Values, orientation: int) -> Values:
    """``[h w ...]`` turned as a camera's orientation tag says."""
    turn = _TURNS.get(orientation)
    return values if turn is None else turn(values)


def _upright(values: Values, picture: Image.Image) -> Values:
    return upright(values, orientation(picture))


def _with_raw(arguments: Any, raw: str) -> Any:
    return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw


def _to_channels(values: Values, channels: int) -> Values:
    """``[h w c]`` as grey, grey and transparency, colour, or colour and transparency; else on white."""
    has_alpha = values.shape[-1] in (2, 4)
    colour, alpha = (values[..., :-1], values[..., -1:]) if has_alpha else (values, None)
    if channels in (1, 3) and alpha is not None:
        colour = TOP + (colour - TOP) * (alpha / TOP)
    if channels < 3 and colour.shape[-1] == 3:
        colour = (colour @ _LUMINANCE)[..., None]
    if channels >= 3 and colour.shape[-1] == 1:
        colour = np.repeat(colour, 3, -1)
    if channels in (1, 3):
        return colour
    return np.concatenate([colour, np.full_like(colour[..., :1], TOP) if alpha is None else alpha], -1)
