"""The numbers in maps of classes: which there are, and whether they can be those of classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from carrara.dataset.columns import KINDS, id_column
from carrara.errors import BadPicture, UserError
from carrara.images.decode import class_ids

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

CLASSES = tuple(name for name, kind in KINDS.items() if kind.values == "numbers")
_MAPS = 16  # that tell what numbers a column has
_APART = 5  # numbers all so far from each other are hardly counted classes
_SHADES = 64  # more different numbers than that, mostly unlike their neighbours, are no classes
_AT_A_TIME = 64
_SHOWN = 12


def numbers(dataset: Dataset, column: str, most: int) -> Iterator[tuple[str, list[int]]]:
    """For at most so many rows with a map, evenly from all, the picture's name and the different numbers in it."""
    for name, ids in _maps(dataset, column, most):
        yield name, np.flatnonzero(np.bincount(ids.ravel())).tolist()


def remarks_on(dataset: Dataset, column: str) -> Iterator[str]:
    """What is odd about the numbers in some maps of a column, a sentence each."""
    if column not in dataset.columns:
        return
    found, looked, shades = set[int](), 0, list[str]()
    with suppress(UserError):  # one that an earlier version let in; who needs it says what is wrong with it
        for name, ids in _maps(dataset, column, _MAPS):
            looked += 1
            shades += [name] if are_shades(ids) else []
            found.update(np.unique(ids).tolist())
    if shades:
        yield (
            f"{len(shades)} of {looked} {column}s that were looked at seem to be pictures in greys (the first: that of "
            f"{shades[0]}): many numbers, most beside another, where each number is a class"
        )
    counted = sorted(found)
    if column == "map" and len(counted) > 1 and min(np.diff(counted)) >= _APART:
        which = ", ".join(map(str, counted[:_SHOWN])) + (" …" if len(counted) > _SHOWN else "")
        yield (
            f"the only numbers in {column} are {which}, and each number is a class: where they were spread out to be "
            f"seen, write 0 to {len(counted) - 1} in their place (255 is no class)"
        )


def _maps(dataset: Dataset, column: str, most: int) -> Iterator[tuple[str, npt.NDArray[np.uint16]]]:
    every = dataset.indices(None, f"{id_column(column)} IS NOT NULL")
    rows = every[np.unique(np.linspace(0, len(every) - 1, min(len(every), most)).round().astype(np.int64))]
    for first in range(0, len(rows), _AT_A_TIME):
        found = dataset.take(rows[first : first + _AT_A_TIME], ["source", column])
        for name, data in zip(found["source"], found[column], strict=True):
            try:
                yield str(name), class_ids(data)
            except BadPicture as error:
                raise UserError(f"the {column} of {name!r} cannot be used: {error}") from None


def are_shades(ids: npt.NDArray[np.uint16]) -> bool:
    """Whether a map ``[h w]`` is a picture in greys: many numbers, and outside its background most beside another."""
    counts = np.bincount(ids.ravel())
    if np.count_nonzero(counts) <= _SHADES:
        return False
    left, right, background = ids[:, :-1], ids[:, 1:], counts.argmax()
    inside = (left != background) & (right != background)
    return bool(inside.any() and (left == right)[inside].mean() < 0.5)
