"""How often what belongs together is found among many: recall at k, and the mean reciprocal rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RANKS = (1, 5, 10)


def ranks(queries: npt.NDArray[np.float32], gallery: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """For unit ``[n d]`` and ``[n d]``, where row i belongs to row i: the rank of each query's own, from 1.

    What scores as high as its own counts as before it: where all are alike, nothing is found.
    """
    parts = []
    for start in range(0, len(queries), 1024):
        scores = queries[start : start + 1024] @ gallery.T
        own = scores[np.arange(len(scores)), start + np.arange(len(scores))]
        parts.append((scores >= own[:, None]).sum(1))
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def recall(found: npt.NDArray[np.int64], at: Sequence[int] = RANKS) -> dict[int, float]:
    """The share of ranks that are at most k, for each k."""
    return {k: float((found <= k).mean()) for k in at}


def reciprocal(found: npt.NDArray[np.int64]) -> float:
    """The mean of 1 / rank."""
    return float((1 / found).mean())
