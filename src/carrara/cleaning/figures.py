"""Figures of a data set: what `statistics.measure` gives."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from carrara.cleaning.caption_statistics import Language
from carrara.cleaning.crops import Cut
from carrara.cleaning.picture_statistics import Copies
from carrara.cleaning.spread import Spread


@dataclass(frozen=True)
class Classes:
    """How evenly the labels are spread: ``even`` is how many classes of one size would be as mixed (exp of entropy)."""

    count: int
    labelled: int
    largest: list[tuple[str, int]]
    smallest: list[tuple[str, int]]
    imbalance: float
    even: float


@dataclass(frozen=True)
class Sizes:
    """Of all pictures, as shown; ``ratio`` is width by height."""

    width: Spread | None
    height: Spread | None
    ratio: Spread | None
    commonest: list[tuple[str, int]]
    shapes: dict[str, int]


@dataclass(frozen=True)
class Files:
    """How the pictures are stored: modes of all, formats and sizes of a sample."""

    modes: dict[str, int]
    channels: dict[int, int]
    deep: int  # of 16 bits
    formats: dict[str, int]
    bytes: Spread | None


@dataclass(frozen=True)
class Statistics:
    """All that is counted; the rows in ``extremes`` and ``some`` are worth looking at."""

    name: str
    version: int
    pictures: int
    decoded: int
    size: int
    sizes: Sizes
    files: Files
    languages: dict[str, Language]
    uncaptioned: int
    captioned_by: dict[str, int]
    classes: Classes | None
    licences: dict[str, int]
    sources: list[str]
    hosts: dict[str, int]
    splits: dict[str, int]
    groups: int
    flags: dict[str, int]
    beside: dict[str, int]
    square: Cut
    bucketed: Cut
    copies: Copies
    light: Spread | None
    contrast: Spread | None
    empty: int  # of those decoded: as good as one colour on white and in 8 bits
    extremes: dict[str, list[tuple[int, str]]]
    some: list[int]
    advice: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        document: dict[str, Any] = _plain(self)
        return document


def _plain(value: Any) -> Any:
    """Dataclasses and tuples with names as JSON's objects."""
    if dataclasses.is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Spread):
        return value._asdict()
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
