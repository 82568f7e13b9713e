"""Indexes of the table: made where they are missing, brought up to date after appends, never relied on for finding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from carrara.dataset.commits import committed
from carrara.errors import UserError, of_lance

if TYPE_CHECKING:
    import lance

    from carrara.dataset.dataset import Dataset

# Makes an index that is not there: of a column of this table, of a kind, under a name, with settings.
Build = Callable[["lance.LanceDataset", str, str, str, dict[str, Any]], None]

_STALE = 0.02  # share of rows outside of an index from which on freshening it pays


def covers(dataset: Dataset, column: str) -> int | None:
    """How many rows the column's index has; None where there is none."""
    return covered(dataset).get(column)


def covered(dataset: Dataset) -> dict[str, int]:
    """The columns that have an index, and how many rows it has."""
    return {
        index.field_names[0]: int(index.num_rows_indexed)
        for index in dataset.table.describe_indices()
        if len(index.field_names) == 1
    }


def is_stale(indexed: int | None, total: int) -> bool:
    """Whether an index of so many rows is to be made or brought up to date; None is for none."""
    return indexed is None or total - indexed > _STALE * total


def build(table: lance.LanceDataset, column: str, kind: str, name: str, settings: dict[str, Any]) -> None:
    """A `Build` by this process."""
    if kind == "INVERTED":
        table.create_scalar_index(column, kind, name=name, **settings)
    else:
        table.create_index(column, kind, name=name, **settings)


def make_index(dataset: Dataset, column: str, kind: str, build: Build = build, **settings: Any) -> bool:
    """Whether it had something to do. UserError where the table cannot be written."""
    indexed, total = covers(dataset, column), len(dataset)
    if not is_stale(indexed, total):
        return False

    def change(table: lance.LanceDataset) -> None:
        if indexed is not None:
            table.optimize.optimize_indices(index_names=[_name(column)])
            return
        try:
            build(table, column, kind, _name(column), settings)
        except RuntimeError as error:
            if "already exists" not in str(error):  # another process was faster
                raise

    try:
        committed(dataset.store, change)
    except OSError as error:
        raise UserError(f"cannot index {dataset.path}: {of_lance(error)}") from None
    dataset.refresh()
    return True


def _name(column: str) -> str:
    return f"{column}_index"
