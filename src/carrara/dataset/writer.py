"""Writes rows so that they appear all at once: a kill at any moment loses at most the batch in hand.

Batches become data files of the table that no version of it mentions yet, and a journal in a folder of the
import's own remembers them; nothing is held meanwhile, so several imports write at once. `commit` reads what others
have added since, leaves out what is there now, and publishes the rest in one version. A writer that is opened again
with the same ticket goes on after the last batch in the journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from carrara.dataset.columns import AMENDED, DERIVED_KEY, IDS, KINDS, ORIGIN, caption_language
from carrara.dataset.commits import (
    add_origin,
    add_said,
    append,
    committed,
    files_of,
    misfit,
    opened,
    size_of,
    update,
    written,
)
from carrara.dataset.description import about
from carrara.dataset.import_journal import SAME, Journaled
from carrara.dataset.known_rows import Known, is_said, short
from carrara.dataset.sentence import column_of
from carrara.dataset.store import lock, newest, release
from carrara.dataset.unfinished_imports import DOWNLOADS, JOURNAL, forget
from carrara.dataset.word_changes import Import, changed_beside, changes, keep_beside, lent, replaced_in
from carrara.dataset.word_sources import UNKNOWN, Owners, source_id
from carrara.text import printable

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

    from carrara.dataset.known_rows import Record
    from carrara.dataset.store import Store
    from carrara.dataset.word_changes import Changes, Lent


def chosen_by_hash(group: str, share: float) -> bool:
    """Whether a group is in a random ``share`` in [0, 1] of all groups: by its name, so in any order."""
    return group_hash(group) < share * 2.0**64


def group_hash(group: str) -> int:
    """A 64-bit number that belongs to a group for good."""
    return int.from_bytes(hashlib.sha256(b"split:" + group.encode()).digest()[:8], "big")


BATCH_ROWS = 8192  # a file of the table: the more of them, the longer a random read
BATCH_BYTES = 64 * 2**20
ENOUGH_TO_HOLD_OUT = 20

_ABOUT = ["id", "group", "split"]


class Writer(Journaled):
    """Adds records to the table of a store: new ids as new rows, changed words of known ids in place.

    Waits where another process writes with the same ticket.
    """

    def __init__(self, store: Store, ticket: str, *, source: str, held_out: float) -> None:
        super().__init__(store, ticket, source=source, held_out=held_out)
        self._rows: list[Record] = []
        self._bytes = 0
        self._read: set[str] = set()  # data files of which the rows are known
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="carrara-writer")
        self._writing: Future[None] | None = None
        self._made = [p for p in self.folder.parents if not p.exists()]
        self._lock = lock(self.folder, make=True, wait=True, doing=f"importing the same into {store.path}")
        try:
            if store.has_table():
                sources = [told_of["source"] for told_of in (about(store) or {}).get("sources", [])]
                add_origin(store, source_id(sources[0]) if len(sources) == 1 else UNKNOWN)
                self._catch_up(newest(store))
            self._read_journal()
            if self._fragments:
                self._read.clear()  # what others added meanwhile is to be compared with these
            if self.began < 0:
                self.began = newest(store).count_rows() if store.has_table() else 0
        except BaseException:
            self.close()
            raise

    def add(self, record: Record) -> None:
        """Takes one picture: a new one, one whose words changed, or one that is here already."""
        if (reason := misfit(record)) is not None:
            self.reject(printable(str(record["source"])), f"the table cannot take it: {reason}")
            return
        self.consumed += 1
        record["group"] = record["group"] or record["id"]
        known = self._known.get(record["id"])
        if known is None:
            self._append(record)
        else:
            self._meet(record, known)

    def _meet(self, record: Record, known: Known) -> None:
        """Takes a picture that is known: under another name, or with other words than before."""
        name, owner = record["id"], known.owner.hex()
        same = known.source == short(record["source"])
        if not known.fresh and owner != self.source:
            self.shares.add(owner)
        if known.fresh or not same or self._met[known.row : known.row + 1] == b"\1":
            self.duplicates += 1
            if not known.fresh:
                self.mark(known.row, 2)
            made = column_of(record)
            said = {k: v for k, v in record.items() if v and k != made and caption_language(k) is not None}
            entry = {"file": record["source"], "reason": f"{SAME}{record['source']}", "id": name, **said}
            if known.fresh and not same:
                entry["reason"] = f"{SAME}{self._sources[-1 - known.row]}"
            elif not same:
                self._nameless.append((entry, known.row))
            self.note(entry)
            return
        self.mark(known.row, 1)
        amended = self._amended.get(name, "").split()
        if short(record["group"]) == known.group:
            record["split"] = record["split"] or ("held_out" if known.held_out else "train")
        elif record["group"] == name and owner != self.source:
            record["group"] = None  # this source says of none, so it stays in that of another
        else:
            record["split"] = record["split"] or self._split_of(record["group"])
        now = Known.of(record, known.row, amended, known.owner)
        if not now.says(known):
            self._known.put(name, now)
            keep_beside(self.folder, record)
            self._updates.append({k: v for k, v in record.items() if k not in ("image", *KINDS)})

    def _append(self, record: Record) -> None:
        group = record["group"]
        record[ORIGIN] = self.source
        if group not in self._splits and record["split"] is None:
            # Not yet written anywhere, so it may still be held out as a whole.
            self._first = min(self._first or (1 << 64, ""), (group_hash(group), group))
            if group != record["id"]:
                self._hashed.add(group)
        record["split"] = record["split"] or self._split_of(group)
        if group != record["id"]:
            self._splits.setdefault(group, record["split"])
        self._remember(record["id"], record["source"])
        self._rows.append(record)
        self._bytes += size_of(record)
        self.added += 1
        if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self.flush()

    def reject(self, source: str, reason: str) -> None:
        """Takes the note that something in the source did not become a row."""
        self.consumed += 1
        self.note({"file": source, "reason": reason})

    def flush(self) -> None:
        """Has the batch in hand written and remembered in the journal, while others are made ready.

        One at a time: it waits for the batch before, and raises what that one met.
        """
        if not self._rows and not self._updates and not self._pending:
            return
        self._settle()
        named = {r["group"]: r["split"] for r in self._rows if r["group"] != r["id"]}
        line = self._line(
            ids={r["id"]: r["source"] for r in self._rows},
            groups=named,
            hashed=sorted(self._hashed & named.keys()),
        )
        self._writing = self._aside.submit(self._put_away, self._rows, line)
        self._rows, self._bytes = [], 0

    def _put_away(self, rows: list[Record], line: dict[str, Any]) -> None:
        table = opened(self.store, self.folder)
        fragments = self._write(table, rows) if rows else []
        self._note_down({**line, "fragments": fragments})
        self._fragments += fragments

    def _settle(self) -> None:
        """Until the batch that is being written is there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def commit(self) -> None:
        """Publishes everything; the journal stays until `finish`, so that what follows can be redone."""
        self.flush()
        self._settle()
        opened(self.store, self.folder)
        with self.store.writing():
            committed(self.store, self._publish)
            committed(self.store, self._change_words)
            committed(self.store, self._hold_one_out)

    def finish(self) -> None:
        """Forgets the journal: the import is complete and told everywhere; what it had not published is removed."""
        forget(self.store, self._fragments)
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Lets others import the same; what was begun stays, and nothing where nothing was."""
        self._aside.shutdown(cancel_futures=True)
        if not any((self.folder / name).exists() for name in (JOURNAL, DOWNLOADS)):
            shutil.rmtree(self.folder, ignore_errors=True)
            for folder in dict.fromkeys([self.folder.parent, *self._made]):
                with contextlib.suppress(OSError):  # others have something there
                    folder.rmdir()
        release(self._lock)
        self._lock = None

    def _publish(self, table: lance.LanceDataset) -> None:
        """The new rows, less those that others brought meanwhile, in one version."""
        self._catch_up(table)
        present = files_of(table)
        if new := [f for f in self._fragments if f["files"][0]["path"] not in present]:
            append(table, new)

    def _change_words(self, table: lance.LanceDataset) -> None:
        """What it says otherwise of rows that are there; the pictures beside them come behind their words."""
        records = {record["id"]: record for record in self._later}
        found = changes(table, Import(self.source, records, *self._of_the_whole(table)))
        self._count(found, table.version)
        new = [{**found.values, **{IDS[kind]: None for kind in found.beside}}]
        update(newest(self.store) if add_said(self.store, new, table) else table, found.values)
        for kind, wanted in found.beside.items():
            for values in changed_beside(self.store, self.folder, kind, wanted):
                committed(self.store, lambda table, new=values: update(table, new))  # type: ignore[misc]

    def _count(self, found: Changes, version: int) -> None:
        """Notes how many rows change, before they do: after a kill they are changed already."""
        if self._counted or not (found.values or found.beside):
            return
        self._counted = True
        if found.updated or found.replaced or found.shared:
            self.before = self.before or version
        self.updated += found.updated
        self.lost += found.lost
        self.replaced += found.replaced
        self._note_down(self._line(fragments=[]))

    def _of_the_whole(self, table: lance.LanceDataset) -> tuple[Lent, set[str]]:
        """The captions of copies, and the pictures whose files hold others now."""
        return lent(self.rejected), replaced_in(table, self.source, self._met, self.began)

    def _catch_up(self, table: lance.LanceDataset) -> None:
        """Takes note of what is in the table and was not known: pictures, splits of groups.

        Pictures that this import has too are taken out of its files, and its groups follow those of the table.
        """
        own = {file["path"] for fragment in self._fragments for file in fragment["files"]}
        words = [n for n in table.schema.names if is_said(n) or n in (AMENDED, ORIGIN)]
        met: dict[str, Known] = {}
        moved: dict[str, str] = {}
        row = 0
        for fragment in table.get_fragments():
            files = {file.path for file in fragment.data_files()}
            if files & (own | self._read):
                row += fragment.count_rows()
                continue
            for batch in fragment.to_batches(columns=["id", "source", *words]):
                for record in batch.to_pylist():
                    name, group = record["id"], record["group"]
                    if amended := record.pop(AMENDED, None):
                        self._amended[name] = amended
                    owner = bytes.fromhex(Owners(record.pop(ORIGIN))["group"])
                    known = Known.of(record, row, (amended or "").split(), owner)
                    row += 1
                    before = self._known.get(name)
                    if before is not None and before.fresh:
                        met[name] = known
                    self._known.put(name, known)
                    split = (
                        record["split"] if group == name else self._splits.setdefault(group, record["split"])
                    )
                    if split != record["split"] and group in self._hashed:
                        moved[group] = self._splits[group] = record["split"]
            self._read |= files
        if (met or moved) and self._fragments:
            self._leave_out(table, met, moved)

    def _leave_out(self, table: lance.LanceDataset, met: dict[str, Known], moved: dict[str, str]) -> None:
        """Writes those of the fragments again that have pictures in ``met`` or of groups in ``moved``."""
        import pyarrow as pa
        from lance.file import LanceFileReader

        present, kept, changed = files_of(table), [], False
        for fragment in self._fragments:
            path = fragment["files"][0]["path"]
            place = f"{self.store.table}/data/{path}"
            about = None if path in present else LanceFileReader(place, columns=_ABOUT).read_all().to_table()
            if about is None or not _touched(about, met, moved):
                kept.append(fragment)
                continue
            changed, stay = True, []
            rows = LanceFileReader(place).read_all().to_table()
            for record in rows.to_pylist():
                split = moved.get(record["group"], record["split"])
                if record["id"] in met:
                    self.added -= 1
                    if split == self._split_of(record["group"]):
                        split = None  # the source did not say it
                    self._meet({**record, "split": split}, met[record["id"]])
                else:
                    stay.append({**record, "split": split})
            fields = pa.schema([table.schema.field(name) for name in rows.schema.names])
            kept += written(table, stay, fields) if stay else []
        if changed:
            before, self._fragments = self._fragments, kept
            self._note_down(self._line(instead=kept))
            forget(self.store, [fragment for fragment in before if fragment not in kept])

    def _write(self, table: lance.LanceDataset, rows: list[Record]) -> list[dict[str, Any]]:
        import pyarrow as pa

        if add_said(self.store, rows, table):
            table = opened(self.store, self.folder)
        derived = {f.name for f in table.schema if f.metadata and DERIVED_KEY in f.metadata}
        kept = pa.schema([f for f in table.schema if f.name not in derived | {AMENDED}])
        return written(table, rows, kept)

    def _split_of(self, group: str) -> str:
        """As the rest of the group, or by the hash of its name."""
        chosen = "held_out" if chosen_by_hash(group, self.held_out) else "train"
        return self._splits.get(group, chosen)

    def _hold_one_out(self, table: lance.LanceDataset) -> None:
        """A set of some size always gets a held-out group, even where the hashes gave it none."""
        if not self.held_out or not self._first or table.count_rows() < ENOUGH_TO_HOLD_OUT:
            return
        if table.count_rows(filter="split = 'held_out'"):
            return
        rows = table.to_table(columns=["id", "group"]).to_pylist()
        update(table, {"split": {r["id"]: "held_out" for r in rows if r["group"] == self._first[1]}})


def _touched(about: pa.Table, met: dict[str, Known], moved: dict[str, str]) -> bool:
    ids, groups, splits = (about[name].to_pylist() for name in _ABOUT)
    return not met.keys().isdisjoint(ids) or any(
        moved.get(group, split) != split for group, split in zip(groups, splits, strict=True)
    )
