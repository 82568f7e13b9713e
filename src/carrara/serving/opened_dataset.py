"""The data set that a server answers from: opened once, followed as it grows, and what was worked out about it kept.

What one may narrow a data set to by a click: the values of some columns, and how many pictures have each.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from carrara.dataset.columns import KINDS
from carrara.dataset.dataset import Dataset
from carrara.dataset.sql_condition import enclosed
from carrara.errors import UserError, nearest
from carrara.images.boxes import COLUMN as BOXES
from carrara.search.by_words import index_words, unindexed
from carrara.search.query import Found, Query
from carrara.search.search import Fused, hits_of, search

if TYPE_CHECKING:
    import pyarrow as pa

    from carrara.search.query import Embeds
    from carrara.search.vector_columns import VectorColumn


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

    def counted(self, chosen: Chosen, where: str | None) -> dict[str, list[Value]]:
        """What can be chosen, see `opened_dataset.counted`."""
        dataset = self.dataset
        key = ("counted", dataset.version, repr(sorted(chosen.items())), where)
        return self._once(key, lambda: counted(dataset, chosen, where))

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


NAMES = ("split", "language", "label", "category", "flags", "has", "licence", "source")
NOTHING = ""  # the value of pictures that have none; a stored text is never empty
_MOST = 200  # values of a facet; with more it is no list to choose from
_COUNTED = 20_000  # different values that are counted before it is given up
_PLACE = r"[^/:]*$"  # what comes after the folder, the archive or the file that a picture came from

Chosen = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Value:
    """One to choose: ``count`` pictures have it under the other choices."""

    value: str
    count: int


def condition(dataset: Dataset, chosen: Chosen, where: str | None = None) -> str | None:
    """The SQL condition of what was chosen: any of a facet's values, of every facet; None where nothing was.

    UserError for a facet that there is not, and for a ``where`` that does not hold for this table.
    """
    parts = []
    if where and where.strip():
        dataset.indices(None, where)  # says what is wrong with it
        parts.append(enclosed(where))
    for name, values in chosen.items():
        if name not in NAMES:
            raise UserError(f"no filter is called {name!r}{nearest(name, NAMES)}")
        if values:
            parts.append("(" + " OR ".join(_one(dataset, name, value) for value in values) + ")")
    return " AND ".join(parts) or None


def counted(dataset: Dataset, chosen: Chosen, where: str | None = None) -> dict[str, list[Value]]:
    """The facets that have something to choose, each with its values, most frequent first.

    A facet's own choice does not count for itself, so that one sees what else could be chosen.
    """
    together: dict[str | None, list[str]] = {}
    for name in NAMES:
        others = {other: values for other, values in chosen.items() if other != name}
        together.setdefault(condition(dataset, others, where), []).append(name)
    found: dict[str, list[Value]] = {}
    for limits, names in together.items():
        found |= _count(dataset, names, limits)
    shown = [name for name in NAMES if _worth_showing(found[name], chosen.get(name, ()))]
    if "category" in shown and not chosen.get("category") and _is_the_label(dataset):
        shown.remove("category")
    return {name: found[name] for name in shown}


def _is_the_label(dataset: Dataset) -> bool:
    """Whether the category says nothing that the label does not say."""
    return not dataset.table.count_rows(filter="category IS DISTINCT FROM label")


def _worth_showing(values: Sequence[Value], chosen: Sequence[str]) -> bool:
    named = [v for v in values if v.value != NOTHING]
    return bool(chosen) or (bool(named) and len(values) <= _MOST)


def _one(dataset: Dataset, name: str, value: str) -> str:
    """The condition of one value."""
    if name == "language":
        column = dataset.captions.get(value)
        if column is None:
            raise UserError(f"there are no captions in {value!r}{nearest(value, dataset.captions)}")
        return f"{column} IS NOT NULL"
    if name == "has":
        there = _beside(dataset)
        if value not in there:
            raise UserError(f"no picture has {value!r}{nearest(value, there)}")
        return f"{value} IS NOT NULL"
    if name not in dataset.columns:
        raise UserError(f"{dataset.path} has no column {name!r}{nearest(name, dataset.columns)}")
    text = "'" + value.replace("'", "''") + "'"
    if name == "source":  # from right there, not from a folder inside
        rest = f"substr(source, {len(value) + 1})"
        return f"(starts_with(source, {text}) AND strpos({rest}, '/') = 0 AND strpos({rest}, ':') = 0)"
    if value == NOTHING:
        return f"{name} IS NULL"
    return f"array_has(string_to_array(flags, ' '), {text})" if name == "flags" else f"{name} = {text}"


def _beside(dataset: Dataset) -> list[str]:
    """What pictures may have with them: boxes, and pictures beside them."""
    return [name for name in (BOXES, *KINDS) if name in dataset.columns]


def _count(dataset: Dataset, names: Sequence[str], limits: str | None) -> dict[str, list[Value]]:
    """In one reading, a batch at a time, so that a large table needs no more memory than a small one."""
    columns = {name: name for name in names if name in dataset.columns}
    if "language" in names:
        columns |= {column: "language" for column in dataset.captions.values()}
    if "has" in names:
        columns |= {(f"{name}_id" if name in KINDS else name): "has" for name in _beside(dataset)}
    tallies: dict[str, Counter[str]] = {name: Counter() for name in names}
    spoken = {column: language for language, column in dataset.captions.items()}
    reader = dataset.table.to_batches(columns=list(columns), filter=limits) if columns else ()
    for batch in reader:
        for column, name in columns.items():
            tally, values = tallies[name], batch[column]
            if name in ("language", "has"):
                tally[spoken.get(column, column.removesuffix("_id"))] += len(values) - values.null_count
            elif len(tally) <= _COUNTED:
                tally.update(_values(name, values))
    return {name: _ordered(tally) for name, tally in tallies.items()}


def _values(name: str, values: pa.Array) -> dict[str, int]:
    import pyarrow.compute as pc

    if name == "source":
        values = pc.replace_substring_regex(values, _PLACE, "")
    counts: Counter[str] = Counter()
    pairs: Iterable[dict[str, Any]] = values.value_counts().to_pylist()
    for pair in pairs:
        for part in (
            (pair["values"] or NOTHING).split(" ") if name == "flags" else [pair["values"] or NOTHING]
        ):
            counts[part] += pair["counts"]
    return counts


def _ordered(tally: Counter[str]) -> list[Value]:
    values = [Value(value, count) for value, count in tally.items() if count]
    return sorted(values, key=lambda v: (-v.count, v.value))


def chosen_of(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """From the pairs of a page's address those that are choices."""
    chosen: dict[str, list[str]] = {}
    for name, value in pairs:
        if name in NAMES and value not in chosen.setdefault(name, []):
            chosen[name].append(value)
    return chosen
