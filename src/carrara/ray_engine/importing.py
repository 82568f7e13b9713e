"""An import on Ray: workers look at parts of the source and write them; they are published in the source's order.

So the table says of each picture what one process would say of it: of the same bytes in two files the first is a row
and the second is listed, and a group stays in one split. The journal of the whole notes each part that is in.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.dataset.unfinished_imports import JOURNAL
from carrara.dataset.writer import Writer
from carrara.errors import UserError
from carrara.files import Journal
from carrara.importing.importing import Job, Progress, importers
from carrara.importing.options import Options
from carrara.importing.row import Survey
from carrara.ray_engine.session import arrived, cause, cluster, dismiss, is_lost, place_of
from carrara.ray_engine.source_parts import Part, Unreadable, parts, shards_of, standing
from carrara.ray_engine.worker import Brought, Worker

if TYPE_CHECKING:
    from ray import ObjectRef, ObjectRefGenerator
    from ray.actor import ActorHandle

TRIES = 3  # of a part whose worker dies
LET_GO = 30.0  # seconds that the removal of the last journals may take
HELD = 2  # parts that a worker may have in hand: one at work, one that waits for its turn


@dataclass(frozen=True)
class RayEngine:
    """`importing.Engine` on so many workers, or on as many as there are processors."""

    workers: int | None = None
    name: str = "ray"

    def survey(self, importer: str, source: str, options: Options) -> Survey:
        """As the importer's; of many files of which one is damaged, their number and a digest of their stamps."""
        try:
            found: Survey = importers()[importer].survey(source, options)
        except UserError:
            if not (shards := shards_of(importer, source)):
                raise
            stamps = [
                (name, (about := (Path(source) / name).stat()).st_size, about.st_mtime_ns) for name in shards
            ]
            digest = hashlib.sha256(repr((options.licence, stamps)).encode())
            found = Survey(len(shards), digest.hexdigest())
        return found

    def run(self, job: Job, writer: Writer) -> Iterator[Progress]:
        """Brings what the journal of ``writer`` does not name yet."""
        with cluster(self.workers) as team:
            # What one process would ask of a host at a time, all of them together do.
            workers = most_workers(team.workers, job)
            polite = job.options.model_copy(
                update={
                    "at_once": max(1, job.options.at_once // workers),
                    "per_host": max(1, job.options.per_host // workers),
                }
            )
            job = job._replace(source=standing(job.source), options=polite)
            with closing(_Run(job, writer, workers)) as run:
                yield from run.reports()


def most_workers(workers: int, job: Job) -> int:
    """No more of them than there may be downloads at a time, each of which could be from the same host."""
    if getattr(importers()[job.importer], "DOWNLOADS", False):
        workers = min(workers, job.options.at_once, job.options.per_host)
    return workers


@dataclass
class _Hand:
    """A worker, and the parts that it has in hand."""

    actor: ActorHandle[Any]
    held: dict[int, Part] = field(default_factory=dict)
    at_work: ObjectRefGenerator | None = None


class _Run:
    """One import: who does what, and whose turn it is."""

    def __init__(self, job: Job, writer: Writer, workers: int) -> None:
        self.job, self.writer = job, writer
        self.notes = _Notes(writer)
        self.left = parts(job, set(self.notes.done))
        self.again: list[tuple[int, Part]] = []  # of workers that died, by number
        self.tries = Counter[int]()
        self.lost: dict[int, str] = {}
        self.faults: dict[int, str] = {}
        self.seen: dict[int, int] = {}  # pictures of the parts at work
        self.gathered: dict[int, _Hand] = {}
        self.order: list[int] = []  # of all parts that were handed out and are not in yet
        self.letting_go: list[ObjectRef[None]] = []
        self.publishing: tuple[ObjectRef[Brought], int, _Hand] | None = None
        self.hands = [_Hand(actor) for actor in self._hire(workers, needed=True)]

    def reports(self) -> Iterator[Progress]:
        """Progress until every part is in. UserError where some cannot be, once all others are."""
        import ray

        while True:
            for hand in self.hands:
                self._hand_out(hand)
            self._publish_next()
            waiting: list[Any] = [hand.at_work for hand in self.hands if hand.at_work is not None]
            if self.publishing:
                waiting.append(self.publishing[0])
            if not waiting:
                break
            ready, _ = ray.wait(waiting, num_returns=1, timeout=1.0)
            for one in ready:
                self._hear(one)
            yield self._progress()
        self._let_go(seconds=LET_GO)
        if self.lost:
            _, name = min(self.lost.items())
            raise UserError(
                f"the workers of {len(self.lost)} parts died {TRIES} times (the first: {name}); all else is done, "
                "and the same command tries these again"
            )

    def _let_go(self, *begun: ObjectRef[None], seconds: float = 0) -> None:
        """Journals of parts that are in are being removed; who is dismissed meanwhile leaves them."""
        import ray

        if removing := [*self.letting_go, *begun]:
            _, self.letting_go = ray.wait(removing, num_returns=len(removing), timeout=seconds)

    def close(self) -> None:
        """Dismisses the workers; what they have begun is in journals."""
        self.left.close()  # type: ignore[attr-defined]
        for hand in self.hands:
            dismiss(hand.actor)

    def _hire(self, many: int, *, needed: bool) -> list[ActorHandle[Any]]:
        import ray

        kind = ray.remote(Worker).options(num_cpus=1, max_concurrency=HELD)
        given = (place_of(self.writer.store), self.writer.ticket, self.job, self.notes.began)
        return arrived([kind.remote(*given) for _ in range(many)], needed=needed)

    def _hand_out(self, hand: _Hand) -> None:
        # One that all others wait for is taken by who has its hands full, too.
        awaited = bool(self.again) and self.again[0][0] == min(self.order)
        if hand.at_work is not None or (len(hand.held) >= HELD and not awaited):
            return
        part = heapq.heappop(self.again)[1] if self.again else next(self.left, None)
        if part is None:
            return
        if part.number not in self.order:
            self.order.append(part.number)
        hand.held[part.number] = part
        hand.at_work = hand.actor.gather.options(num_returns="streaming").remote(part)

    def _publish_next(self) -> None:
        """Of all that are not in yet the first may go, where it is gathered."""
        if self.publishing is None and self.order and (hand := self.gathered.get(min(self.order))):
            number = min(self.order)
            self.publishing = (hand.actor.publish.remote(number), number, hand)

    def _hear(self, one: Any) -> None:
        """Takes what a worker says, or that it died."""
        if self.publishing and one is self.publishing[0]:
            self._hear_published(*self.publishing)
            return
        import ray

        hand = next(hand for hand in self.hands if hand.at_work is one)
        number = list(hand.held)[-1]
        try:
            self.seen[number] = ray.get(next(one))
        except StopIteration:
            hand.at_work = None
            self.gathered[number] = hand
        except Exception as error:
            if is_lost(error):
                self._replace(hand)
                return
            found = cause(error)
            if isinstance(found, UserError) and not isinstance(found, Unreadable):
                place = self.writer.store.path
                raise UserError(
                    f"the import into {place} had to stop: {found}; the same `carrara data import` continues it"
                ) from None
            if not isinstance(found, Unreadable):
                raise found from None
            hand.at_work = None
            part = hand.held.pop(number)
            self.order.remove(number)
            self.notes.note(number, Brought(0, [{"file": part.name, "reason": str(found)}], (0, 0, 0), None))

    def _hear_published(self, ref: ObjectRef[Brought], number: int, hand: _Hand) -> None:
        import ray

        self.publishing = None
        try:
            brought = ray.get(ref)
        except Exception as error:
            if is_lost(error):
                self._replace(hand)
                return
            raise cause(error) from None
        self.notes.note(number, brought)
        self.order.remove(number)
        self.gathered.pop(number)
        self.seen.pop(number, None)
        hand.held.pop(number)
        self._let_go(hand.actor.forget.remote(number))

    def _replace(self, hand: _Hand) -> None:
        """Another worker in place of one that died; what it had in hand is to be done again."""
        dismiss(hand.actor)
        if self.publishing and self.publishing[2] is hand:
            self.publishing = None
        for number, part in hand.held.items():
            self.gathered.pop(number, None)
            self.seen.pop(number, None)
            self.tries[number] += 1
            if self.tries[number] < TRIES:
                heapq.heappush(self.again, (number, part))
            else:
                self.lost[number] = part.name
                self.order.remove(number)
        hand.held, hand.at_work = {}, None
        self.hands.remove(hand)
        self.hands += [_Hand(actor) for actor in self._hire(1, needed=not self.hands)]

    def _progress(self) -> Progress:
        done = self.notes.pictures + sum(self.seen.values())
        return Progress.so_far(done, max(done, self.job.total), self.writer.added, self.writer.skipped)


class _Notes:
    """The journal of the whole import: how many rows there were before it, and every part that is in."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        lines = list(Journal(writer.folder / JOURNAL))[1:]
        self.done = {line["part"] for line in lines if "part" in line}
        self.pictures = sum(line.get("pictures", 0) for line in lines)
        started = next((line["began"] for line in lines if "began" in line), None)
        if started is None:
            started = writer.began
            self._write(began=started)
        self.began: int = started

    def note(self, number: int, brought: Brought) -> None:
        """A part is in the table."""
        for entry in brought.rejected:
            self.writer.note(entry)
        added, updated, duplicates = brought.counts
        self.writer.added += added
        self.writer.updated += updated
        self.writer.duplicates += duplicates
        self.writer.lost += brought.lost
        self.writer.before = self.writer.before or brought.before
        self.writer.shares |= brought.shares
        for row, how in brought.met:
            self.writer.mark(row, how)
        if brought.first is not None:
            self.writer._first = min(self.writer._first or brought.first, brought.first)
        self.pictures += brought.pictures
        self.done.add(number)
        self._write(part=number, pictures=brought.pictures)

    def _write(self, **what: Any) -> None:
        self.writer._note_down(self.writer._line(fragments=[], **what))
