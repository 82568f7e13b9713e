"""A worker of an import: a writer of its own for each part, which is published when its turn has come."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from carrara.dataset.known_rows import Known, KnownPictures, Record
from carrara.dataset.store import Store, store_at
from carrara.dataset.word_changes import Lent
from carrara.dataset.writer import Writer
from carrara.importing import decode_pool
from carrara.importing.importing import Job, take_in
from carrara.ray_engine.source_parts import Part

if TYPE_CHECKING:
    import lance

_REPORTS = 1.0  # seconds between two
_THREADS = 2  # one picture is read while another is decoded


class Brought(NamedTuple):
    """What a part brought into the table."""

    pictures: int
    rejected: list[dict[str, str]]
    counts: tuple[int, int, int]  # added, updated, duplicates
    first: tuple[int, str] | None  # of its groups, the first to hold out
    lost: int = 0
    before: int = 0
    shares: frozenset[str] = frozenset()
    met: tuple[
        tuple[int, int], ...
    ] = ()  # rows that were there, and whether under their name (1) or another (2)


class _Below(KnownPictures):
    """What a part knows, over what its worker knows."""

    def __init__(self, below: KnownPictures) -> None:
        super().__init__()
        self._below = below

    def get(self, name: str) -> Known | None:
        return super().get(name) or self._below.get(name)


class Memory:
    """What the writers of a worker know of the table: each reads only what came since the one before."""

    def __init__(self) -> None:
        self.known = KnownPictures()
        self.read: set[str] = set()
        self.splits: dict[str, str] = {}
        self.amended: dict[str, str] = {}
        self.lock = threading.Lock()  # one part is published while the next one is begun


class PartWriter(Writer):
    """Writes a part of an import that found ``began`` rows in the table.

    What the parts before it brought counts as met in the same import: another row of the same picture is a duplicate,
    whatever it says. No group is held out for want of others before all parts are in.
    """

    def __init__(
        self, store: Store, ticket: str, *, source: str, held_out: float, began: int, memory: Memory
    ) -> None:
        self.memory = memory
        self._begun = False
        super().__init__(store, ticket, source=source, held_out=held_out)
        self.began = began  # by all parts
        self._begun = True

    def _catch_up(self, table: lance.LanceDataset) -> None:
        with self.memory.lock:
            if self._begun:
                super()._catch_up(table)
                return
            memory = self.memory  # which catches up before this has anything of its own
            self._known, self._read = memory.known, memory.read
            self._splits, self._amended = memory.splits, memory.amended
            super()._catch_up(table)
            self._known, self._read = _Below(memory.known), set(memory.read)
            self._splits, self._amended = dict(memory.splits), dict(memory.amended)

    def _meet(self, record: Record, known: Known) -> None:
        super()._meet(record, known._replace(source=b"") if known.row >= self.began else known)

    def _hold_one_out(self, table: lance.LanceDataset) -> None:
        """Left to who has seen all parts."""

    def _of_the_whole(self, table: lance.LanceDataset) -> tuple[Lent, set[str]]:
        """Left to who has seen all parts."""
        return {}, set()

    def brought(self, pictures: int) -> Brought:
        """What it has published."""
        counts = (self.added, self.updated, self.duplicates)
        met = tuple((row, how) for row, how in enumerate(self._met[: self.began]) if how)
        shares = frozenset(self.shares)
        return Brought(pictures, self.rejected, counts, self._first, self.lost, self.before, shares, met)


class Worker:
    """Takes in parts of an import, several at a time; Ray makes a process of it."""

    def __init__(self, place: Path, ticket: str, job: Job, began: int) -> None:
        self.store = store_at(place)
        self.ticket, self.began = ticket, began
        self.job = job._replace(total=0)  # so few are looked at by threads: the workers are the processes
        self.memory = Memory()
        self._writers: dict[int, PartWriter] = {}
        self._pictures: dict[int, int] = {}
        decode_pool.THREADS = _THREADS

    def gather(self, part: Part) -> Iterator[int]:
        """Brings a part up to its publishing; yields now and then how many pictures were looked at, at last of all."""
        writer = PartWriter(
            self.store,
            self._ticket(part.number),
            source=self.job.where,
            held_out=self.job.options.held_out,
            began=self.began,
            memory=self.memory,
        )
        try:
            done, said = 0, time.monotonic()
            with part.rows(self.job) as items:
                for progress in take_in(items, self.job, writer):
                    done = progress.done
                    if time.monotonic() - said > _REPORTS:
                        said = time.monotonic()
                        yield done
            writer.flush()
        except BaseException:
            writer.close()
            raise
        self._writers[part.number], self._pictures[part.number] = writer, done
        yield done

    def publish(self, number: int) -> Brought:
        """Puts into the table what was gathered; its journal stays until `forget`, so that it may be done again."""
        writer = self._writers[number]
        writer.commit()
        return writer.brought(self._pictures[number])

    def forget(self, number: int) -> None:
        """Lets go of a part that is noted."""
        self._pictures.pop(number)
        writer = self._writers.pop(number)
        writer.finish()
        writer.close()

    def _ticket(self, number: int) -> str:
        entry: dict[str, Any] = {**json.loads(self.ticket), "part": number}
        return json.dumps(entry)
