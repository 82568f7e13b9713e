"""Writes rows so that they appear all at once: a kill at any moment loses at most the batch in hand.

Batches become data files of the table that no version of it mentions yet, and a journal beside the table
remembers them. `commit` publishes them in one version. A writer that is opened again with the same ticket
goes on after the last batch in the journal; with another ticket it starts afresh.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from carrara.data import boxes
from carrara.data.beside import KINDS, id_column
from carrara.data.rows import MORE_CAPTIONS, caption_language, chosen_by_hash, group_hash
from carrara.data.table import AS_GIVEN, DERIVED_FROM, DERIVED_KEY, TABLE, UNFINISHED, schema
from carrara.errors import UserError

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

Record = dict[str, Any]

BATCH_ROWS = 2048
BATCH_BYTES = 64 * 2**20
PIECE_BYTES = 4 * 2**20
STORAGE_VERSION = "2.2"
ENOUGH_TO_HOLD_OUT = 20
DESCRIPTION = ("label", "group", "category", "split", "licence", "url", "flags", MORE_CAPTIONS)
IDS = {name: id_column(name) for name in KINDS}  # of the pictures beside a picture
JOURNAL = "journal.jsonl"
BESIDE = "beside"  # the folder for those that known pictures are to get
SAME = "the same picture as "


class Known(NamedTuple):
    """What the writer remembers of a picture: a short hash of what is said about it, and what it goes by."""

    said: bytes
    source: str
    group: str
    split: str

    @classmethod
    def of(cls, record: Record) -> Known:
        said = [(k, v) for k, v in sorted(record.items()) if v and _is_said(k)]
        digest = hashlib.sha256(repr(said).encode()).digest()[:8]
        return cls(digest, record["source"], record["group"], record["split"])


class Writer:
    """Adds records to the table in ``path``: new ids as new rows, changed words of known ids in place."""

    def __init__(self, path: Path, ticket: str, *, held_out: float) -> None:
        self.path = path
        self.ticket = ticket
        self.held_out = held_out
        self.rejected: list[dict[str, str]] = []
        self.added = self.updated = self.duplicates = 0
        self.consumed = 0
        self._rows: list[Record] = []
        self._updates: list[Record] = []
        self._bytes = 0
        self._pending: list[dict[str, Any]] = []  # rejections that the journal does not hold yet
        self._known: dict[str, Known] = {}
        self._fresh: set[str] = set()  # those of `_known` that this import brought
        self._splits: dict[str, str] = {}  # of the groups that the source names
        self._first: tuple[int, str] | None = (
            None  # of the groups that this import brings, the first to hold out
        )
        self._fragments: list[dict[str, Any]] = []
        self._later: list[Record] = []
        self._count = self._count_held_out = 0
        self._lock: int | None = None
        if (path / TABLE).is_dir():
            self._lock = lock(path)
            try:
                self._read_table()
                self._read_journal()
            except BaseException:
                self.close()
                raise

    def add(self, record: Record) -> None:
        """Takes one picture: a new one, one whose words changed, or one that is here already."""
        name = record["id"]
        self.consumed += 1
        record["group"] = record["group"] or name
        known = self._known.get(name)
        if known is None:
            self._append(record)
        elif name in self._fresh or known.source != record["source"]:
            self.duplicates += 1
            said = {k: v for k, v in record.items() if caption_language(k) is not None and v}
            self.note({"file": record["source"], "reason": f"{SAME}{known.source}", **said})
        else:
            same_group = record["group"] == known.group
            split = known.split if same_group else self._split_of(record["group"])
            record["split"] = record["split"] or split
            if (now := Known.of(record)) != known:
                self._known[name] = now
                self._keep_beside(record)
                self._updates.append({k: v for k, v in record.items() if k not in ("image", *KINDS)})
                self.updated += 1

    def _append(self, record: Record) -> None:
        group = record["group"]
        if group not in self._splits and record["split"] is None:
            # Not yet written anywhere, so it may still be held out as a whole.
            self._first = min(self._first or (1 << 64, ""), (group_hash(group), group))
        record["split"] = record["split"] or self._split_of(group)
        if group != record["id"]:
            self._splits.setdefault(group, record["split"])
        self._count += 1
        self._count_held_out += record["split"] == "held_out"
        self._known[record["id"]] = Known.of(record)
        self._fresh.add(record["id"])
        self._rows.append(record)
        self._bytes += _bytes(record)
        self.added += 1
        if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self.flush()

    def reject(self, source: str, reason: str) -> None:
        """Takes the note that something in the source did not become a row."""
        self.consumed += 1
        self.note({"file": source, "reason": reason})

    def note(self, entry: dict[str, str]) -> None:
        self.rejected.append(entry)
        self._pending.append(entry)

    def flush(self) -> None:
        """Writes the batch in hand and remembers it in the journal."""
        if not self._rows and not self._updates and not self._pending:
            return
        table = self._table()
        fragments = self._write(table) if self._rows else []
        line = {
            "consumed": self.consumed,
            "fragments": fragments,
            "ids": {r["id"]: r["source"] for r in self._rows},
            "held_out": sum(r["split"] == "held_out" for r in self._rows),
            "groups": {r["group"]: r["split"] for r in self._rows if r["group"] != r["id"]},
            "first": self._first,
            "updates": self._updates,
            "rejected": self._pending,
            "counts": [self.added, self.updated, self.duplicates],
        }
        journal = self.path / UNFINISHED / JOURNAL
        with open(journal, "a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write(json.dumps({"ticket": self.ticket}) + "\n")
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._fragments += fragments
        self._later += self._updates
        self._rows, self._updates, self._pending, self._bytes = [], [], [], 0

    def commit(self) -> None:
        """Publishes everything; the journal stays until `finish`, so that what follows can be redone."""
        import lance
        from lance.fragment import FragmentMetadata

        self.flush()
        table = self._table()
        present = {f.path for fragment in table.get_fragments() for f in fragment.data_files()}
        new = [f for f in self._fragments if f["files"][0]["path"] not in present]
        if new:
            fragments = [FragmentMetadata.from_json(json.dumps(f)) for f in new]
            lance.LanceDataset.commit(
                str(self.path / TABLE), lance.LanceOperation.Append(fragments), read_version=table.version
            )
        if self._later:
            table = self._with_columns(self._table(), self._later)
            if stale := [f.name for f in table.schema if f.metadata and f.metadata.get(DERIVED_FROM)]:
                self._update([{"id": r["id"]} for r in self._later], stale)  # to none, until derived again
            words = [c for c in table.schema.names if _is_said(c) and c not in IDS.values()]
            self._update(self._later, words)
            for name in KINDS:
                if name in table.schema.names:
                    for records in self._changed_beside(name):
                        self._update(records, [name, IDS[name]])
        self._hold_one_out()

    def finish(self) -> None:
        """Forgets the journal: the import is complete and told everywhere."""
        shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)

    def close(self) -> None:
        """Lets others write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _table(self) -> lance.LanceDataset:
        import lance

        if not (self.path / TABLE).is_dir():
            (self.path / UNFINISHED).mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path)
            new = self.path / UNFINISHED / TABLE
            shutil.rmtree(new, ignore_errors=True)
            lance.write_dataset(schema().empty_table(), str(new), data_storage_version=STORAGE_VERSION)
            os.rename(new, self.path / TABLE)
        (self.path / UNFINISHED).mkdir(exist_ok=True)
        return lance.dataset(str(self.path / TABLE))

    def _write(self, table: lance.LanceDataset) -> list[dict[str, Any]]:
        import pyarrow as pa
        from lance.fragment import write_fragments

        table = self._with_columns(table, self._rows)
        derived = {f.name for f in table.schema if f.metadata and DERIVED_KEY in f.metadata}
        kept = pa.schema([f for f in table.schema if f.name not in derived])
        reader = pa.RecordBatchReader.from_batches(kept, _pieces(self._rows, kept))
        fragments = write_fragments(reader, table, mode="append", schema=kept)
        return [f.to_json() for f in fragments]

    def _with_columns(self, table: lance.LanceDataset, records: list[Record]) -> lance.LanceDataset:
        """The table with a column for all that is said in the records; a new one costs no rewriting."""
        import pyarrow as pa

        said = {k for r in records for k in r if _is_said(k)}
        said |= {name for name in KINDS if IDS[name] in said}
        if new := sorted(said - set(table.schema.names)):
            pictures = pa.field("", pa.large_binary(), metadata=AS_GIVEN)
            table.add_columns(
                [pictures.with_name(c) if c in KINDS else pa.field(c, pa.string()) for c in new]
            )
        return table

    def _keep_beside(self, record: Record) -> None:
        """Puts the pictures beside a known one into files by their hash: the journal holds no bytes."""
        for name in record.keys() & KINDS.keys():
            path = self.path / UNFINISHED / BESIDE / record[IDS[name]]
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(record[name])
            os.replace(part, path)

    def _changed_beside(self, name: str) -> Iterator[list[Record]]:
        """The records whose picture in the column ``name`` is another one now, some megabytes at a time."""
        wanted = {r["id"]: r.get(IDS[name]) for r in self._later}
        present = self._table().to_table(columns=["id", IDS[name]], scan_in_order=True)
        changed: list[Record] = []
        size = 0
        for known, digest in zip(*(present[c].to_pylist() for c in ("id", IDS[name])), strict=True):
            if wanted.get(known, digest) == digest:
                continue
            new = wanted[known]
            data = (self.path / UNFINISHED / BESIDE / new).read_bytes() if new else None
            changed.append({"id": known, name: data, IDS[name]: new})
            size += len(data or b"")
            if size >= BATCH_BYTES:
                yield changed
                changed, size = [], 0
        if changed:
            yield changed

    def _split_of(self, group: str) -> str:
        """As the rest of the group, or by the hash of its name."""
        chosen = "held_out" if chosen_by_hash(group, self.held_out) else "train"
        return self._splits.get(group, chosen)

    def _hold_one_out(self) -> None:
        """A set of some size always gets a held-out group, even where the hashes gave it none."""
        if self._count_held_out or self._count < ENOUGH_TO_HOLD_OUT or not self.held_out or not self._first:
            return
        rows = self._table().to_table(columns=["id", "group"]).to_pylist()
        records = [{"id": r["id"], "split": "held_out"} for r in rows if r["group"] == self._first[1]]
        self._update(records, ["split"])

    def _update(self, records: list[Record], columns: list[str]) -> None:
        """Changes values in place: rows keep their numbers, and pictures are not written again."""
        import lance
        import pyarrow as pa

        table = self._table()
        update = pa.Table.from_pylist(
            [{n: r.get(n) for n in ("id", *columns)} for r in records],
            schema=pa.schema([table.schema.field(n) for n in ("id", *columns)]),
        )
        changed: list[Any] = []
        fields: list[int] = []
        ids = {r["id"] for r in records}
        for fragment in table.get_fragments():
            if not ids.isdisjoint(fragment.to_table(columns=["id"])["id"].to_pylist()):
                metadata, fields = fragment.update_columns(update, left_on="id", right_on="id")
                changed.append(metadata)
        operation = lance.LanceOperation.Update(updated_fragments=changed, fields_modified=fields)
        lance.LanceDataset.commit(str(self.path / TABLE), operation, read_version=table.version)

    def _read_table(self) -> None:
        """What is in the table already: ids with their words, and the split of every named group."""
        table = self._table()
        names = [n for n in table.schema.names if _is_said(n)]
        for batch in table.to_batches(columns=["id", "source", *names]):
            for record in batch.to_pylist():
                known = self._known[record["id"]] = Known.of(record)
                self._count += 1
                self._count_held_out += known.split == "held_out"
                if known.group != record["id"]:
                    self._splits.setdefault(known.group, known.split)

    def _read_journal(self) -> None:
        """Takes up what an import with the same ticket left; anything else that was left is thrown away."""
        journal = self.path / UNFINISHED / JOURNAL
        lines = list(_whole_lines(journal))
        if not lines or lines[0].get("ticket") != self.ticket:
            for line in lines[1:]:
                for fragment in line["fragments"]:
                    self._forget(fragment)
            shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)
            return
        for line in lines[1:]:
            self.consumed = line["consumed"]
            self.added, self.updated, self.duplicates = line["counts"]
            self.rejected += line["rejected"]
            self._fragments += line["fragments"]
            self._later += line["updates"]
            self._known |= {name: Known(b"", source, "", "") for name, source in line["ids"].items()}
            self._known |= {r["id"]: Known.of(r) for r in line["updates"]}
            self._fresh |= line["ids"].keys()
            self._splits |= line["groups"]
            self._first = tuple(line["first"]) if line["first"] else None
            self._count += len(line["ids"])
            self._count_held_out += line["held_out"]

    def _forget(self, fragment: dict[str, Any]) -> None:
        import lance

        table = lance.dataset(str(self.path / TABLE))
        present = {f.path for part in table.get_fragments() for f in part.data_files()}
        for file in fragment["files"]:
            if file["path"] not in present:
                (self.path / TABLE / "data" / file["path"]).unlink(missing_ok=True)


def _is_said(column: str) -> bool:
    """Whether a column says something about a picture that its source may change."""
    described = column in DESCRIPTION or column == boxes.COLUMN or column in IDS.values()
    return described or caption_language(column) is not None


def _bytes(record: Record) -> int:
    return len(record["image"]) + sum(len(record[name]) for name in record.keys() & KINDS.keys())


def _pieces(records: list[Record], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The records as Arrow, some megabytes at a time, so that the memory of one serves the next."""
    import pyarrow as pa

    piece: list[Record] = []
    size = 0
    for record in records:
        piece.append(record)
        size += _bytes(record)
        if size >= PIECE_BYTES:
            yield pa.RecordBatch.from_pylist(piece, schema=schema)
            piece, size = [], 0
    if piece:
        yield pa.RecordBatch.from_pylist(piece, schema=schema)


def _whole_lines(journal: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal; a torn last one is cut off, so that the next line starts clean."""
    with contextlib.suppress(FileNotFoundError), open(journal, "r+b") as file:
        whole = 0
        for line in file:
            try:
                parsed = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            yield parsed
        file.truncate(whole)


def forget_journal(path: Path, ticket: str) -> None:
    """Removes what is left of an import that was killed in its very last step."""
    if next(_whole_lines(path / UNFINISHED / JOURNAL), {}).get("ticket") == ticket:
        shutil.rmtree(path / UNFINISHED, ignore_errors=True)


def lock(path: Path) -> int | None:
    """Makes this process the only writer of a data set until the descriptor is closed; a killed one lets go.

    UserError where another process writes. Where the system has no ``flock`` (Windows), nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UserError(f"another process is writing to {path}; wait until it has finished") from None
    return descriptor
