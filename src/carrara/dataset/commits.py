"""Commits: changes of the table while others change it: each is one version, made again where another was faster.

Records as data files of a table, which no version of it mentions until they are committed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.dataset.columns import AS_GIVEN, IDS, KINDS, ORIGIN, schema
from carrara.dataset.known_rows import is_said
from carrara.dataset.store import TABLE, for_lance, newest
from carrara.errors import UserError

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

    from carrara.dataset.known_rows import Record
    from carrara.dataset.store import Store


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


PIECE_BYTES = 4 * 2**20
STORAGE_VERSION = "2.2"
_WORDS = ("id", "mode", "source", ORIGIN)


def opened(store: Store, folder: Path) -> lance.LanceDataset:
    """The table at its newest version, made where it is missing; ``folder`` is the import's own."""
    if not store.has_table():
        with store.writing():
            if not store.has_table():
                _create(store, folder)
    return newest(store)


def _create(store: Store, folder: Path) -> None:
    import lance

    empty = schema().empty_table()
    if store.path != store.work:  # in object storage, where a version is one object
        with contextlib.suppress(OSError):  # another was first
            lance.write_dataset(empty, store.table, data_storage_version=STORAGE_VERSION)
        return
    new = folder / TABLE
    shutil.rmtree(new, ignore_errors=True)
    lance.write_dataset(empty, for_lance(new), data_storage_version=STORAGE_VERSION)
    os.rename(new, store.table)


def misfit(record: Record) -> str | None:
    """Why the table cannot take a record, in a few words; None where it can."""
    for name, value in record.items():
        if name in ("width", "height"):
            fits = isinstance(value, int) and 0 < value < 2**31
        elif name == "image" or name in KINDS:
            fits = isinstance(value, bytes) or (value is None and name != "image")
        elif is_said(name) or name in _WORDS:
            fits = value is None or (isinstance(value, str) and _is_text(value))
        else:
            return f"there is no column {name!r}"
        if not fits:
            return f"its {name} is {repr(value)[:60]}"
    return None


def _is_text(value: str) -> bool:
    try:
        return bool(value.encode()) or not value
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def add_origin(store: Store, owner: str) -> None:
    """The column that says who brought a row, to a table of before there was one: of all its rows ``owner`` did."""

    def change(table: lance.LanceDataset) -> None:
        if ORIGIN not in table.schema.names:
            table.add_columns({ORIGIN: f"NULLIF('{owner}', '')"})  # or else it could never be null

    committed(store, change)


def add_said(store: Store, records: list[Record], table: lance.LanceDataset | None = None) -> bool:
    """A column for all that is said in the records; a new one costs no rewriting. Whether there was any."""
    import pyarrow as pa

    said = {k for r in records for k in r if is_said(k)}
    said |= {name for name in KINDS if IDS[name] in said}
    table = newest(store) if table is None else table  # one without rows counts as false
    new = sorted(said - set(table.schema.names))
    pictures = pa.field("", pa.large_binary(), metadata=AS_GIVEN)
    if new:
        add_columns(
            store,
            [pictures.with_name(c) if c in KINDS else pa.field(c, pa.string()) for c in new],
        )
    return bool(new)


def written(table: lance.LanceDataset, records: list[Record], kept: pa.Schema) -> list[dict[str, Any]]:
    """The records in files of their own, as the fragments that these are, to be published."""
    import pyarrow as pa
    from lance.fragment import write_fragments

    reader = pa.RecordBatchReader.from_batches(kept, _pieces(records, kept))
    return [f.to_json() for f in write_fragments(reader, table, mode="append", schema=kept)]


def files_of(table: lance.LanceDataset) -> set[str]:
    """The data files of a version."""
    return {file.path for fragment in table.get_fragments() for file in fragment.data_files()}


def size_of(record: Record) -> int:
    """The bytes of its pictures."""
    return len(record["image"]) + sum(len(record[name] or b"") for name in record.keys() & KINDS.keys())


def _pieces(records: list[Record], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The records as Arrow, some megabytes at a time, so that the memory of one serves the next."""
    import pyarrow as pa

    piece: list[Record] = []
    size = 0
    for record in records:
        piece.append(record)
        size += size_of(record)
        if size >= PIECE_BYTES:
            yield pa.RecordBatch.from_pylist(piece, schema=schema)
            piece, size = [], 0
    if piece:
        yield pa.RecordBatch.from_pylist(piece, schema=schema)
