"""What an import has done so far, and the journal from which it is taken up after a kill."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Mapping
from typing import Any

from carrara.dataset.columns import KEPT, ORIGIN
from carrara.dataset.description import about, places_by_id
from carrara.dataset.known_rows import Known, KnownPictures, Names, Record, short
from carrara.dataset.store import TABLE, Store, newest
from carrara.dataset.unfinished_imports import JOURNAL, folder_of, fragments_of
from carrara.dataset.word_sources import Owners, source_id
from carrara.files import Journal

SAME = "the same picture as "


def is_left_out(entry: Mapping[str, str]) -> bool:
    """Whether what is listed did not come in: it is no further copy, and no remark on what did."""
    return not entry["reason"].startswith((SAME, KEPT))


class Journaled:
    """The counts and notes of an import, of which every line of its journal adds what the one before did not hold."""

    def __init__(self, store: Store, ticket: str, *, source: str, held_out: float) -> None:
        self.store = store
        self.ticket = ticket
        self.source = source_id(source)
        self.held_out = held_out
        self.rejected: list[dict[str, str]] = []
        self.added = self.updated = self.duplicates = self.skipped = 0
        self.lost = self.replaced = 0  # see `word_changes.Changes`
        self.before = 0  # the version of the table before words of it were changed; 0 where none were
        self._counted = False
        self.shares: set[str] = set()  # the sources of rows that this import met
        self.began = -1  # how many rows there were before it
        self.consumed = 0
        self.folder = folder_of(store, ticket)
        self._updates: list[Record] = []
        self._pending: list[dict[str, Any]] = []  # rejections that the journal does not hold yet
        self._known = KnownPictures()
        self._sources = Names()  # of those that this import brought
        self._met = bytearray()  # of each row of the table: met under its name (1), another (2), or not
        self._nameless: list[tuple[dict[str, str], int]] = []  # to be told of which row
        self._newly_met = array("q")  # of these, what the journal does not hold yet
        self._amended: dict[str, str] = {}
        self._splits: dict[str, str] = {}  # of the groups that the source names
        self._hashed: set[str] = set()  # those of them of which this import chose the split
        # Of the groups that this import brings, the first to hold out.
        self._first: tuple[int, str] | None = None
        self._fragments: list[dict[str, Any]] = []
        self._later: list[Record] = []

    def note(self, entry: dict[str, str]) -> None:
        self.rejected.append(entry)
        self.skipped += is_left_out(entry)
        self._pending.append(entry)

    def mark(self, row: int, how: int) -> None:
        """This import met a picture of the table: a second one of its name and bytes does not speak for it."""
        self._met.extend(bytes(max(0, row + 1 - len(self._met))))
        if self._met[row] != 1:
            self._met[row] = how
            self._newly_met.append(row if how == 1 else -1 - row)

    def _line(self, **what: Any) -> dict[str, Any]:
        """All that the journal does not hold yet, as a line of it."""
        self._name_duplicates()
        line = {
            "consumed": self.consumed,
            "first": self._first,
            "updates": self._updates,
            "rejected": self._pending,
            "met": self._newly_met.tolist(),
            "counts": [self.added, self.updated, self.duplicates],
            "changed": [self.lost, self.replaced, self.before, self._counted],
            "shares": sorted(self.shares),
            "began": self.began,
            **what,
        }
        self._later += self._updates
        self._updates, self._pending, self._newly_met = [], [], array("q")
        return line

    def _note_down(self, line: dict[str, Any]) -> None:
        """It is on the disk before anything relies on it."""
        journal = Journal(self.folder / JOURNAL)
        begun = journal.path.exists() and journal.path.stat().st_size > 0
        journal.add(*([] if begun else [{"ticket": self.ticket}]), line)

    def _remember(self, name: str, source: str) -> None:
        """One that this import brings; what it says is only needed to tell a change, which cannot come yet."""
        self._sources.add(source)
        known = Known(b"", short(source), b"", False, -len(self._sources))
        self._known.put(name, known)

    def _name_duplicates(self) -> None:
        """Says of those of rows in the table what these are called: all at once, since the table is opened for it."""
        if self._nameless:
            rows = [row for _, row in self._nameless]
            found = newest(self.store).take(rows, columns=["source", ORIGIN]).to_pylist()
            places = places_by_id(about(self.store) or {})
            for (entry, _), row in zip(self._nameless, found, strict=True):
                entry["reason"] = f"{SAME}{row['source']}"
                if (place := places.get(Owners(row[ORIGIN])["source"])) is not None:
                    entry["of"] = place
            self._nameless = []

    def _read_journal(self) -> None:
        """Takes up what an import with the same ticket left, if all that it wrote is still there."""
        journal = Journal(self.folder / JOURNAL)
        needed = ("ticket", "fragments", "instead")  # and not all names at once
        lines = [{k: line[k] for k in needed if k in line} for line in journal]
        fragments = fragments_of(lines)
        if not lines or lines[0].get("ticket") != self.ticket or not self._all_there(fragments):
            if lines:
                journal.path.unlink()
            return
        for line in itertools.islice(journal, 1, None):
            self.consumed = line["consumed"]
            self.added, self.updated, self.duplicates = line["counts"]
            self.rejected += line["rejected"]
            self.skipped += sum(map(is_left_out, line["rejected"]))
            self._later += line["updates"]
            self._first = tuple(line["first"]) if line["first"] else None
            for name, source in line.get("ids", {}).items():
                self._remember(name, source)
            self.lost, self.replaced, self.before, self._counted = line.get("changed", (0, 0, 0, False))
            self.shares |= set(line.get("shares", ()))
            self.began = line.get("began", self.began)
            for row in line.get("met", ()):
                self.mark(max(row, -1 - row), 1 if row >= 0 else 2)
            for record in line["updates"]:
                known = self._known.get(record["id"])
                amended = self._amended.get(record["id"], "").split()
                row, owner = (known.row, known.owner) if known else (0, b"")
                self._known.put(record["id"], Known.of(record, row, amended, owner))
            self._splits |= line.get("groups", {})
            self._hashed |= set(line.get("hashed", []))
        self._newly_met = array("q")
        self._fragments = fragments

    def _all_there(self, fragments: list[dict[str, Any]]) -> bool:
        """Whether no file that the journal names was cleaned away."""
        there = set(self.store.names(f"{TABLE}/data")) if fragments else set()
        return all(f"{TABLE}/data/{file['path']}" in there for f in fragments for file in f["files"])
