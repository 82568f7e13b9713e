"""The order of training: a function of (seed, seen), looked up rather than replayed, so that any resume is exact."""

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
    stream) only. ``bucket`` is the one that all of them belong to; 0 where there are none.
    """

    rows: npt.NDArray[np.int64]
    seen: int
    seeds: npt.NDArray[np.uint64]
    bucket: int = 0


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
    _check_batch(batch)
    order = Order(rows, seed=seed)
    seen = start
    while True:
        yield order.batch(seen, batch)
        seen += batch


class Bucketed:
    """The order of pictures in buckets: each batch from one bucket alone, the buckets' batches mixed at random.

    An epoch has every picture at least once: a bucket's last batch is filled up with those that its epoch began
    with. Batch ``k`` is looked up as a position of `Order` is; it depends on the batch size too.
    """

    def __init__(
        self, buckets: Sequence[Sequence[int] | npt.NDArray[np.int64]], *, batch: int, seed: int
    ) -> None:
        from carrara.tensors import mix

        _check_batch(batch)
        self.batch, self.seed = batch, seed
        self._orders = [Order(rows, seed=mix(seed, 1, index)) for index, rows in enumerate(buckets)]
        counts = [-(-len(order.rows) // batch) for order in self._orders]  # batches of an epoch
        self._ends = np.cumsum(counts)
        self._slots = Order(np.arange(sum(counts)), seed=mix(seed, 2))

    def at(self, seen: int) -> Batch:
        """The batch after the first ``seen`` pictures, a multiple of the batch size."""
        if seen % self.batch:
            raise ValueError(f"{seen} pictures are no whole number of batches of {self.batch}")
        number = seen // self.batch
        epoch, slot = number // int(self._ends[-1]), self._slots.at(number)
        bucket = int(np.searchsorted(self._ends, slot, side="right"))
        order = self._orders[bucket]
        size = len(order.rows)
        first = (slot - (int(self._ends[bucket - 1]) if bucket else 0)) * self.batch
        rows = (order.at(epoch * size + (first + k) % size) for k in range(self.batch))
        seeds = sample_seeds(self.seed, np.arange(seen, seen + self.batch, dtype=np.int64))
        return Batch(np.fromiter(rows, np.int64, self.batch), seen, seeds, bucket)


def bucketed(
    buckets: Sequence[Sequence[int] | npt.NDArray[np.int64]], *, batch: int, seed: int, start: int = 0
) -> Iterator[Batch]:
    """`Bucketed` without end, the first batch after ``start`` pictures; none of the buckets may be empty."""
    order = Bucketed(buckets, batch=batch, seed=seed)
    seen = start
    while True:
        yield order.at(seen)
        seen += batch


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise ValueError(f"batch is {batch}; expected at least 1")


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
