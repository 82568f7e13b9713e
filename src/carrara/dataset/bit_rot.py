"""Bit rot: whether pictures still have the bytes that were imported, of which their ids are the SHA-256."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from carrara.dataset.columns import KINDS, content_id, id_column
from carrara.errors import UserError
from carrara.progress import Progress

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

AT_A_TIME = 32 * 2**20  # bytes that are read at once
MOST_ROWS = 1024
_SHOWN = 5


def check(dataset: Dataset, row: int, values: dict[str, Any]) -> None:
    """UserError where the picture in ``values``, or one beside it, is not the one that its id names."""
    if column := _damaged(values):
        source = dataset.take([row], ["source"])["source"][0]
        raise UserError(
            f"{dataset.path}: the {column} of {source!r} is damaged: {_leave_out([values['id']])}"
        )


def verify(dataset: Dataset) -> Generator[Progress]:
    """Compares every picture with its id; yields how far it is. UserError names those that are damaged."""
    kinds = [kind for kind in KINDS if kind in dataset.columns]
    columns = ["id", "source", "image", *kinds, *map(id_column, kinds)]
    damaged: dict[str, str] = {}  # by id
    start, count = 0, 16
    while start < len(dataset):
        rows = range(start, min(start + count, len(dataset)))
        size = 0
        for values in _read(dataset, rows, columns):
            size += len(values["image"] or b"")
            if _damaged(values):
                damaged[values["id"]] = values["source"]
        start += len(rows)
        count = int(min(MOST_ROWS, 4 * count, max(1, AT_A_TIME * len(rows) // max(1, size))))
        yield Progress(title="comparing", fraction=start / len(dataset), words="pictures with their ids")
    if damaged:
        some = ", ".join(list(damaged.values())[:_SHOWN])
        more = f" and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
        raise UserError(
            f"{dataset.path}: {len(damaged)} of {len(dataset)} pictures are damaged ({some}{more}): "
            f"{_leave_out(list(damaged))}"
        )


def _read(dataset: Dataset, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows; of those whose bytes cannot be read at all, the words."""
    try:
        found: list[dict[str, Any]] = dataset.take_arrow(rows, columns).to_pylist()
    except (OSError, RuntimeError, ValueError):
        if len(rows) > 1:
            return [values for row in rows for values in _read(dataset, [row], columns)]
        return [{**dataset.take_arrow(rows, ["id", "source"]).to_pylist()[0], "image": None}]
    return found


def _damaged(values: dict[str, Any]) -> str | None:
    """The first column of pictures that are not what their ids name."""
    named = {"image": "id", **{kind: id_column(kind) for kind in KINDS}}
    for column, name in named.items():
        data = values.get(column)
        if (data is not None or column == "image") and content_id(data or b"") != values[name]:
            return column
    return None


def _leave_out(ids: Sequence[str]) -> str:
    some = ", ".join(f"'{name}'" for name in ids[:_SHOWN])
    return (
        "its bytes are not those that were imported; take the data set from a copy, or leave it out with "
        f'`carrara data filter DATASET NEW --where "id NOT IN ({some}{" …" if len(ids) > _SHOWN else ""})"`'
    )
