"""Asks the table for rows with scores; the addresses that it answers with become row numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from carrara.dataset.sql_condition import enclosed, fault, nameable
from carrara.dataset.store import TABLE, newest
from carrara.errors import UserError, of_lance

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


def ask(dataset: Dataset, score: str, *, where: str | None, limit: int, **asked: Any) -> tuple[Rows, Scores]:
    """Row numbers with the numbers in the column ``score``, as the table orders them; ``where`` must hold.

    UserError where the condition does not hold for this table.
    """
    try:
        found = dataset.table.to_table(
            columns=[score],
            filter=where and enclosed(where),
            prefilter=where is not None,
            limit=limit,
            with_row_address=True,
            **asked,
        )
    except (ValueError, OSError, RuntimeError) as error:
        if damaged := re.search(r"_indices/([0-9a-f-]{36})", str(error)):
            raise _without_index(dataset, damaged[1]) from None
        raise at_fault(dataset, where, error) from None
    scores = found[score].to_numpy().astype(np.float64)
    return row_numbers(dataset, found["_rowaddr"].to_numpy()), scores


def _without_index(dataset: Dataset, uuid: str) -> UserError:
    """Takes a damaged index away, and those whose files are gone, which the next search makes anew; what to say."""
    table, files = newest(dataset.store), Path(dataset.store.work) / TABLE / "_indices"
    local = dataset.store.path == dataset.store.work
    for index in table.describe_indices():
        parts = [segment.uuid for segment in index.segments]
        if uuid in parts or (local and not all((files / part).is_dir() for part in parts)):
            table.drop_index(index.name)
    return UserError(
        f"an index of {dataset.path} was damaged and is removed; search again, which makes it anew"
    )


def at_fault(dataset: Dataset, where: str | None, error: Exception) -> UserError:
    """About the condition, where there is one; else what the table said."""
    if where is None:
        return UserError(f"the table cannot be searched: {of_lance(error)}")
    return fault(where, error, dataset.path, nameable(dataset.table.schema))


def row_numbers(dataset: Dataset, addresses: npt.NDArray[Any]) -> Rows:
    """Of addresses (the fragment's number in the upper 32 bits, the place inside it below) the row numbers."""
    numbers, starts, start = [], [], 0
    for fragment in dataset.table.get_fragments():
        numbers.append(fragment.fragment_id)
        starts.append(start)
        start += fragment.count_rows()
    if not len(addresses):
        return np.empty(0, np.int64)
    order = np.argsort(numbers)
    places = order[np.searchsorted(np.array(numbers)[order], addresses >> np.uint64(32))]
    inside = (addresses & np.uint64(0xFFFFFFFF)).astype(np.int64)
    found: Rows = np.asarray(starts, np.int64)[places] + inside
    return found
