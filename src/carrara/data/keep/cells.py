"""Pairs of near neighbours among many vectors, by cells: each is compared with those of the few cells nearest to it.

The inverted file of Sivic & Zisserman 2003 ("Video Google") as Jégou et al. 2011 ask it, several cells to a vector. It
may miss a pair, which comparing everything (`neighbours.alike`) does not; what it finds is exact. The time grows as
n ** 1.5. Bench: bench/dedup_features.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from carrara.data.keep.neighbours import SLACK, Index, Pairs, Vectors, checked, shortened

PROBES = 8  # cells that a vector is compared in
_ROUNDS = 6  # of k-means
_A_CELL = 24  # vectors for each cell that k-means learns from
_AT_ONCE = 1 << 22  # numbers compared


def alike_by_cells(
    count: int, read: Callable[[Index], Vectors], cosine: float, *, probes: int = PROBES
) -> Iterator[Pairs]:
    """Pairs i < j of ``count`` unit vectors, given by ``read``, whose cosine is at least ``cosine``; see `alike`.

    Each at most once, and nearly all. The same vectors give the same pairs. What is held of each is 64 numbers.
    """
    if count < 2:
        return
    short = shortened(count, read)
    cells = min(count, round((probes * count) ** 0.5))
    probes = min(probes, cells)
    near = _nearest(short, _centres(short, cells), probes)
    home = near[:, 0]
    members, first = _sorted_by_cell(home, cells)
    visits, begin = _sorted_by_cell(near.reshape(-1), cells)
    for cell in range(cells):
        inside = members[first[cell] : first[cell + 1]]
        visitors = visits[begin[cell] : begin[cell + 1]] // probes
        step = max(1, _AT_ONCE // max(1, len(inside)))
        for start in range(0, len(visitors), step):
            some = visitors[start : start + step]
            left, right = np.nonzero(short[some] @ short[inside].T >= cosine - SLACK)
            i, j = some[left], inside[right]
            # A pair that the other one finds too, as a visitor here where this one is at home, is left to the lower.
            new = (i < j) | ((i > j) & ~(near[j] == home[i][:, None]).any(1))
            i, j = i[new], j[new]
            yield from checked(np.minimum(i, j), np.maximum(i, j), read, cosine)


def _centres(vectors: Vectors, cells: int) -> Vectors:
    """Spherical k-means of some of the vectors, begun with those that chance picks, by a seed of its own."""
    chance = np.random.default_rng(0)
    sample = vectors[np.sort(chance.permutation(len(vectors))[: _A_CELL * cells])]
    centres = sample[np.sort(chance.permutation(len(sample))[:cells])]
    for _ in range(_ROUNDS):
        home = _nearest(sample, centres, 1)[:, 0]
        order, first = _sorted_by_cell(home, cells)
        there = np.flatnonzero(np.diff(first))
        centres = centres.copy()
        centres[there] = np.add.reduceat(sample[order], first[there], axis=0)
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    return centres


def _nearest(vectors: Vectors, centres: Vectors, count: int) -> npt.NDArray[np.int32]:
    """The cells nearest to each vector, the nearest first, ``[n count]``."""
    found = np.empty((len(vectors), count), np.int32)
    step = max(1, _AT_ONCE // len(centres))
    for start in range(0, len(vectors), step):
        scores = vectors[start : start + step] @ centres.T
        some = np.argpartition(-scores, count - 1, 1)[:, :count]
        order = np.argsort(-np.take_along_axis(scores, some, 1), 1, kind="stable")
        found[start : start + step] = np.take_along_axis(some, order, 1)
    return found


def _sorted_by_cell(cell_of: npt.NDArray[np.int32], cells: int) -> tuple[Index, Index]:
    """The places of ``cell_of`` cell by cell, and where each cell begins, ``[cells + 1]``."""
    order = np.argsort(cell_of, kind="stable")
    return order, np.searchsorted(cell_of[order], np.arange(cells + 1))
