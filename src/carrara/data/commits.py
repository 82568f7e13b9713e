"""Changes of the table while others change it: each is one version, made again where another was faster."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from carrara.data.store import Store, newest
from carrara.errors import UserError

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

ATTEMPTS = 60

Values = Mapping[str, Mapping[str, Any]]  # column -> id -> value


def committed(store: Store, change: Callable[[lance.LanceDataset], object]) -> None:
    """Runs ``change`` on the newest version, and again on the then newest where a commit was in its way."""
    for attempt in range(ATTEMPTS):
        try:
            change(newest(store))
            return
        except (OSError, RuntimeError, ValueError) as error:
            if "conflict" not in str(error).lower() or attempt + 1 == ATTEMPTS:
                raise
        time.sleep(random.uniform(0.01, 0.05) * min(attempt + 1, 20))


def add_columns(store: Store, fields: Sequence[pa.Field]) -> None:
    """Columns without values, those that are not there; it costs no rewriting."""

    def change(table: lance.LanceDataset) -> None:
        if new := [field for field in fields if field.name not in table.schema.names]:
            table.add_columns(new)

    committed(store, change)


def append(table: lance.LanceDataset, fragments: list[dict[str, Any]]) -> None:
    """Publishes fragments behind all others; a conflict where anything was committed since ``table``.

    Lance's own append would let two writers each add what the other adds, as neither saw the other's rows. Naming
    every fragment makes it a change of the whole table, which only ever one of them makes first.
    """
    import lance
    from lance.fragment import FragmentMetadata

    before = [fragment.metadata for fragment in table.get_fragments()]
    number = 1 + max((fragment.id for fragment in before), default=-1)
    new = [
        FragmentMetadata.from_json(json.dumps({**fragment, "id": number + index}))
        for index, fragment in enumerate(fragments)
    ]
    operation = lance.LanceOperation.Merge([*before, *new], table.lance_schema)
    lance.LanceDataset.commit(table.uri, operation, read_version=table.version)


def update(table: lance.LanceDataset, values: Values) -> None:
    """Changes values in place: rows keep their numbers, and columns that are not named are not written again.

    Of rows that are named for some of the columns only, the others stay as they are. A conflict where another
    changed the same.
    """
    import lance
    import pyarrow as pa

    wanted = {known for changed in values.values() for known in changed}
    changed: list[Any] = []
    fields: list[int] = []
    for fragment in table.get_fragments() if wanted else []:
        ids = fragment.to_table(columns=["id"])["id"].to_pylist()
        places = [place for place, known in enumerate(ids) if known in wanted]
        if not places:
            continue
        now = fragment.take(places, columns=["id", *values])
        new = {"id": now["id"]}
        for column, told in values.items():
            new[column] = _over(now[column], [told.get(ids[place], _KEEP) for place in places])
        metadata, fields = fragment.update_columns(pa.table(new), left_on="id", right_on="id")
        changed.append(metadata)
    if changed:
        operation = lance.LanceOperation.Update(updated_fragments=changed, fields_modified=fields)
        message = f"{', '.join(values)} of {len(wanted)} pictures changed"
        lance.LanceDataset.commit(table.uri, operation, read_version=table.version, commit_message=message)


_KEEP = object()


def _over(now: pa.ChunkedArray, told: list[Any]) -> pa.ChunkedArray:
    import pyarrow as pa

    if all(value is None or value is _KEEP for value in told):  # derived columns are only ever emptied
        return now.take(pa.array([None if value is None else k for k, value in enumerate(told)], pa.int64()))
    both = zip(now.to_pylist(), told, strict=True)
    return pa.chunked_array([pa.array([old if new is _KEEP else new for old, new in both], now.type)])


def drop_columns(store: Store, names: Sequence[str]) -> None:
    """Takes columns out of the newest version, those that are there; older versions keep them."""

    def change(table: lance.LanceDataset) -> None:
        if there := [name for name in names if name in table.schema.names]:
            if len(there) == len(table.schema.names):
                raise UserError("a table cannot lose all of its columns")
            table.drop_columns(there)

    committed(store, change)
