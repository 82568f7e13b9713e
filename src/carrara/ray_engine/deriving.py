"""A derived column made on Ray: workers compute and write it a fragment at a time, the table gets them some at once.

A fragment that is in the table is never computed again, so a killed run loses what it did since the last commit. One
that others changed meanwhile (an import brought other words, files were joined) is computed again from what is there.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from carrara.dataset.commits import add_columns, committed
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import (
    Derivation,
    Derive,
    Progress,
    Rows,
    as_lists,
    changeable,
    computed,
    field_of,
    missing_rows,
    rows_without,
)
from carrara.dataset.loader import Fetch
from carrara.dataset.store import making
from carrara.errors import UserError
from carrara.ray_engine.session import Team, arrived, cause, cluster, dismiss, is_lost, place_of

if TYPE_CHECKING:
    from pathlib import Path

    import lance
    from ray import ObjectRef
    from ray.actor import ActorHandle


PUBLISH = 20.0  # seconds of work that a kill may lose
TRIES = 3  # of a fragment whose worker dies

# Opens what it needs and says what it derives by it: a function of a module, so that a worker finds it too.
Work = Callable[[Dataset], Sequence[Derivation]]


class Piece(NamedTuple):
    """The rows of a fragment that lack the column."""

    fragment: int
    rows: Rows


class Done(NamedTuple):
    """A fragment that has the column: as it was read, and as it is to be, if it still is as it was."""

    fragment: int
    rows: int
    before: dict[str, Any]
    after: dict[str, Any]
    fields: list[int]


def on_ray(work: Work, workers: int | None = None) -> Derive:
    """`derived.derive` by workers: each opens what ``work`` opens, once, and computes what is asked of it there.

    The pictures that lack a value get one, whoever imports meanwhile; of ``rows``, where these are given. UserError
    for an old version of a data set.
    """

    def derive(
        dataset: Dataset, wanted: Derivation, rows: Rows | None = None
    ) -> Generator[Progress, None, None]:
        dataset.check_newest("be encoded on Ray")
        column, total = wanted.column, 0
        if len(missing := missing_rows(dataset, wanted, rows)):
            with (
                making(dataset.store, column),
                cluster(workers) as team,
                closing(_Crew(dataset, (column, work, rows is None), team, missing)) as crew,
            ):
                while len(missing):
                    total = len(missing)
                    for done in crew.make(missing):
                        yield wanted.progress(done, total)
                    dataset.refresh()
                    missing = rows_without(dataset, column, rows)
        yield wanted.complete(total)

    return derive


class Deriver:
    """A worker: what it opens for its first fragment serves all others. Ray makes a process of it."""

    def __init__(self, place: Path, column: str, work: Work, whole: bool) -> None:
        """``whole`` says that every row is to have a value."""
        self.place, self.column, self.work, self.whole = place, column, work, whole

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, which `compute` moves to its newest version."""
        return Dataset.open(self.place)

    @cached_property
    def wanted(self) -> Derivation:
        """What is to be done for each batch, with the model that does it."""
        for found in self.work(self.dataset):
            if found.column == self.column:
                return found
        raise UserError(
            f"a worker finds another model than the one that makes {self.column}; give it the same on every machine"
        )

    def compute(self, piece: Piece) -> Done | None:
        """Writes the values of a fragment's rows; None where others changed it meanwhile."""
        import pyarrow as pa

        self.dataset.refresh()
        column = self.column
        if (read := self._as_it_is(piece.fragment)) is None:
            return None
        with closing(computed(self.wanted, piece.rows, Fetch(self.dataset, self.wanted.reading))) as parts:
            values = np.concatenate(list(parts))
        shape, flat = values.shape[1:], values.reshape(len(values), -1)
        made_of = changeable(self.dataset, self.wanted.reading.columns)
        field = field_of(self.wanted, flat, shape, made_of, whole=self.whole)
        if column not in self.dataset.columns:
            with self.dataset.store.writing():
                add_columns(self.dataset.store, [field])
            self.dataset.refresh()
            if self._as_it_is(piece.fragment) != read:
                return None
        if (kind := self.dataset.schema.field(column).type) != field.type:
            raise ValueError(f"{column}: values of {shape} {values.dtype} in a column of {kind}")
        ids = self.dataset.take_arrow(piece.rows, ["id"])["id"]
        table = pa.table({"id": ids, column: as_lists(flat, kind)})
        fragment = self.dataset.table.get_fragment(piece.fragment)
        after, fields = fragment.update_columns(table, left_on="id", right_on="id")
        return Done(piece.fragment, len(values), read, after.to_json(), list(fields))

    def _as_it_is(self, number: int) -> dict[str, Any] | None:
        """A fragment by its files; None where there is none of this number."""
        return _as_they_are(self.dataset.table).get(number)


class _Crew:
    """Workers that stay for as long as the column is made; ``hand`` is what a `Deriver` gets besides the place."""

    def __init__(self, dataset: Dataset, hand: tuple[str, Work, bool], team: Team, missing: Rows) -> None:
        self.dataset, self.hand, self.team = dataset, hand, team
        self.tries = Counter[int]()
        self.done: list[Done] = []
        self.published = time.monotonic()
        self.busy: dict[ObjectRef[Done | None], tuple[ActorHandle[Any], Piece]] = {}
        self.idle = self._hire(min(team.workers, len(_pieces(dataset.table, missing))), needed=True)

    def make(self, missing: Rows) -> Iterator[int]:
        """Has all of these rows computed and put into the table, but where others are faster; yields how many are
        computed."""
        import ray

        left, computed = _pieces(self.dataset.table, missing), 0
        while left or self.busy:
            while left and self.idle:
                piece, actor = left.pop(), self.idle.pop()
                self.busy[actor.compute.remote(piece)] = (actor, piece)
            for ref in ray.wait(list(self.busy), num_returns=1, timeout=1.0)[0]:
                actor, piece = self.busy.pop(ref)
                try:
                    found = ray.get(ref)
                except Exception as error:
                    if not is_lost(error):
                        raise cause(error) from None
                    dismiss(actor)
                    self._mourn(piece)
                    left.append(piece)
                    self.idle += self._hire(1, needed=not self.idle and not self.busy)
                    continue
                self.idle.append(actor)
                if found is not None:
                    self.done.append(found)
                    computed += found.rows
            if time.monotonic() - self.published > PUBLISH:
                self._publish()
            yield computed
        self._publish()

    def close(self) -> None:
        """Dismisses them."""
        for actor in [*self.idle, *(actor for actor, _ in self.busy.values())]:
            dismiss(actor)

    def _hire(self, many: int, *, needed: bool) -> list[ActorHandle[Any]]:
        import ray

        kind = ray.remote(Deriver).options(num_cpus=self.team.processors, num_gpus=self.team.gpus)
        place = place_of(self.dataset.store)
        hired = [kind.remote(place, *self.hand) for _ in range(many)]
        return arrived(hired, needed=needed)

    def _mourn(self, piece: Piece) -> None:
        self.tries[piece.fragment] += 1
        if self.tries[piece.fragment] == TRIES:
            raise UserError(
                f"a worker died {TRIES} times at the same {len(piece.rows)} pictures, those from row {piece.rows[0]} "
                f"on (too little memory?); the same command goes on after what is done"
            )

    def _publish(self) -> None:
        """One version with all that is done of fragments that are still as they were."""
        import lance
        from lance.fragment import FragmentMetadata

        def change(table: lance.LanceDataset) -> None:
            now = _as_they_are(table)
            good = [done for done in self.done if now.get(done.fragment) == done.before]
            if not good:
                return
            operation = lance.LanceOperation.Update(
                updated_fragments=[FragmentMetadata.from_json(json.dumps(done.after)) for done in good],
                fields_modified=good[0].fields,
            )
            message = f"{self.hand[0]} filled in for {sum(done.rows for done in good)} pictures"
            lance.LanceDataset.commit(
                table.uri, operation, read_version=table.version, commit_message=message
            )

        if self.done:
            with self.dataset.store.writing():
                committed(self.dataset.store, change)
        self.done, self.published = [], time.monotonic()


def _as_they_are(table: lance.LanceDataset) -> dict[int, dict[str, Any]]:
    """The fragments of a version by their files."""
    return {fragment.fragment_id: fragment.metadata.to_json() for fragment in table.get_fragments()}


def _pieces(table: lance.LanceDataset, missing: Rows) -> list[Piece]:
    """These rows by fragment, the last first."""
    found, start = [], 0
    for fragment in table.get_fragments():
        stop = start + fragment.count_rows()
        first, last = np.searchsorted(missing, (start, stop))
        if first < last:
            found.append(Piece(fragment.fragment_id, missing[first:last]))
        start = stop
    return found[::-1]
