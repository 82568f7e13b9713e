"""Rows chosen by a condition, at random, or evenly by a column, for a data set of their own."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from carrara.data.condition import nameable
from carrara.data.keep.neighbours import Index
from carrara.errors import UserError, nearest

if TYPE_CHECKING:
    from carrara.data.table import Dataset


def choose(
    dataset: Dataset,
    where: str | None = None,
    *,
    sample: int | None = None,
    balance: str | None = None,
    at_most: int | None = None,
    seed: int = 0,
) -> Index:
    """Row numbers, ascending: where the SQL condition holds, then at most ``at_most`` of each value of the column
    ``balance`` (None: as many as the rarest has), then ``sample`` of them.

    The seed and the row number decide what is taken at random. UserError for a condition or a column that is none.
    """
    rows = dataset.indices(None, where)
    ranked = np.random.default_rng(seed).random(len(dataset))[rows]
    if balance is not None:
        if balance not in (known := nameable(dataset.table.schema)):
            raise UserError(f"no column to balance is called {balance!r}{nearest(balance, known)}")
        values = dataset.take(rows, [balance])[balance]
        counts = Counter(value for value in values if value is not None)
        if not counts:
            raise UserError(f"no picture has a {balance} to balance by")
        most = at_most or min(counts.values())
        taken: Counter[str] = Counter()
        keep = []
        for k in np.argsort(ranked, kind="stable").tolist():
            if values[k] is not None and taken[values[k]] < most:
                taken[values[k]] += 1
                keep.append(k)
        keep = sorted(keep)
        rows, ranked = rows[keep], ranked[keep]
    if sample is not None and sample < len(rows):
        rows = np.sort(rows[np.argsort(ranked, kind="stable")[:sample]])
    return rows
