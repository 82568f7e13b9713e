"""Words changed in place by a person or a tool rather than by their source, which then leaves them alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from carrara.data.beside import KINDS
from carrara.data.commits import add_columns, committed, update
from carrara.data.derive import made_from
from carrara.data.known import AMENDED, is_said
from carrara.data.rows import SPLITS
from carrara.data.table import Dataset
from carrara.errors import UserError

if TYPE_CHECKING:
    import lance


def amend(
    dataset: Dataset,
    changes: Mapping[str, Mapping[int, Any]],
    *,
    was: Mapping[str, Mapping[int, str | None]] | None = None,
) -> None:
    """Sets values: column, row number, the value or None for none; ``dataset`` then is at the version that has them.

    Columns are those of words: captions (a new language's is made), label, group, category, split, licence, url,
    flags, boxes, and pictures beside with their ids. A later import of a source that says otherwise leaves what was
    set here as it is. What was derived from these words is emptied for these rows. Rows that others have changed
    meanwhile, from what ``was`` there, are left as they are. ValueError for other columns; UserError for a split that
    is none, or a data set opened at an old version.
    """
    for column, told in changes.items():
        if not (is_said(column) or column in KINDS):
            raise ValueError(f"{column!r} is no column of words")
        if column == "split" and (wrong := set(told.values()) - set(SPLITS)):
            raise UserError(f"no split is called {wrong.pop()!r}; expected {' or '.join(SPLITS)}")
    rows = sorted({row for told in changes.values() for row in told})
    if not rows:
        return
    dataset.check_newest("be changed")
    import pyarrow as pa

    ids = dict(zip(rows, dataset.take(rows, ["id"])["id"], strict=True))
    values: dict[str, dict[str, Any]] = {
        column: {ids[row]: value for row, value in told.items()} for column, told in changes.items() if told
    }

    def change(table: lance.LanceDataset) -> None:
        left = {ids[row] for row in _changed(table, was or {})}
        told = {c: {k: v for k, v in some.items() if k not in left} for c, some in values.items()}
        columns_of = {k: {c for c, some in told.items() if k in some} for k in ids.values() if k not in left}
        before = table.take(rows, columns=[AMENDED])[AMENDED].to_pylist()
        marked = {
            ids[row]: " ".join(sorted(columns_of[ids[row]].union((old or "").split())))
            for row, old in zip(rows, before, strict=True)
            if ids[row] not in left
        }
        emptied = {
            field.name: {known: None for known, columns in columns_of.items() if columns & made_from(field)}
            for field in table.schema
            if made_from(field)
        }
        if marked:
            update(table, {**told, AMENDED: marked, **{c: some for c, some in emptied.items() if some}})

    with dataset.store.writing():
        add_columns(dataset.store, [pa.field(column, pa.string()) for column in (*values, AMENDED)])
        committed(dataset.store, change)
    dataset.refresh()


def _changed(table: lance.LanceDataset, was: Mapping[str, Mapping[int, str | None]]) -> set[int]:
    """The rows in which a column no longer says what it did."""
    found = set[int]()
    for column, told in was.items():
        now = table.take(list(told), columns=[column])[column].to_pylist()
        found |= {row for (row, old), new in zip(told.items(), now, strict=True) if new != old}
    return found
