"""What an import changes of pictures that are in the table: their words, and the pictures beside them.

A source may change what is said of a picture and add to it; it takes away only what it said itself (`owners`).

Words changed in place by a person or a tool rather than by their source, which then leaves them alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from carrara.dataset.columns import (
    AMENDED,
    CAPTIONED_BY,
    FLAGS,
    IDS,
    KINDS,
    MORE_CAPTIONS,
    ORIGIN,
    SPLITS,
    caption_language,
)
from carrara.dataset.commits import add_columns, committed, update
from carrara.dataset.derived import made_from
from carrara.dataset.known_rows import Record, is_said
from carrara.dataset.sentence import column_of
from carrara.dataset.store import newest
from carrara.dataset.word_sources import Owners
from carrara.errors import UserError
from carrara.files import replacing

if TYPE_CHECKING:
    import lance

    from carrara.dataset.commits import Values
    from carrara.dataset.dataset import Dataset
    from carrara.dataset.store import Store


TOGETHER_BYTES = 64 * 2**20
REPLACED = "replaced"  # the flag of a picture whose file holds another one now
_BESIDE = "beside"  # the folder for those that known pictures are to get

Lent = Mapping[str, Sequence[tuple[str, str]]]  # columns and captions of copies, by id


class Import(NamedTuple):
    """What a source (its `word_sources.source_id`) says of rows that are there, by their ids.

    ``records`` are of pictures under their own names, ``lent`` is of their copies; of ``replaced`` pictures the file
    holds another one now.
    """

    source: str
    records: Mapping[str, Record]
    lent: Lent
    replaced: Collection[str]


@dataclass
class Changes:
    """New values by column and id, the ids of new pictures beside by kind and id, and how many rows change how."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    beside: dict[str, dict[str, str | None]] = field(default_factory=dict)
    updated: int = 0
    lost: int = 0  # of these, those that lose a caption, which their source took back
    replaced: int = 0
    shared: int = 0  # of any that change, those of which another source has said something

    def _add(self, name: str, row: Record, what: Import) -> None:
        now = _said_now(name, row, what)
        changed = {column: value for column, value in now.items() if value != row.get(column)}
        for column, value in changed.items():
            self.values.setdefault(column, {})[name] = value
        lost = any(caption_language(column) and not value for column, value in changed.items())
        self.lost += lost
        self.updated += bool(changed) and name in what.records
        self.replaced += bool(changed) and name in what.replaced
        self.shared += bool(changed) and not Owners(row[ORIGIN]).are_all(what.source)


def changes(table: lance.LanceDataset, what: Import) -> Changes:
    """What rows are to say otherwise; nothing of those that say it already."""
    wanted = what.records.keys() | what.lent.keys() | set(what.replaced)
    columns = [name for name in table.schema.names if is_said(name) or name in (AMENDED, ORIGIN)]
    found = Changes()
    for batch in table.to_batches(columns=["id", *columns]) if wanted else ():
        places = [place for place, name in enumerate(batch["id"].to_pylist()) if name in wanted]
        for row in batch.take(places).to_pylist() if places else ():
            found._add(row.pop("id"), row, what)
    found.beside = {kind: found.values.pop(IDS[kind]) for kind in KINDS if IDS[kind] in found.values}
    every = {**found.values, **found.beside}
    for derived in table.schema:
        if ids := {name for column in made_from(derived) for name in every.get(column, ())}:
            found.values[derived.name] = dict.fromkeys(ids)  # to none, until derived again
    return found


def _said_now(name: str, row: Record, what: Import) -> Record:
    owners, amended = Owners(row[ORIGIN]), (row.get(AMENDED) or "").split()
    now = {column: value for column, value in row.items() if column not in (AMENDED, ORIGIN)}

    def say(column: str, value: str | None) -> None:
        if column not in amended and value != now.get(column):
            now[column] = value
            owners[column] = what.source

    if (record := what.records.get(name)) is not None:
        alone = owners.are_all(what.source)
        if (made := column_of(record)) and any(
            text and owners[column] != what.source for column, text in row.items() if caption_language(column)
        ):  # another source has words of it
            record = {c: value for c, value in record.items() if c not in (made, CAPTIONED_BY)}
        for column in {*now, *filter(is_said, record)}:
            value = record.get(column)
            if column in _SEVERAL:
                say(column, value if alone else _SEVERAL[column](row.get(column), value))
            elif column != CAPTIONED_BY and (value or owners[column] == what.source):
                say(column, value)
        say(CAPTIONED_BY, _captioned_by(row, record, now))
    for column, text in what.lent.get(name, ()):
        if not now.get(column):
            say(column, text)
        elif text != now[column] and column not in amended:
            say(MORE_CAPTIONS, _more(now.get(MORE_CAPTIONS), json.dumps([text])))
    if name in what.replaced:
        say(FLAGS, _flags(now.get(FLAGS), REPLACED))
    if str(owners) != str(Owners(row[ORIGIN])):
        now[ORIGIN] = str(owners)
    return now


def _flags(old: str | None, new: str | None) -> str | None:
    """All of both; a picture of which somebody speaks is not replaced."""
    kept = {flag for flag in (old or "").split() if flag != REPLACED}
    return " ".join(sorted(kept.union((new or "").split()))) or None


def _more(old: str | None, new: str | None) -> str | None:
    """The captions of both, each once."""
    every = [*json.loads(old or "[]"), *json.loads(new or "[]")]
    return json.dumps(list(dict.fromkeys(every)), ensure_ascii=False) if every else None


_SEVERAL = {FLAGS: _flags, MORE_CAPTIONS: _more}  # columns of which each source may have said a part


def _captioned_by(row: Record, record: Record, now: Record) -> str | None:
    """Who made the captions that a row has now: of those in the record, who it says."""
    column_of = {language: column for column in now if (language := caption_language(column))}
    before, made = row.get(CAPTIONED_BY), (record.get(CAPTIONED_BY) or "").split()
    for one in (before or "").split():
        column = column_of.get(one.partition(":")[0])
        if column is None or (now[column] and not record.get(column)):
            made.append(one)
    same = before is not None and set(made) == set(before.split())
    return before if same else " ".join(dict.fromkeys(made)) or None


def lent(left_out: Sequence[Mapping[str, str]]) -> Lent:
    """The captions of what was left out as a copy, in order."""
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in left_out:
        for column, text in entry.items() if "id" in entry else ():
            if caption_language(column) is not None:
                found.setdefault(entry["id"], []).append((column, text))
    return found


def replaced_in(table: lance.LanceDataset, source: str, met: bytes | bytearray, began: int) -> set[str]:
    """The ids of the rows whose files hold another picture now: their source has a row of this name, and not them.

    ``met`` has a 1 for each row that the import of ``source`` met under its name, a 2 under another one; rows from
    ``began`` on came since it began.
    """
    if not began:
        return set()
    about = table.to_table(columns=["source", ORIGIN], scan_in_order=True)
    own = np.array([Owners(text)["source"] == source for text in about[ORIGIN].to_pylist()], bool)
    seen = np.zeros(len(own), np.uint8)
    seen[: len(met)] = np.frombuffer(met, np.uint8)[: len(own)]
    seen[began:] = np.where(own[began:], 1, seen[began:])
    names = about["source"].to_pylist()
    taken = {names[row] for row in np.flatnonzero(seen == 1)}
    rows = [int(row) for row in np.flatnonzero(own & (seen == 0)) if names[row] in taken]
    return set(table.take(rows, columns=["id"])["id"].to_pylist()) if rows else set()


def keep_beside(folder: Path, record: Record) -> None:
    """Puts the pictures beside a known one into files of ``folder`` by their hash: the journal holds no bytes."""
    for name in record.keys() & KINDS.keys():
        if record[name] is None:
            continue
        path = folder / _BESIDE / record[IDS[name]]
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(record[name])


def changed_beside(
    store: Store, folder: Path, name: str, wanted: Mapping[str, str | None]
) -> Iterator[Values]:
    """The pictures for the column ``name`` whose ids are ``wanted``, some megabytes at a time."""
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
