"""The order is a function of (seed, seen): no batch size, no resume and no epoch's end changes it."""

from itertools import islice

import numpy as np
import pytest

from carrara.dataset.order import Order, batches, sample_seeds
from carrara.tensors import mix

ROWS = np.arange(100, 137)


def stream(batch: int, count: int, *, seed: int = 7, start: int = 0) -> tuple[list[int], list[int]]:
    rows: list[int] = []
    seeds: list[int] = []
    for b in islice(batches(ROWS, batch=batch, seed=seed, start=start), -(-count // batch)):
        assert b.rows.shape == b.seeds.shape == (batch,)
        assert b.rows.dtype == np.int64
        assert b.seeds.dtype == np.uint64
        assert b.seen == start + len(rows)
        rows += b.rows.tolist()
        seeds += b.seeds.tolist()
    return rows[:count], seeds[:count]


@pytest.mark.parametrize("batch", [2, 4, 8, 16, 64])
def test_every_batch_size_gives_the_same_stream(batch: int) -> None:
    assert stream(batch, 192) == stream(1, 192)


@pytest.mark.parametrize("start", [1, 16, 36, 37, 38, 100, 150])
def test_resume_anywhere(start: int) -> None:
    rows, seeds = stream(1, 200)
    assert stream(5, 40, start=start) == (rows[start : start + 40], seeds[start : start + 40])


def test_every_row_once_an_epoch_and_every_epoch_in_another_order() -> None:
    rows, _ = stream(8, 37 * 4)
    epochs = [rows[k * 37 : (k + 1) * 37] for k in range(4)]
    assert all(sorted(e) == ROWS.tolist() for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4
    assert all(sum(a == b for a, b in zip(e, ROWS.tolist(), strict=True)) < 10 for e in epochs)


def test_seeds_give_other_orders_and_other_randomness() -> None:
    streams = [stream(1, 37, seed=s) for s in (0, 1, 2**40, 2**40 + 1)]
    assert len({tuple(rows) for rows, _ in streams}) == 4
    assert len({s for _, seeds in streams for s in seeds}) == 4 * 37


def test_a_sample_seed_is_the_mix_of_seed_and_position() -> None:
    positions = [0, 1, 63, 2**33, 2**40 + 5]
    for seed in (0, 12345, 2**63):
        expected = [mix(seed, p) for p in positions]
        assert sample_seeds(seed, np.array(positions)).tolist() == expected


def test_a_far_position_costs_no_replay() -> None:
    order = Order(ROWS, seed=3)
    far = 10**12  # replaying it would take days
    assert order.batch(far, 8).rows.tolist() == [order.at(far + k) for k in range(8)]


def test_what_cannot_be_ordered() -> None:
    with pytest.raises(ValueError, match="no rows"):
        Order([], seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        next(batches(ROWS, batch=0, seed=0))
