"""Boxes as data and requests state them, and as they lie in the part of a picture that is shown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carrara.conditions.contract import Size
from carrara.conditions.covering import shown
from carrara.errors import UserError

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
