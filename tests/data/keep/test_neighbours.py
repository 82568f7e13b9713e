"""Neighbours are those of comparing everything with everything: exactly, or by cells nearly all of them."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from carrara.cleaning import near_pairs
from carrara.cleaning import near_pairs as neighbours
from carrara.cleaning.near_pairs import Pairs, alike, alike_by_cells, within


def clustered(chance: np.random.Generator, count: int) -> np.ndarray:  # type: ignore[type-arg]
    """Words that differ in few bits from one of some, with repeats."""
    seeds = chance.integers(0, 1 << 63, count // 6, np.uint64)
    words = seeds[chance.integers(0, len(seeds), count)]
    for _ in range(7):
        flips = np.uint64(1) << chance.integers(0, 64, count).astype(np.uint64)
        words = np.where(chance.random(count) < 0.6, words ^ flips, words)
    return words


@pytest.mark.parametrize("radius", [0, 3, 8, 13])
def test_words(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_AT_ONCE", 97)  # in many pieces
    chance = np.random.default_rng(radius)
    a, b = clustered(chance, 150), clustered(chance, 120)
    b[:60] = a[:60] ^ np.uint64(5 << 40)
    apart = np.bitwise_count(a[:, None] ^ b)
    expected = {(int(i), int(j), float(apart[i, j])) for i, j in np.argwhere(apart <= radius)}
    found = [one for pairs in within(a, b, radius) for one in zip(*(v.tolist() for v in pairs), strict=True)]
    assert len(found) == len(set(found)), "a pair came twice"
    assert set(found) == expected
    assert expected or radius == 0
    assert len(expected) < apart.size


def test_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_SHORT", 6), ("_STRIP", 32), ("_LEARNED_FROM", 40)):
        monkeypatch.setattr(neighbours, name, value)
    chance = np.random.default_rng(0)
    middle = chance.normal(size=(20, 30)) * np.linspace(3, 0.1, 30)
    vectors = middle[chance.integers(0, 20, 150)] + chance.normal(size=(150, 30)) * 0.3
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    cosines = vectors @ vectors.T
    expected = {(int(i), int(j)) for i, j in np.argwhere(cosines >= 0.9) if i < j}
    found = list(alike(150, lambda rows: vectors[rows], 0.9))
    pairs = [pair for part in found for pair in zip(part.first.tolist(), part.second.tolist(), strict=True)]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected
    assert 20 < len(expected) < 2000
    every = np.concatenate([part.score for part in found])
    np.testing.assert_allclose(every, [cosines[i, j] for i, j in pairs], atol=1e-6)


def pairs_in(found: Iterable[Pairs]) -> list[tuple[int, int]]:
    return [pair for part in found for pair in zip(part.first.tolist(), part.second.tolist(), strict=True)]


def test_vectors_by_cells_are_nearly_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_pairs, "_COMPARED_AT_ONCE", 5000)  # in many pieces
    chance = np.random.default_rng(1)
    middle = chance.normal(size=(1500, 100))
    vectors = middle[chance.integers(0, 1500, 3000)] + chance.normal(size=(3000, 100)) * 0.3
    vectors[100:110] = vectors[100]  # the same ones
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    read = [0]

    def some(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        read[0] += len(rows)
        return np.asarray(vectors[rows], np.float32)

    expected = set(pairs_in(alike(3000, some, 0.9)))
    found = pairs_in(alike_by_cells(3000, some, 0.9))
    assert len(found) == len(set(found)), "a pair came twice"
    assert set(found) <= expected
    assert {(i, j) for i in range(100, 110) for j in range(i + 1, 110)} <= set(found)
    assert len(expected) > 1000
    assert len(found) > 0.98 * len(expected)
    assert found == pairs_in(alike_by_cells(3000, some, 0.9)), "the same again"
    few = pairs_in(alike_by_cells(3000, some, 0.9, probes=1))
    assert 0.3 * len(expected) < len(few) < len(found), "one cell alone misses more"


@pytest.mark.parametrize("every", [alike, alike_by_cells])
def test_few_vectors(every: Callable[..., Iterator[Pairs]]) -> None:
    ones = np.ones((5, 3), np.float32) / np.float32(3**0.5)
    assert pairs_in(every(1, lambda rows: ones[rows], 0.5)) == []
    assert pairs_in(every(2, lambda rows: ones[rows], 0.5)) == [(0, 1)]
    assert len(pairs_in(every(5, lambda rows: ones[rows], 0.9))) == 10
