"""Neighbours are exactly those of comparing everything with everything."""

import numpy as np
import pytest

from carrara.data.keep import neighbours
from carrara.data.keep.neighbours import Pairs, alike, within


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


def test_one_vector_has_no_neighbours() -> None:
    nothing: list[Pairs] = list(alike(1, lambda rows: np.ones((len(rows), 3), np.float32), 0.5))
    assert nothing == []
