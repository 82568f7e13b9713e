"""The data set that a server answers from: opened once, followed as it grows, and what was worked out about it kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from carrara.data.search.contract import Found, Query
from carrara.data.search.fusion import Fused
from carrara.data.search.search import hits_of, search
from carrara.data.search.words import index_words, unindexed
from carrara.data.table import Dataset
from carrara.errors import UserError
from carrara.serving import facets

if TYPE_CHECKING:
    from carrara.data.search.contract import Embeds
    from carrara.data.search.vectors import VectorColumn

_KEPT = 32  # answers about one version
T = TypeVar("T")


class Standing:
    """A data set for many threads. A version that another program makes is seen after the next `follow`."""

    def __init__(self, path: Path, embedder_of: Callable[[Dataset, VectorColumn], Embeds]) -> None:
        self.path = path
        self._opens = embedder_of
        self._lock = threading.Lock()
        self._indexing = threading.Lock()
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self.dataset = Dataset.open(path)

    def follow(self) -> Dataset:
        """The newest version, in a handle of its own: a request that is under way keeps the one it has.

        UserError where the data set is gone.
        """
        opened = Dataset.open(self.path)
        with self._lock:
            if opened.version != self.dataset.version:
                self.dataset = opened
                self._kept.clear()
            return self.dataset

    def edited(self, change: Callable[[Dataset], object]) -> Dataset:
        """The newest version after ``change`` of the one before."""
        change(Dataset.open(self.path))
        return self.follow()

    def counted(self, chosen: facets.Chosen, where: str | None) -> dict[str, list[facets.Value]]:
        """What can be chosen, see `facets.counted`."""
        dataset = self.dataset
        key = ("counted", dataset.version, repr(sorted(chosen.items())), where)
        return self._once(key, lambda: facets.counted(dataset, chosen, where))

    def listed(self, where: str | None, limit: int, offset: int) -> tuple[Found, int]:
        """A part of the pictures for which a condition holds, in the order of the rows, and how many there are."""
        dataset = self.dataset
        rows = self._once(("rows", dataset.version, where), lambda: dataset.indices(None, where))
        part, more = rows[offset : offset + limit], len(rows) > offset + limit
        hits = hits_of(dataset, [Fused(int(row), 0.0, []) for row in part])
        return Found(hits, [], dataset.version, len(dataset), more, 0.0), len(rows)

    def found(self, query: Query) -> Found:
        """The answer to a search. UserError as `search` raises it."""
        dataset = self.dataset
        if _lacks_index(dataset):
            with self._indexing:  # one makes the index of the words, the others wait for it
                if _lacks_index(dataset := self.dataset):
                    with suppress(UserError):  # where nothing can be written; the search says it
                        index_words(Dataset.open(self.path))
                    dataset = self.follow()
        return search(dataset, query, lambda column: self._opens(dataset, column))

    def _once(self, key: Hashable, work: Callable[[], T]) -> T:
        """``work()``, or what it gave before."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return cast(T, self._kept[key])
        found = work()
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found


def _lacks_index(dataset: Dataset) -> bool:
    """Also where it is not fresh: the search would make it in the handle that others are reading from."""
    return not dataset.pinned and bool(unindexed(dataset))
