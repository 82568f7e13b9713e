"""A worker of an import: a writer of its own for each part, which is published when its turn has come."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from carrara.data import looking
from carrara.data.cluster.parts import Part
from carrara.data.importing import Job, take_in
from carrara.data.known import Known, Record
from carrara.data.store import Store, store_at
from carrara.data.writer import Writer

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


class PartWriter(Writer):
    """Writes a part of an import that found ``began`` rows in the table.

    What the parts before it brought counts as met in the same import: another row of the same picture is a duplicate,
    whatever it says. No group is held out for want of others before all parts are in.
    """

    def __init__(self, store: Store, ticket: str, *, held_out: float, began: int) -> None:
        self.began = began
        super().__init__(store, ticket, held_out=held_out)

    def _meet(self, record: Record, known: Known) -> None:
        super()._meet(record, known._replace(source=b"") if known.row >= self.began else known)

    def _hold_one_out(self, table: lance.LanceDataset) -> None:
        """Left to who has seen all parts."""

    def brought(self, pictures: int) -> Brought:
        """What it has published."""
        counts = (self.added, self.updated, self.duplicates)
        return Brought(pictures, self.rejected, counts, self._first)


class Worker:
    """Takes in parts of an import, several at a time; Ray makes a process of it."""

    def __init__(self, place: Path, ticket: str, job: Job, began: int) -> None:
        self.store = store_at(place)
        self.ticket, self.job, self.began = ticket, job, began
        self._writers: dict[int, PartWriter] = {}
        self._pictures: dict[int, int] = {}
        looking.THREADS = _THREADS

    def ready(self) -> None:
        """Says that it is there."""

    def gather(self, part: Part) -> Iterator[int]:
        """Brings a part up to its publishing; yields now and then how many pictures were looked at, at last of all."""
        writer = PartWriter(
            self.store, self._ticket(part.number), held_out=self.job.options.held_out, began=self.began
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
