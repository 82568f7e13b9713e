"""All pairs of near neighbours, exactly, and without comparing everything with everything.

Of 64 bits: words that differ in few bits agree nearly in one of four bands of 16 (multi-index hashing, Norouzi et al.
2012). Of unit vectors: in the directions where the vectors are long, short vectors bound the cosine from above.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_BANDS, _WIDTH = 4, 16
_AT_ONCE = 1 << 20  # pairs looked at
_SHORT = 64  # numbers of a vector that are compared first
_STRIP = 1024
SLACK = 1e-4  # of float32, and of vectors that were kept as float16
_LEARNED_FROM = 8192  # vectors that the directions are learned from

Index = npt.NDArray[np.int64]
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
