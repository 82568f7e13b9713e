"""Geometry of pictures: sizes, the part that is shown, boxes in it, and pictures brought to a size.

Boxes as data and requests state them, and as they lie in the part of a picture that is shown.

Which part of a picture is shown: it is scaled until it covers the size that is trained on, and cut in the middle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.errors import UserError
from carrara.tensors import from_pixels, to_pixels

Size = tuple[int, int]
"""Height and width in pixels of the pictures that are trained on or made."""


def central(picture: Tensor, size: Size) -> Tensor:
    """The largest part of ``picture [... h w]`` about its centre that has the ratio of ``size``."""
    h, w = picture.shape[-2:]
    high = min(h, max(1, round(w * size[0] / size[1])))
    wide = min(w, max(1, round(h * size[1] / size[0])))
    top, left = (h - high) // 2, (w - wide) // 2
    return picture[..., top : top + high, left : left + wide]


def resize(image: Tensor, size: Size) -> Tensor:
    """``float32 [c h w]`` to ``[c *size]``: bicubic, antialiased; steep edges overshoot a little."""
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]


def fit_picture(picture: Tensor, size: Size) -> Tensor:
    """``uint8`` or ``uint16 [c h w]`` to an image ``float32 [c *size]`` in [-1, 1]."""
    return resize(from_pixels(central(picture, size)), size).clamp(-1, 1)


def fit_mask(mask: Tensor, size: Size) -> Tensor:
    """``bool [h w]`` to ``bool size``: True wherever any of what a pixel was made from is."""
    part = central(mask, size)
    return part if part.shape == size else F.adaptive_max_pool2d(part[None].float(), size)[0] > 0


def fit_map(ids: Tensor, size: Size) -> Tensor:
    """Whole numbers ``[h w]`` to ``int64 size``, each the nearest one's: classes have no values between them."""
    part = central(ids, size).long()
    if part.shape == size:
        return part
    return F.interpolate(part[None, None].double(), size, mode="nearest-exact")[0, 0].long()


def shrink(pictures: Tensor, factor: int) -> Tensor:
    """``uint8`` or ``uint16 [b c h w]`` made ``factor`` times smaller, as a file of that size would hold it."""
    h, w = pictures.shape[-2:]
    size = (max(1, round(h / factor)), max(1, round(w / factor)))
    small = F.interpolate(from_pixels(pictures), size, mode="bicubic", antialias=True)
    return to_pixels(small, 8 * pictures.element_size())


def edges(image: Tensor) -> Tensor:
    """Of an image [c h w] in [-1, 1] the steepness (Sobel), the channels' largest: [1 h w], flat -1, a step 1."""
    near = F.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    rows = (near[:, :-2] + 2 * near[:, 1:-1] + near[:, 2:]) / 4  # smoothed downwards
    columns = (near[..., :-2] + 2 * near[..., 1:-1] + near[..., 2:]) / 4
    across, down = rows[..., 2:] - rows[..., :-2], columns[:, 2:] - columns[:, :-2]
    steepness = torch.hypot(across, down).amax(0, keepdim=True) / 2
    return steepness.clamp(max=1) * 2 - 1


SideOrSize = int | tuple[int, int]
"""A square by its side, or (height, width), in pixels."""


def extent(size: SideOrSize) -> tuple[int, int]:
    """(height, width) of a size."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


_EXPECTED = 'expected a list of {"label": "cat", "box": [x, y, width, height]} in fractions of the picture'


@dataclass(frozen=True)
class Box:
    """A thing and where it is, in fractions of a picture's sides from its upper left corner."""

    label: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.right, self.bottom

    @property
    def area(self) -> float:
        """Its share of the picture."""
        return (self.right - self.left) * (self.bottom - self.top)

    def within(self, left: float, top: float, width: float, height: float) -> Box | None:
        """What is inside of a part of the picture, in fractions of that part; None where nothing is."""
        across = [min(1.0, max(0.0, (x - left) / width)) for x in (self.left, self.right)]
        down = [min(1.0, max(0.0, (y - top) / height)) for y in (self.top, self.bottom)]
        if across[1] <= across[0] or down[1] <= down[0]:
            return None
        return Box(self.label, across[0], down[0], across[1], down[1])


@dataclass(frozen=True)
class Layout:
    """The boxes of a whole picture of ``width`` by ``height`` pixels, which is seen mirrored or as it is."""

    boxes: tuple[Box, ...]
    width: int
    height: int
    mirrored: bool

    def shown(self, size: Size, visible: float) -> list[Box]:
        """The boxes as they lie at ``size``; those of which no more than the share ``visible`` is left are not."""
        part, found = shown(self.width, self.height, size), []
        for box in self.boxes:
            inside = box.within(part.left, part.top, part.width, part.height)
            if inside is None or inside.area * part.width * part.height <= visible * box.area:
                continue
            if self.mirrored:
                inside = Box(inside.label, 1 - inside.right, inside.top, 1 - inside.left, inside.bottom)
            found.append(inside)
        return found


def read_boxes(value: Any) -> list[Box]:
    """The boxes in the JSON of a data set's column or of a request, or in a list; UserError where it is neither."""
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the boxes are no JSON ({error}); {_EXPECTED}") from None
    if value is None or value == "":
        return []
    if not isinstance(value, list | tuple):
        raise UserError(f"the boxes are {type(value).__name__}; {_EXPECTED}")
    return [_read_box(entry) for entry in value]


def _read_box(entry: Any) -> Box:
    if not isinstance(entry, Mapping) or entry.keys() != {"label", "box"}:
        raise UserError(f"{str(entry)[:80]!r} is no box; {_EXPECTED}")
    label, place = entry["label"], entry["box"]
    numbers = [n for n in place if isinstance(n, int | float)] if isinstance(place, list | tuple) else []
    if not isinstance(label, str) or len(numbers) != 4 or len(place) != 4:
        raise UserError(f"{str(entry)[:80]!r} is no box; {_EXPECTED}")
    try:
        left, top, width, height = map(float, numbers)
    except OverflowError:  # a whole number of hundreds of digits
        raise UserError(f"the box of {label!r} has a number beyond all pictures; {_EXPECTED}") from None
    if not (all(map(math.isfinite, (left, top, width, height))) and width > 0 and height > 0):
        raise UserError(f"the box of {label!r} has no area: {list(place)}; {_EXPECTED}")
    return Box(label, left, top, left + width, top + height)


def covered(start: Tensor, end: Tensor, count: int) -> Tensor:
    """Of each of ``count`` equal parts of a line from 0 to 1 the share that lies between ``start`` and ``end``.

    ``[...]`` to ``[... count]``.
    """
    edges = torch.arange(count + 1, dtype=start.dtype, device=start.device) / count
    ends = torch.minimum(end[..., None], edges[1:])
    return (ends - torch.maximum(start[..., None], edges[:-1])).clamp_min(0) * count


@dataclass(frozen=True)
class Shown:
    """The part that is shown, in fractions of the whole picture, and how many pixels of the size one of its is."""

    left: float
    top: float
    width: float
    height: float
    ratio: float


def shown(width: int, height: int, size: Size) -> Shown:
    """The part of a picture of ``width`` by ``height`` pixels that is shown at ``size`` (height, width)."""
    ratio = max(size[1] / width, size[0] / height)
    across, down = size[1] / (width * ratio), size[0] / (height * ratio)
    return Shown((1 - across) / 2, (1 - down) / 2, across, down, ratio)
