"""Crops: what a resolution makes of pictures: how much of each is cut off, and which would have to be enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from carrara.cleaning.spread import Spread
from carrara.dataset.buckets import assign, buckets
from carrara.tensors import Index

MUCH = 0.25  # share of a picture
_CELLS = 16  # a bucket's sides are multiples of the square's sixteenth, and of 8 pixels


@dataclass(frozen=True)
class Cut:
    """Scaled to cover the nearest of ``sizes``, (height, width), and cropped to it.

    ``lost``: the share of each picture; ``much``: the share of pictures that lose more than a quarter; ``enlarged``:
    how many are smaller than their size; ``used``: how many pictures go to each size.
    """

    sizes: list[tuple[int, int]]
    lost: Spread | None
    much: float
    enlarged: int
    used: list[int]


def cut(widths: Index, heights: Index, sizes: Sequence[tuple[int, int]]) -> Cut:
    """Measured on pictures of these widths and heights ``[n]``."""
    chosen = assign(widths, heights, sizes)
    area = np.array(sizes, np.float64)[chosen]
    lost, scale = _lost(widths, heights, area), np.maximum(area[:, 0] / heights, area[:, 1] / widths)
    return Cut(
        [(int(h), int(w)) for h, w in sizes],
        Spread.of(lost),
        float((lost > MUCH).mean()) if len(lost) else 0.0,
        int((scale > 1).sum()),
        np.bincount(chosen, minlength=len(sizes)).tolist(),
    )


def lost_in_square(widths: Index, heights: Index) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The share of each picture that its largest square leaves out."""
    return _lost(widths, heights, np.ones((len(widths), 2)))


def buckets_of(size: int, ratio: float = 2.0) -> list[tuple[int, int]]:
    """The buckets that a recipe with this ``ratio`` would use at ``size``, (height, width)."""
    multiple = max(8, size // _CELLS // 8 * 8)
    return buckets(size // multiple * multiple, multiple, ratio) if size >= multiple else [(size, size)]


def _lost(
    widths: Index, heights: Index, area: np.ndarray[tuple[int, int], np.dtype[np.float64]]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    wanted, own = area[:, 1] / area[:, 0], widths / heights
    return 1 - np.minimum(wanted / own, own / wanted)
