"""Pictures that Pillow's 8-bit modes cannot hold: 16 bits a channel, or a TIFF whose pages are the channels.

They are float32 planes of whole numbers in 0 … 65535, so that cropping and scaling never go through 8 bits.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from carrara.data.channels import can_become, channels_of
from carrara.data.rows import BadPicture

Values = npt.NDArray[Any]  # floats; float32 holds every 16-bit number

TOP = 65535
MAX_PAGES = 1024
MAX_VALUES = 4 * 89_478_485  # of all channels together: 1.4 GB as planes
_GREYS = ("L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
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

Open = Callable[[], Image.Image]


def nature(picture: Image.Image) -> str:
    """The mode of a picture as in the file: Pillow's, or "RGB;16" and the like, or "I;16 x 5" for five pages.

    Only the headers are read; afterwards the picture stands at its first page. Raises BadPicture.
    """
    pages = _pages(picture)
    mode = _mode(picture)
    return f"{mode} x {pages}" if pages > 1 else mode


def is_deep(mode: str) -> bool:
    """Whether Pillow's own reading would drop something of a picture of this nature."""
    return bool(re.fullmatch(r"(RGB|RGBA|LA);16", mode)) or " x " in mode


def read(
    open_: Open, mode: str, channels: int, as_seen: Callable[[Image.Image], Image.Image]
) -> tuple[list[Image.Image], bool]:
    """The picture's ``channels`` planes, each an "F" image, and whether the last one is transparency.

    ``open_`` gives the picture, unread, as often as it is asked; ``mode`` is its nature; ``as_seen`` makes an
    8-bit picture out of what is no deep one. Raises BadPicture where the channels cannot become the asked.
    """
    if not can_become(mode, channels):
        raise BadPicture(f"has {channels_of(mode)} channels; the recipe asks for {channels}")
    kind, _, pages = mode.partition(" x ")
    if pages and channels_of(mode) == channels:
        values, alpha = _stack(open_, kind, int(pages)), False
    else:
        values = _page(open_, kind, as_seen)
        alpha = channels in (2, 4)
        values = _to_channels(values, channels)
    return [Image.fromarray(np.rint(plane).astype(np.float32)) for plane in np.moveaxis(values, -1, 0)], alpha


def resize(
    planes: Sequence[Image.Image], alpha: bool, size: int, box: tuple[float, float, float, float]
) -> npt.NDArray[np.uint16]:
    """``uint16 [c size size]`` from a square ``box`` of the planes, by LANCZOS; unchanged where it fits already."""
    if planes[0].size == (size, size):
        return np.stack([np.array(plane) for plane in planes]).astype(np.uint16)
    if alpha:  # what is transparent has no colour that could spread into its neighbours
        cover = np.array(planes[-1]) / TOP
        planes = [*(Image.fromarray(np.array(p) * cover) for p in planes[:-1]), planes[-1]]
    scaled = np.stack([np.array(p.resize((size, size), Image.Resampling.LANCZOS, box)) for p in planes])
    if alpha:
        scaled[:-1] /= np.maximum(scaled[-1] / TOP, 1 / TOP)
    whole: npt.NDArray[np.uint16] = np.rint(scaled.clip(0, TOP)).astype(np.uint16)
    return whole


def grey_values(picture: Image.Image) -> tuple[Values, float]:
    """The numbers ``[h w]`` of a 16-bit, 32-bit or float grey, and the number that white has. BadPicture.

    "I;16" is 16 bits by name; 32-bit and float files do not say their range, so the smallest usual one that
    holds their values is taken.
    """
    values = np.array(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadPicture("holds values that are not finite")
    return values, _white(picture.mode, values.max())


def orientation(picture: Image.Image) -> int:
    """What the camera's tag says of a picture that was loaded, 1 … 8; damaged EXIF says 1."""
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _white(mode: str, highest: float) -> float:
    ranges = (65535.0,) if mode.startswith("I;16") else (65535.0, 2.0**31 - 1, 2.0**32 - 1)
    ranges = (1.0, 255.0, 65535.0) if mode == "F" else ranges
    top = next((r for r in ranges if highest <= r), None)
    if top is None:
        raise BadPicture(f"holds values up to {highest:g}; expected at most {ranges[-1]:g}")
    return top


def _pages(picture: Image.Image) -> int:
    """How many pages make one picture: all of a TIFF whose pages are alike in size and kind, else 1."""
    if picture.format != "TIFF":
        return 1
    first, pages = (picture.size, _mode(picture)), 1
    if first[1] not in (*_GREYS, "RGB", "RGBA", "RGB;16", "RGBA;16"):
        return 1
    try:
        while pages <= MAX_PAGES:
            try:
                picture.seek(pages)
            except EOFError:
                break
            if (picture.size, _mode(picture)) != first:
                pages = 1  # a smaller copy, a mask: the first page is the picture
                break
            pages += 1
    finally:
        picture.seek(0)
    if pages > MAX_PAGES:
        raise BadPicture(f"more than {MAX_PAGES} pages")
    if pages * channels_of(first[1]) * first[0][0] * first[0][1] > MAX_VALUES:
        raise BadPicture(f"{pages} pages of {first[0][0]} x {first[0][1]} are more than {MAX_VALUES} numbers")
    return pages


def _mode(picture: Image.Image) -> str:
    """Pillow's mode, or the deep one that it would reduce to 8 bits."""
    found = re.fullmatch(r"((?:RGB|RGBA|LA);16)[BLN]", _raw(picture))
    return found[1] if found else picture.mode


def _raw(picture: Image.Image) -> str:
    """How the file's bytes are packed, in Pillow's words; empty where its decoder does not say."""
    tiles: Any = getattr(picture, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) else ""


def _page(open_: Open, mode: str, as_seen: Callable[[Image.Image], Image.Image]) -> Values:
    """The first page as people see it but for its turn, ``[h w c]`` with c as in "L", "LA", "RGB" or "RGBA"."""
    picture = open_()
    transparent = picture.info.get("transparency")
    if is_deep(mode):
        values = _colours(open_, mode, 0)
        if isinstance(transparent, tuple) and values.shape[-1] == 3:
            cover = np.where((values == np.array(transparent)).all(-1, keepdims=True), 0, TOP)
            values = np.concatenate([values, cover], -1)
        return values
    if picture.mode in _GREYS and picture.mode != "L":
        greys, white = grey_values(picture)
        greys = _upright(greys, picture)
        values = (greys.clip(0, white) * (TOP / white))[..., None]
        if isinstance(transparent, int):
            cover = np.where(greys == transparent, 0, TOP)[..., None]
            values = np.concatenate([values, cover], -1)
        return values
    picture.load()
    values = np.array(as_seen(picture)).astype(np.float32) * 257
    return values[..., None] if values.ndim == 2 else values


def _stack(open_: Open, mode: str, pages: int) -> Values:
    """All pages, ``[h w pages * bands]``; greys without a stated range share the one that holds them all."""
    if channels_of(mode) > 1:
        one = _colours if is_deep(mode) else _eight_bits
        return np.concatenate([one(open_, mode, page) for page in range(pages)], -1)
    picture, found = open_(), []
    for page in range(pages):
        picture.seek(page)
        found.append(_upright(np.array(picture).astype(np.float64), picture))
    values = np.stack(found, -1)
    if not np.isfinite(values).all():
        raise BadPicture("holds values that are not finite")
    white = 255.0 if mode == "L" else _white(mode, values.max())
    return values.clip(0, white) * (TOP / white)


def _eight_bits(open_: Open, mode: str, page: int) -> Values:
    picture = open_()
    picture.seek(page)
    return _upright(np.array(picture).astype(np.float32) * 257, picture)


def _colours(open_: Open, mode: str, page: int) -> Values:
    """16-bit colour ``[h w c]``. Pillow keeps one byte of each number: the high one, or, told the other byte
    order, the low one; grey with transparency it can read as if its four bytes were four channels."""

    def read(raw: str) -> Values:
        picture = open_()
        picture.seek(page)
        picture.tile = [tile._replace(args=_with_raw(tile.args, raw)) for tile in picture.tile]  # type: ignore[attr-defined]
        return _upright(np.array(picture).astype(np.float32), picture)

    first = open_()
    first.seek(page)
    raw = _raw(first)
    order = {"little": "L", "big": "B"}[sys.byteorder] if raw.endswith("N") else raw[-1]
    if mode == "LA;16":
        high, low = (0, 1) if order == "B" else (1, 0)
        four = read("RGBA")
        return four[..., high::2] * 256 + four[..., low::2]
    swapped = raw[:-1] + {"L": "B", "B": "L"}[order]
    return read(raw) * 256 + read(swapped)


def _upright(values: Values, picture: Image.Image) -> Values:
    turn = _TURNS.get(orientation(picture))
    return values if turn is None else turn(values)


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
