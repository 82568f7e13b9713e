"""Records as data files of a table, which no version of it mentions until they are committed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.data.beside import KINDS
from carrara.data.commits import add_columns, committed
from carrara.data.known import IDS, ORIGIN, Record, is_said
from carrara.data.store import TABLE, Store, for_lance, newest
from carrara.data.table import AS_GIVEN, schema

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

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
