"""Pictures that Pillow's 8-bit modes cannot hold: 16 bits a channel, or a TIFF whose pages are the channels.

They are planes of whole numbers in 0 … 65535, and floats where they are scaled, so nothing goes through 8 bits.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from carrara.data.channels import can_become, channels_of
from carrara.data.rows import BadPicture

Values = npt.NDArray[Any]  # as in the file, or floats; float32 holds every 16-bit number
Planes = npt.NDArray[np.uint16]  # [c h w]

TOP = 65535
MAX_PAGES = 1024
# Of all channels together: at the worst, in pages of 32 bits, reading them takes 1.5 GB, and the planes 0.5 GB.
MAX_VALUES = 3 * 89_478_485
_LARGE = MAX_VALUES // 4
_ALONE = threading.Lock()  # the threads of an import would need several times as much for several large ones
_BLOCK = 1 << 20  # numbers that are floats at a time
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
    mode = f"{_mode(picture)} x {pages}" if pages > 1 else _mode(picture)
    width, height = picture.size
    if is_deep(mode) and channels_of(mode) * width * height > MAX_VALUES:
        what = f"{pages} pages of {width} x {height}" if pages > 1 else f"{width} x {height} in {mode}"
        raise BadPicture(f"{what} are more than {MAX_VALUES} numbers")
    return mode


def is_deep(mode: str) -> bool:
    """Whether Pillow's own reading would drop something of a picture of this nature."""
    return bool(re.fullmatch(r"(RGB|RGBA|LA);16", mode)) or " x " in mode


def read(
    open_: Open, mode: str, channels: int, as_seen: Callable[[Image.Image], Image.Image]
) -> tuple[Planes, bool]:
    """The picture's planes ``[channels h w]``, and whether the last one is transparency.

    ``open_`` gives the picture, unread, as often as it is asked; ``mode`` is its nature; ``as_seen`` makes an
    8-bit picture out of what is no deep one. Raises BadPicture where the channels cannot become the asked.
    """
    if not can_become(mode, channels):
        raise BadPicture(f"has {channels_of(mode)} channels; the recipe asks for {channels}")
    kind, _, pages = mode.partition(" x ")
    width, height = open_().size
    large = channels_of(mode) * width * height > _LARGE
    waits: contextlib.AbstractContextManager[Any] = _ALONE if large else contextlib.nullcontext()
    with waits:
        if pages and channels_of(mode) == channels:
            return _stack(open_, kind, int(pages)), False
        return _page(open_, kind, channels, as_seen), channels in (2, 4)


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


def numbers(picture: Image.Image) -> npt.NDArray[np.uint16]:
    """The whole numbers ``[h w]`` of a palette picture (its indices) or a grey one, upright, as they are in the file.

    Colour whose channels are all equal counts as grey. Raises BadPicture for what else is no numbers.
    """
    if picture.format in ("JPEG", "AVIF"):
        raise BadPicture(f"{picture.format} changes numbers as it packs them; expected PNG")
    mode = _mode(picture)
    if is_deep(mode):
        raise BadPicture(f"has mode {mode}; expected one number a pixel (grey, or a palette)")
    found = _upright(_numbers(picture), picture)
    if found.ndim == 3:
        colours = 3 if picture.mode in ("RGB", "RGBA", "RGBX") else 1
        if (
            picture.mode not in ("RGB", "RGBA", "RGBX", "LA")
            or (found[..., 1:colours] != found[..., :1]).any()
        ):
            raise BadPicture(
                f"holds colours ({picture.mode}); expected one number a pixel (grey, or a palette)"
            )
        found = found[..., 0]
    low, high = float(found.min()), _highest(found)
    if low < 0 or high > TOP or (found.dtype.kind == "f" and (found != np.rint(found)).any()):
        raise BadPicture(f"holds numbers that are not whole ones in 0 … {TOP}")
    return found.astype(np.uint16)


def to_eight_bits(numbers: Values, top: float) -> npt.NDArray[np.uint8]:
    """Numbers in 0 … ``top``, of any shape and kind, in 0 … 255; what lies beyond is clipped."""
    flat = numbers.reshape(-1)
    eight = np.empty(flat.shape, np.uint8)
    for part in _blocks(flat):
        eight[part] = np.rint(flat[part].astype(np.float64).clip(0, top) * (255.0 / top))
    return eight.reshape(numbers.shape)


def grey_values(picture: Image.Image) -> tuple[Values, float]:
    """The numbers ``[h w]`` of a 16-bit, 32-bit or float grey, and the number that white has. BadPicture.

    "I;16" is 16 bits by name; 32-bit and float files do not say their range, so the smallest usual one that
    holds their values is taken.
    """
    values = _numbers(picture)
    return values, _white(picture.mode, _highest(values))


def orientation(picture: Image.Image) -> int:
    """What the camera's tag says of a picture that was loaded, 1 … 8; damaged EXIF says 1."""
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _highest(values: Values) -> float:
    if not np.isfinite(values).all():
        raise BadPicture("holds values that are not finite")
    return float(values.max())


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


def _page(open_: Open, mode: str, channels: int, as_seen: Callable[[Image.Image], Image.Image]) -> Planes:
    """The first page as people see it but for its turn, with the channels that were asked for."""
    picture, white = open_(), float(TOP)
    floats: npt.DTypeLike = np.float32
    key: Any = picture.info.get("transparency")  # the colour that stands for transparency
    if is_deep(mode):
        numbers = _colours(open_, mode, 0)
        key = key if isinstance(key, tuple) and numbers.shape[-1] == 3 else None
    elif picture.mode in _GREYS and picture.mode != "L":
        numbers, white = grey_values(picture)
        numbers = _upright(numbers, picture)[..., None]
        key, floats = key if isinstance(key, int) else None, np.float64
    else:
        picture.load()
        numbers, white, key = np.asarray(as_seen(picture)), 255.0, None
        numbers = numbers[..., None] if numbers.ndim == 2 else numbers
    planes = np.empty((channels, *numbers.shape[:2]), np.uint16)
    for rows in _blocks(numbers):
        values = numbers[rows].astype(floats).clip(0, white) * (TOP / white)
        if key is not None:
            cover = np.where((numbers[rows] == np.array(key)).all(-1, keepdims=True), 0, TOP)
            values = np.concatenate([values, cover], -1)
        planes[:, rows] = np.rint(np.moveaxis(_to_channels(values, channels), -1, 0))
    return planes


def _stack(open_: Open, mode: str, pages: int) -> Planes:
    """All pages, ``[pages * bands h w]``; greys without a stated range share the one that holds them all."""
    picture, found, highest = open_(), list[Values](), 0.0
    for page in range(pages):
        if is_deep(mode):
            numbers = _colours(open_, mode, page)
        else:
            picture.seek(page)
            numbers = _upright(_numbers(picture), picture)
        numbers = numbers[..., None] if numbers.ndim == 2 else numbers
        highest = max(highest, _highest(numbers))
        found.append(numbers)
    del picture, numbers
    white = TOP if is_deep(mode) else 255.0 if mode in ("L", "RGB", "RGBA") else _white(mode, highest)
    height, width, bands = found[0].shape
    planes = np.empty((pages * bands, height, width), np.uint16)
    for page in range(pages):
        numbers = found.pop(0)  # and so its memory is free again before the last plane is filled
        for rows in _blocks(numbers):
            values = numbers[rows].astype(np.float64).clip(0, white) * (TOP / white)
            planes[page * bands : (page + 1) * bands, rows] = np.rint(np.moveaxis(values, -1, 0))
    return planes


def _numbers(picture: Image.Image) -> Values:
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


def _colours(open_: Open, mode: str, page: int) -> Values:
    """16-bit colour ``[h w c]``. Pillow keeps one byte of each number: the high one, or, told the other byte
    order, the low one; grey with transparency it can read as if its four bytes were four channels."""

    def read(raw: str) -> Values:
        picture = open_()
        picture.seek(page)
        picture.tile = [tile._replace(args=_with_raw(tile.args, raw)) for tile in picture.tile]  # type: ignore[attr-defined]
        return _upright(_numbers(picture), picture)

    first = open_()
    first.seek(page)
    raw = _raw(first)
    order = {"little": "L", "big": "B"}[sys.byteorder] if raw.endswith("N") else raw[-1]
    if mode == "LA;16":
        high, low = (0, 1) if order == "B" else (1, 0)
        four = read("RGBA")
        return four[..., high::2].astype(np.uint16) << 8 | four[..., low::2]
    swapped = raw[:-1] + {"L": "B", "B": "L"}[order]
    numbers = read(raw).astype(np.uint16)
    numbers <<= 8
    numbers |= read(swapped)
    return numbers


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
