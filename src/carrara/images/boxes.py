"""Boxes: where in a picture is what, as JSON: ``[{"label": "cat", "box": [x, y, width, height]}, …]`` in fractions of
the picture's sides, from its upper left corner."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from carrara.text import tidy

COLUMN = "boxes"
_PLACES = ("box", "bbox", "boxes", "bboxes")
_LABELS = ("label", "category", "class", "labels", "categories", "classes")
# Of the orientations that swap sides: left and top as shown, of the four margins (left, top, right, bottom) as stored.
_SIDEWAYS: dict[int, Callable[[float, float, float, float], tuple[float, float]]] = {
    5: lambda left, top, right, bottom: (top, left),
    6: lambda left, top, right, bottom: (bottom, left),
    7: lambda left, top, right, bottom: (bottom, right),
    8: lambda left, top, right, bottom: (top, right),
}
_TURNED = (
    "its stated sides are those before EXIF's turn, so its boxes were turned with it (boxes drawn on it as shown need "
    "its sides as shown)"
)
_AS_SHOWN = (
    "its stated sides are those before EXIF's turn, but its boxes only fit it as shown: they were not turned"
)
_A_WHOLE = 1.01  # fractions may be a rounding above 1; pixels never stay below it


@dataclass(frozen=True)
class Box:
    """A thing in a picture; ``left``, ``top``, ``width``, ``height`` in [0, 1], fractions of the picture's sides."""

    label: str
    left: float
    top: float
    width: float
    height: float


class Canonical(NamedTuple):
    """Boxes as the column has them, and a remark on how they were understood, or ""."""

    text: str
    note: str


def canonical(
    text: str,
    width: int,
    height: int,
    names: Sequence[str] = (),
    stated: tuple[float, float] | None = None,
    orientation: int = 1,
) -> Canonical:
    """The column's JSON from a source's, for a picture of this size. ValueError says what is wrong with it.

    The source says a list of objects with ``box`` (or ``bbox``) and ``label`` (or ``category``, ``class``), or,
    as Hugging Face does, an object of lists under these names, also in the plural. Boxes are x, y, width, height, in
    fractions where no number of the picture's boxes is above 1, otherwise (or in an object ``pixels``) in pixels; what
    lies outside the picture is cut off. ``names`` are those of labels that are numbers. ``stated`` are the width and
    height of the picture that they are meant for: of this one as shown, at any scale, or as it lies in the file, whose
    EXIF ``orientation`` (1 … 8) then turns them along, unless they do not fit into it.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from None
    found = [(_label(label, names), _four(place)) for label, place in _entries(said)]
    pixels = _in_pixels(said) or any(number > _A_WHOLE for _, place in found for number in place)
    sides, note = stated or (width, height), ""
    if found and not _same_ratio(sides, (width, height)):
        if orientation not in _SIDEWAYS or not _same_ratio(sides, (height, width)):
            raise ValueError(
                f"their picture is of {sides[0]:g} x {sides[1]:g}, this one of {width} x {height}"
            )
        note = _TURNED
        if pixels and not all(_fits(place, sides) for _, place in found):
            sides, note = (sides[1], sides[0]), _AS_SHOWN
    boxes = [_inside(label, place, sides if pixels else (1, 1)) for label, place in found]
    if note == _TURNED:
        boxes = [_turned(box, orientation) for box in boxes]
    return Canonical(write(boxes), note)


def _in_pixels(said: Any) -> bool:
    return isinstance(said, dict) and "pixels" in said


def _fits(place: tuple[float, float, float, float], sides: tuple[float, float]) -> bool:
    """Whether a box in pixels lies in a picture of these sides, but for a pixel."""
    return place[0] + place[2] <= sides[0] + 1 and place[1] + place[3] <= sides[1] + 1


def _same_ratio(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether (width, height) of one are those of another at some scale, to less than a pixel of the smaller."""
    if one[0] > other[0]:
        one, other = other, one
    scale = one[0] / other[0]
    return abs(one[1] - other[1] * scale) < 1 or abs(one[0] - other[0] * one[1] / other[1]) < 1


def write(boxes: Sequence[Box]) -> str:
    """Boxes as the column has them."""
    plain = [
        {"label": b.label, "box": [round(n, 6) for n in (b.left, b.top, b.width, b.height)]} for b in boxes
    ]
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def parse(text: str | None) -> list[Box] | None:
    """The boxes in a value of the column; None where nobody said any."""
    return None if text is None else [Box(entry["label"], *entry["box"]) for entry in json.loads(text)]


def _turned(box: Box, orientation: int) -> Box:
    """A box of a picture as it lies in the file, in the same as it is shown."""
    right, below = 1 - box.left - box.width, 1 - box.top - box.height
    left, top = _SIDEWAYS[orientation](box.left, box.top, right, below)
    return Box(box.label, left, top, box.height, box.width)


def _entries(said: Any) -> list[tuple[Any, Any]]:
    """(label, place) of each."""
    if isinstance(said, list):
        return [(_one_of(entry, _LABELS), _one_of(entry, _PLACES)) for entry in said]
    if (
        isinstance(said, dict)
        and len(said) == 1
        and (name := next(iter(said))) in ("boxes", "objects", "pixels")
    ):
        return _entries(said[name])
    places, labels = _one_of(said, _PLACES), _one_of(said, _LABELS)
    if not isinstance(places, list) or not isinstance(labels, list) or len(places) != len(labels):
        raise ValueError("expected a list of boxes and a list of as many labels")
    return list(zip(labels, places, strict=True))


def _one_of(entry: Any, names: Sequence[str]) -> Any:
    if not isinstance(entry, dict):
        raise ValueError('expected a list of {"label": …, "box": [x, y, width, height]}')
    found = next((entry[name] for name in names if entry.get(name) is not None), None)
    if found is None:
        raise ValueError(f"one has none of {', '.join(repr(name) for name in names)}")
    return found


def _label(label: Any, names: Sequence[str]) -> str:
    if names and isinstance(label, int) and 0 <= label < len(names):
        return names[label]
    text = tidy(str(label)) if isinstance(label, str | int) else None
    if text is None:
        raise ValueError(f"{label!r} is no label")
    return text


def _four(place: Any) -> tuple[float, float, float, float]:
    numbers = [n for n in place if isinstance(n, int | float)] if isinstance(place, list) else []
    if len(numbers) != 4 or len(place) != 4 or not all(math.isfinite(n) for n in numbers):
        raise ValueError(f"{place!r} is no box; expected x, y, width, height")
    left, top, width, height = map(float, numbers)
    if width <= 0 or height <= 0:
        raise ValueError(f"the box {place!r} has no area")
    return left, top, width, height


def _inside(label: str, place: tuple[float, float, float, float], sides: tuple[float, float]) -> Box:
    left, right = (min(1.0, max(0.0, n / sides[0])) for n in (place[0], place[0] + place[2]))
    top, bottom = (min(1.0, max(0.0, n / sides[1])) for n in (place[1], place[1] + place[3]))
    if right - left < 1e-6 or bottom - top < 1e-6:
        raise ValueError(f"the box {list(place)} lies outside the picture")
    return Box(label, left, top, right - left, bottom - top)
