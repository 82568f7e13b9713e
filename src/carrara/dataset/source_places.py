"""The places of sources: where those of rows lie or lay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from carrara.dataset.columns import ORIGIN
from carrara.dataset.description import places_by_id
from carrara.dataset.word_sources import Owners

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset


def places_of(dataset: Dataset, rows: Sequence[int]) -> list[str | None]:
    """Where the sources of rows lie or lay; None where nobody knows."""
    if ORIGIN not in dataset.table.schema.names or not len(rows):
        return [None] * len(rows)
    places = places_by_id(dataset.about)
    origins = dataset.table.take(list(rows), columns=[ORIGIN])[ORIGIN].to_pylist()
    return [places.get(Owners(origin)["source"]) for origin in origins]
