"""What an import says otherwise of pictures that are in the table: their words, and the pictures beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.data.beside import KINDS
from carrara.data.commits import Values, committed, update
from carrara.data.known import AMENDED, IDS, Record, is_said
from carrara.data.rows import caption_language
from carrara.data.store import Store, newest
from carrara.data.table import DERIVED_FROM
from carrara.data.table_files import add_said

if TYPE_CHECKING:
    import lance

TOGETHER_BYTES = 64 * 2**20
_BESIDE = "beside"  # the folder for those that known pictures are to get


def change_words(table: lance.LanceDataset, later: list[Record]) -> None:
    """One version with the words of all of ``later``, and without what was derived from the words before."""
    ids = [r["id"] for r in later]
    amended: dict[str, list[str]] = {}
    if AMENDED in table.schema.names:
        marked = table.to_table(columns=["id", AMENDED], filter=f"{AMENDED} IS NOT NULL").to_pylist()
        amended = {record["id"]: record[AMENDED].split() for record in marked}
    values: dict[str, dict[str, Any]] = {}
    for field in table.schema:
        if field.metadata and field.metadata.get(DERIVED_FROM):
            values[field.name] = dict.fromkeys(ids)  # to none, until derived again
        elif is_said(field.name) and field.name not in IDS.values():
            told = ((r["id"], r.get(field.name)) for r in later)
            values[field.name] = {k: v for k, v in told if field.name not in amended.get(k, ())}
    update(table, {column: told for column, told in values.items() if told})


def lend_words(store: Store, left_out: Sequence[Mapping[str, str]]) -> None:
    """Captions of what was left out as a copy go to the row of the same bytes, in languages in which it has none."""
    lent: dict[str, dict[str, str]] = {}
    for entry in left_out:
        for column, text in entry.items() if "id" in entry else ():
            if caption_language(column) is not None:
                lent.setdefault(column, {}).setdefault(entry["id"], text)
    if lent:
        add_said(store, [dict.fromkeys(lent)])
        committed(store, lambda table: _lend(table, lent))


def _lend(table: lance.LanceDataset, lent: Mapping[str, Mapping[str, str]]) -> None:
    marks = [AMENDED] if AMENDED in table.schema.names else []
    wanted = set[str]().union(*lent.values())
    values: dict[str, dict[str, Any]] = {column: {} for column in lent}
    for batch in table.to_batches(columns=["id", *lent, *marks]):
        for record in batch.to_pylist():
            if (name := record["id"]) not in wanted:
                continue
            amended = (record.get(AMENDED) or "").split()
            for column, told in lent.items():
                if name in told and record[column] is None and column not in amended:
                    values[column][name] = told[name]
    changed = dict.fromkeys(name for told in values.values() for name in told)
    for field in table.schema if changed else ():
        if field.metadata and field.metadata.get(DERIVED_FROM):
            values[field.name] = changed  # to none, until derived again
    update(table, {column: told for column, told in values.items() if told})


def keep_beside(folder: Path, record: Record) -> None:
    """Puts the pictures beside a known one into files of ``folder`` by their hash: the journal holds no bytes."""
    for name in record.keys() & KINDS.keys():
        if record[name] is None:
            continue
        path = folder / _BESIDE / record[IDS[name]]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(record[name])
        os.replace(part, path)


def changed_beside(store: Store, folder: Path, name: str, later: list[Record]) -> Iterator[Values]:
    """Those whose picture in the column ``name`` is another one now, some megabytes at a time."""
    wanted = {r["id"]: r.get(IDS[name]) for r in later}
    present = newest(store).to_table(columns=["id", IDS[name]], scan_in_order=True)
    pictures: dict[str, bytes | None] = {}
    size = 0
    for known, digest in zip(*(present[c].to_pylist() for c in ("id", IDS[name])), strict=True):
        if wanted.get(known, digest) == digest:
            continue
        new = wanted[known]
        pictures[known] = (folder / _BESIDE / new).read_bytes() if new else None
        size += len(pictures[known] or b"")
        if size >= TOGETHER_BYTES:
            yield {name: pictures, IDS[name]: {k: wanted[k] for k in pictures}}
            pictures, size = {}, 0
    if pictures:
        yield {name: pictures, IDS[name]: {k: wanted[k] for k in pictures}}
