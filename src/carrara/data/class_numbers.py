"""The numbers in maps of classes: which there are, and whether they can be those of classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from carrara.data.beside import id_column
from carrara.data.pictures import class_ids
from carrara.data.rows import BadPicture
from carrara.errors import UserError

if TYPE_CHECKING:
    from carrara.data.table import Dataset

_MAPS = 16  # that tell what numbers a column has
_APART = 5  # numbers all so far from each other are hardly counted classes
_SHADES = 64  # more different numbers than that, mostly unlike their neighbours, are no classes
_AT_A_TIME = 64


def numbers(dataset: Dataset, column: str, most: int) -> Iterator[tuple[str, list[int]]]:
    """For at most so many rows with a map, evenly from all, the picture's name and the different numbers in it."""
    every = dataset.indices(None, f"{id_column(column)} IS NOT NULL")
    rows = every[np.unique(np.linspace(0, len(every) - 1, min(len(every), most)).round().astype(np.int64))]
    for first in range(0, len(rows), _AT_A_TIME):
        found = dataset.take(rows[first : first + _AT_A_TIME], ["source", column])
        for name, data in zip(found["source"], found[column], strict=True):
            try:
                counts = np.bincount(class_ids(data).ravel())
            except BadPicture as error:
                raise UserError(f"the {column} of {name!r} cannot be used: {error}") from None
            yield str(name), np.flatnonzero(counts).tolist()


def far_apart(dataset: Dataset, column: str) -> list[int]:
    """The numbers in some maps of a column, where no two are near each other, as of classes spread out over the greys
    to be seen; none where they may well be those of classes."""
    found = sorted(set().union(*(some for _, some in numbers(dataset, column, _MAPS))))
    return found if len(found) > 1 and min(np.diff(found)) >= _APART else []


def are_shades(ids: npt.NDArray[np.uint16]) -> bool:
    """Whether a map ``[h w]`` is a picture in greys: many numbers, and outside its background most beside another."""
    counts = np.bincount(ids.ravel())
    if np.count_nonzero(counts) <= _SHADES:
        return False
    left, right, background = ids[:, :-1], ids[:, 1:], counts.argmax()
    inside = (left != background) & (right != background)
    return bool(inside.any() and (left == right)[inside].mean() < 0.5)
