"""All pairs of near neighbours, exactly, and without comparing everything with everything.

Of 64 bits: words that differ in few bits agree nearly in one of four bands of 16 (multi-index hashing, Norouzi et al.
2012). Of unit vectors: in the directions where the vectors are long, short vectors bound the cosine from above.

Pairs of near neighbours among many vectors, by cells: each is compared with those of the few cells nearest to it.

The inverted file of Sivic & Zisserman 2003 ("Video Google") as Jégou et al. 2011 ask it, several cells to a vector. It
may miss a pair, which comparing everything (`near_pairs.alike`) does not; what it finds is exact. The time grows as
n ** 1.5. Bench: bench/dedup_features.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from carrara.tensors import Index

_BANDS, _WIDTH = 4, 16
_AT_ONCE = 1 << 20  # pairs looked at
_SHORT = 64  # numbers of a vector that are compared first
_STRIP = 1024
SLACK = 1e-4  # of float32, and of vectors that were kept as float16
_LEARNED_FROM = 8192  # vectors that the directions are learned from

Hashes = npt.NDArray[np.uint64]
Vectors = npt.NDArray[np.float32]


class Pairs(NamedTuple):
    """``first[k]`` and ``second[k]`` are near by ``score[k]``: bits that differ, or the cosine."""

    first: Index
    second: Index
    score: npt.NDArray[np.float32]


def within(a: Hashes, b: Hashes, radius: int) -> Iterator[Pairs]:
    """Every pair (i, j) once, and in no order, whose words ``a[i]`` and ``b[j]`` differ in at most ``radius`` bits."""
    near = radius // _BANDS  # in one band at least, no more bits than this differ
    masks = [mask for mask in range(1 << _WIDTH) if mask.bit_count() <= near]
    bands = [(_band(a, k), _band(b, k)) for k in range(_BANDS)]
    for k, (left, right) in enumerate(bands):
        order = np.argsort(right, kind="stable")
        lying = b[order]  # those of one band side by side, as they are read
        starts = np.searchsorted(right[order], np.arange((1 << _WIDTH) + 1))
        for mask in masks:
            probe = left ^ mask
            first, last = starts[probe], starts[probe + 1]
            for i, place in _expanded(first, last - first):
                apart = np.bitwise_count(a[i] ^ lying[place])
                close = np.flatnonzero(apart <= radius)
                i, j, apart = i[close], order[place[close]], apart[close]
                new = np.ones(len(i), bool)
                for before, after in bands[:k]:  # a band before would have found it
                    new &= np.bitwise_count(before[i] ^ after[j]) > near
                if new.any():
                    yield Pairs(i[new], j[new], apart[new].astype(np.float32))


def alike(count: int, read: Callable[[Index], Vectors], cosine: float) -> Iterator[Pairs]:
    """Every pair i < j of ``count`` unit vectors, which ``read`` gives by their numbers, whose cosine is at least
    ``cosine``; what is held of each is 64 numbers."""
    if count < 2:
        return
    short = shortened(count, read)
    for left, right in itertools.combinations_with_replacement(_parts(count), 2):
        bound = short[left] @ short[right].T >= cosine - SLACK
        if left[0] == right[0]:
            bound = np.triu(bound, 1)
        i, j = np.nonzero(bound)
        yield from checked(left[i], right[j], read, cosine)


def shortened(count: int, read: Callable[[Index], Vectors]) -> Vectors:
    """Of all unit vectors 64 numbers each, ``[count 64]``; their products bound the cosines from above."""
    sample = read(np.unique(np.linspace(0, count - 1, min(count, _LEARNED_FROM)).astype(np.int64)))
    _, directions = np.linalg.eigh(sample.T.astype(np.float64) @ sample)
    longest = directions[:, ::-1][:, : _SHORT - 1].astype(np.float32)
    return np.concatenate([_shortened(read(part), longest) for part in _parts(count)])


def checked(i: Index, j: Index, read: Callable[[Index], Vectors], cosine: float) -> Iterator[Pairs]:
    """Those of the pairs (i, j) whose cosine is as high as it should be, by the whole vectors."""
    for start in range(0, len(i), _STRIP * 4):
        found = i[start : start + _STRIP * 4], j[start : start + _STRIP * 4]
        rows, places = np.unique(np.concatenate(found), return_inverse=True)
        vectors, middle = read(rows), len(found[0])
        score = np.einsum("nd,nd->n", vectors[places[:middle]], vectors[places[middle:]])
        if (near := score >= cosine).any():
            yield Pairs(found[0][near], found[1][near], score[near])


def _shortened(vectors: Vectors, longest: Vectors) -> Vectors:
    """Their numbers along some directions, and the length of the rest: x.y <= short(x).short(y)."""
    kept = vectors @ longest
    rest = np.sqrt(np.maximum((vectors**2).sum(1) - (kept**2).sum(1), 0))
    return np.concatenate([kept, rest[:, None]], 1)


def _parts(count: int) -> list[Index]:
    return [np.arange(k, min(k + _STRIP, count)) for k in range(0, count, _STRIP)]


def _band(words: Hashes, k: int) -> Index:
    return ((words >> np.uint64(k * _WIDTH)) & np.uint64((1 << _WIDTH) - 1)).astype(np.int64)


def _expanded(first: Index, counts: Index) -> Iterator[tuple[Index, Index]]:
    """(i, place) for every i and each of the ``counts[i]`` places from ``first[i]`` on, about a million at a time."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _AT_ONCE, side="right")))
        some = counts[start:stop]
        i = np.repeat(np.arange(start, stop), some)
        yield (
            i,
            np.arange(before, before + len(i))
            + np.repeat(first[start:stop] - (ends[start:stop] - some), some),
        )
        start = stop


PROBES = 8  # cells that a vector is compared in
_ROUNDS = 6  # of k-means
_A_CELL = 24  # vectors for each cell that k-means learns from
_COMPARED_AT_ONCE = 1 << 22  # numbers compared


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
        step = max(1, _COMPARED_AT_ONCE // max(1, len(inside)))
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
    step = max(1, _COMPARED_AT_ONCE // len(centres))
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
