"""The order of training: a function of (seed, seen) alone, so the same for every batch size and resume."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Batch:
    """Which pictures come next.

    ``rows`` [b] table row numbers; ``seen`` how many pictures came before this batch; ``seeds`` [b] uint64,
    one for the randomness of each sample (noise, time, crop, caption): a function of (seed, position in the
    stream) only.
    """

    rows: npt.NDArray[np.int64]
    seen: int
    seeds: npt.NDArray[np.uint64]


class Order:
    """The endless stream of row numbers: every row once an epoch, each epoch in another order.

    Position ``p`` is looked up, not replayed: ``order.at(p)`` costs the same for any p.
    """

    def __init__(self, rows: Sequence[int] | npt.NDArray[np.int64], *, seed: int) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)
        self.seed = seed
        if len(self.rows) == 0:
            raise ValueError("there are no rows to put in order")
        # grain draws a new permutation for each epoch; its seed is 32 bits wide, ours goes in folded.
        folded = (seed ^ (seed >> 32)) & 0xFFFFFFFF
        self._stream = _grain().MapDataset.range(len(self.rows)).seed(folded).shuffle().repeat()

    def at(self, position: int) -> int:
        """The row at a position of the stream."""
        return int(self.rows[self._stream[position]])

    def batch(self, seen: int, size: int) -> Batch:
        """The ``size`` rows after the first ``seen``; at the end of an epoch it goes on with the next one."""
        positions = np.arange(seen, seen + size, dtype=np.int64)
        rows = np.fromiter((self.at(p) for p in range(seen, seen + size)), np.int64, size)
        return Batch(rows, seen, sample_seeds(self.seed, positions))


def batches(
    rows: Sequence[int] | npt.NDArray[np.int64], *, batch: int, seed: int, start: int = 0
) -> Iterator[Batch]:
    """Batches without end, the first one after ``start`` pictures; starting late costs nothing."""
    if batch < 1:
        raise ValueError(f"batch is {batch}; expected at least 1")
    order = Order(rows, seed=seed)
    seen = start
    while True:
        yield order.batch(seen, batch)
        seen += batch


def sample_seeds(seed: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """``uint64 [b]``: ``tensors.mix(seed, position)`` for each position (splitmix64), all at once."""
    from carrara.tensors import mix

    state = np.full(positions.shape, mix(seed), np.uint64)
    with np.errstate(over="ignore"):
        state += positions.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))


@functools.cache
def _grain() -> Any:
    """grain, without its complaint that JAX (which it does not need) is missing."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import grain
    finally:
        log.setLevel(level)
    return grain
