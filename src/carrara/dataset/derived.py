"""Derived columns: computed once from the pictures, kept beside them, never used when stale.

A column's name ends in a hash of its key (what made it: model hash, size, crop, code version), and the key
itself stands in the column's metadata, so another model is another column. Values lie in a plain file until
all are there; then the table gets them in one version, without a picture being written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from carrara import progress
from carrara.dataset.columns import DERIVED_FROM, DERIVED_KEY, DERIVED_SHAPE, KINDS, id_column
from carrara.dataset.commits import committed, drop_columns
from carrara.dataset.dataset import Dataset
from carrara.dataset.loader import Column, Fetch, Reading, in_background
from carrara.dataset.order import Batch
from carrara.dataset.store import STAGING, making
from carrara.errors import UserError
from carrara.files import write_atomically

if TYPE_CHECKING:
    import lance
    import pyarrow as pa


# What a picture's bytes decide; whatever else a column is derived from, a later import may change.
_FIXED = frozenset({"id", "image", "width", "height", "mode"})

Key = Mapping[str, Any]
Function = Callable[[Mapping[str, Column]], npt.NDArray[Any]]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Derivation:
    """A column to be computed once: what it is called and keyed by, and the ``function`` that makes it.

    It gets what ``reading`` gives of ``batch`` rows at a time, always the same ones, and returns float16 or float32
    ``[b, *shape]``. ``title`` and ``unit`` are for whoever shows how far it is.
    """

    name: str
    key: Key
    function: Function
    batch: int
    reading: Reading = Reading()  # noqa: RUF009  (frozen)
    title: str = ""
    unit: str = "pictures"

    @property
    def column(self) -> str:
        """The column of the table."""
        return column_name(self.name, self.key)

    def progress(self, done: int, total: int) -> Progress:
        """So many rows are done, of those that lacked it."""
        return Progress.of(done, total, title=self.title or self.name, unit=self.unit)

    def complete(self, total: int) -> Progress:
        """The last report."""
        return Progress(fraction=1.0, total=total, unit=self.unit, column=self.column)


@dataclass(frozen=True, kw_only=True)
class Progress(progress.Progress):
    """Rows done, of how many that lacked the column; the last report names it, then ready to be loaded."""

    column: str | None = None


class Derive(Protocol):
    """`derive`, or what does the same elsewhere."""

    def __call__(
        self, dataset: Dataset, wanted: Derivation, rows: Rows | None = None
    ) -> Generator[Progress, None, None]: ...


def column_name(name: str, key: Key) -> str:
    """The column that ``name`` under ``key`` is kept in: the name and eight digits of the key's hash."""
    if not re.fullmatch(r"(?!caption)[a-z][a-z0-9_]*", name):
        raise ValueError(f"{name!r} cannot name a column; expected small letters, digits, underscores")
    return f"{name}_{hashlib.sha256(_canonical(key).encode()).hexdigest()[:8]}"


def derived(dataset: Dataset, name: str, key: Key, rows: Rows | None = None) -> str | None:
    """The column, if made under exactly this key and there for all ``rows`` (None: for every row); None where it
    must be derived."""
    column = column_name(name, key)
    if not made_under(dataset, column, key) or len(rows_without(dataset, column, rows)):
        return None
    return column


def forget(dataset: Dataset, name: str, key: Key) -> None:
    """Drops the column that ``name`` has under ``key``, if any (older versions of the table keep it)."""
    drop(dataset, column_name(name, key))


def drop(dataset: Dataset, column: str) -> None:
    """Drops a column, if it is there."""
    with dataset.store.writing():
        drop_columns(dataset.store, [column])
    dataset.refresh()


def derive(dataset: Dataset, wanted: Derivation, rows: Rows | None = None) -> Generator[Progress, None, None]:
    """Computes the column for those of ``rows`` (None: every row) that lack it; ``dataset`` then has it.

    Started again after a kill it goes on after the last whole batch; pictures that others add meanwhile get their
    values too. ValueError where values are not finite or their shape changes; UserError where another process makes
    the same column, or a picture cannot have the channels that are read.
    """
    total = 0
    if len(missing := missing_rows(dataset, wanted, rows)):
        with making(dataset.store, wanted.column):
            while len(missing):
                total = len(missing)
                staging = _Staging(dataset, wanted, missing)
                for done in _compute(staging, Fetch(dataset, wanted.reading)):
                    yield wanted.progress(done, total)
                with suppress(_Changed), dataset.store.writing():
                    _publish(dataset, staging, whole=rows is None)
                staging.remove()
                dataset.refresh()
                missing = rows_without(dataset, wanted.column, rows)
    yield wanted.complete(total)


def missing_rows(dataset: Dataset, wanted: Derivation, rows: Rows | None) -> Rows:
    """Those of ``rows`` (None: every row) of the newest version that lack it; values of another key go before."""
    dataset.refresh()
    if wanted.column in dataset.columns and not made_under(dataset, wanted.column, wanted.key):
        drop(dataset, wanted.column)
    return rows_without(dataset, wanted.column, rows)


def changeable(dataset: Dataset, columns: Sequence[str]) -> list[str]:
    """Those that a later import may change, or what they were themselves made from."""
    found: set[str] = set()
    for name in columns:
        field = dataset.table.schema.field(name)
        stored = DERIVED_KEY in (field.metadata or {})
        found |= made_from(field) if stored else {name} - _FIXED
    return sorted(found)


class _Changed(Exception):
    """What the values were made from is another thing now."""


class _Staging:
    """The values so far: a file of whole batches, and a note of what they are for."""

    def __init__(self, dataset: Dataset, wanted: Derivation, missing: Rows) -> None:
        self.wanted, self.column, self.missing = wanted, wanted.column, missing
        self.changeable = changeable(dataset, wanted.reading.columns)
        self.folder = dataset.store.work / STAGING / self.column
        self.values, self.note = self.folder / "values", self.folder / "note.json"
        self.rows = _rows_digest(dataset.take_arrow(missing, _told_by(self.changeable)))
        self._for = {"key": _canonical(wanted.key), "batch": wanted.batch, "rows": self.rows}
        self.shape: tuple[int, ...] | None = None
        self.dtype = np.dtype(np.float16)
        self.done = 0
        self._take_up()

    def _take_up(self) -> None:
        """Finds the whole batches that an earlier run left; what was left for anything else is removed."""
        try:
            note = json.loads(self.note.read_text())
        except (OSError, ValueError):
            note = {}
        if {k: note.get(k) for k in self._for} != self._for or not self.values.is_file():
            self.remove()
            return
        self.shape, self.dtype = tuple(note["shape"]), np.dtype(note["dtype"])
        rows = min(self.values.stat().st_size // self._row_bytes(), len(self.missing))
        self.done = rows if rows == len(self.missing) else rows // self.wanted.batch * self.wanted.batch
        os.truncate(self.values, self.done * self._row_bytes())

    def add(self, file: BinaryIO, values: npt.NDArray[Any]) -> None:
        """Appends the values of the next batch."""
        if self.shape is None:
            self.shape, self.dtype = values.shape[1:], values.dtype
            write_atomically(
                self.note, json.dumps({**self._for, "shape": self.shape, "dtype": self.dtype.name})
            )
        if values.shape[1:] != self.shape or values.dtype != self.dtype:
            raise ValueError(
                f"{self.column}: values of {values.shape[1:]} {values.dtype} after {self.shape} {self.dtype}"
            )
        file.write(np.ascontiguousarray(values).tobytes())
        file.flush()
        os.fsync(file.fileno())
        self.done += len(values)

    def read(self) -> npt.NDArray[Any]:
        """All values ``[rows, numbers]``, mapped from the file rather than held in memory."""
        return np.memmap(self.values, self.dtype, "r").reshape(len(self.missing), -1)

    def remove(self) -> None:
        self.note.unlink(missing_ok=True)
        self.values.unlink(missing_ok=True)

    def _row_bytes(self) -> int:
        return int(np.prod(self.shape or (), dtype=np.int64)) * self.dtype.itemsize


def _compute(staging: _Staging, fetch: Fetch) -> Iterator[int]:
    """Has the values computed that are missing; yields how many there are."""
    if staging.done:
        yield staging.done
    values = computed(staging.wanted, staging.missing[staging.done :], fetch)
    with open(staging.values, "ab") as file, closing(values):
        for some in values:
            staging.add(file, some)
            yield staging.done


def computed(wanted: Derivation, rows: Rows, fetch: Fetch) -> Generator[npt.NDArray[Any], None, None]:
    """The checked values of these rows, a batch at a time."""
    chunks = (rows[start : start + wanted.batch] for start in range(0, len(rows), wanted.batch))
    loaded = in_background((fetch(Batch(c, 0, np.empty(0, np.uint64))) for c in chunks), ahead=2)
    with closing(loaded):
        for given in loaded:
            yield checked(wanted.column, np.asarray(wanted.function(given.columns)), given.rows)


def checked(column: str, values: npt.NDArray[Any], rows: Rows) -> npt.NDArray[Any]:
    """The values for these rows. ValueError where they are not one a row, of a float type and finite."""
    if len(values) != len(rows) or values.dtype not in (np.float16, np.float32):
        raise ValueError(
            f"{column}: got {values.dtype} {values.shape} for {len(rows)} rows; "
            "expected float16 or float32, a value a row"
        )
    if not np.isfinite(values).all():
        bad = rows[~np.isfinite(values).reshape(len(values), -1).all(1)]
        raise ValueError(f"{column}: values that are not finite, at row {bad[0]} first")
    return values


def _publish(dataset: Dataset, staging: _Staging, *, whole: bool) -> None:
    """One new version of the table that has the values; _Changed where they are stale already.

    ``whole`` says that every row is to have one, though some may have come meanwhile.
    """
    values = staging.read()

    def change(table: lance.LanceDataset) -> None:
        found = table.take(staging.missing.tolist(), columns=_told_by(staging.changeable))
        if _rows_digest(found) != staging.rows:
            if dataset.pinned:
                raise UserError(
                    f"the words of {dataset.path} are others now than at version {dataset.version}, so what is "
                    "derived from them cannot be added; make a data set of that version: carrara data filter"
                )
            raise _Changed
        if staging.column in table.schema.names:
            _fill_in(table, staging, values)
        else:
            _add(table, staging, values, whole=whole)

    committed(dataset.store, change)


def _add(table: lance.LanceDataset, staging: _Staging, values: npt.NDArray[Any], *, whole: bool) -> None:
    import pyarrow as pa

    total = table.count_rows()
    field = field_of(staging.wanted, values, staging.shape or (), staging.changeable, whole=whole)
    schema = pa.schema([field])
    parts = (pa.record_batch([p], schema=schema) for p in _every_row(staging, values, total, field.type))
    table.add_columns(pa.RecordBatchReader.from_batches(schema, parts))


def _fill_in(table: lance.LanceDataset, staging: _Staging, values: npt.NDArray[Any]) -> None:
    import lance
    import pyarrow as pa

    changed, fields = [], list[int]()
    ids = table.take(staging.missing.tolist(), columns=["id"])["id"].to_pylist()
    place = {name: index for index, name in enumerate(ids)}
    field = table.schema.field(staging.column)
    step = _at_a_time(values)
    for fragment in table.get_fragments():
        names = [name for name in fragment.to_table(columns=["id"])["id"].to_pylist() if name in place]
        if not names:
            continue
        rows = np.array([place[name] for name in names])
        pieces = [as_lists(values[rows[k : k + step]], field.type) for k in range(0, len(rows), step)]
        update = pa.table({"id": names, staging.column: pa.chunked_array(pieces, field.type)})
        metadata, fields = fragment.update_columns(update, left_on="id", right_on="id")
        changed.append(metadata)
    operation = lance.LanceOperation.Update(updated_fragments=changed, fields_modified=fields)
    message = f"{staging.column} filled in for {len(ids)} pictures"
    lance.LanceDataset.commit(table.uri, operation, read_version=table.version, commit_message=message)


def _every_row(
    staging: _Staging, values: npt.NDArray[Any], total: int, kind: pa.DataType
) -> Iterator[pa.Array]:
    """The values of all rows in order, some megabytes at a time; none for rows that were not asked for."""
    step = _at_a_time(values)
    for start in range(0, total, step):
        first, last = np.searchsorted(staging.missing, (start, start + step))
        there = np.isin(np.arange(start, min(start + step, total)), staging.missing[first:last])
        yield as_lists(values[first:last], kind, there)


def _at_a_time(values: npt.NDArray[Any]) -> int:
    """Rows of some megabytes: a list array counts its numbers in 31 bits, and memory stays flat."""
    return int(max(1, 2**25 // max(1, values.nbytes // len(values))))


def field_of(
    wanted: Derivation,
    values: npt.NDArray[Any],
    shape: Sequence[int],
    changeable: Sequence[str],
    *,
    whole: bool = True,
) -> pa.Field:
    """The field of a column of ``values [rows, numbers]``, each of which is of this ``shape``.

    A list of fixed size holds room for absent values too, so a column of some rows only is of free ones.
    """
    import pyarrow as pa

    kind = pa.float16() if values.dtype == np.float16 else pa.float32()
    metadata = {DERIVED_KEY: _canonical(wanted.key), DERIVED_SHAPE: json.dumps(list(shape))}
    if changeable:
        metadata[DERIVED_FROM] = json.dumps(list(changeable))
    return pa.field(wanted.column, pa.list_(kind, values.shape[1] if whole else -1), metadata=metadata)


def made_from(field: pa.Field) -> set[str]:
    """The columns of words that a derived column was made from; none of any other column."""
    return set(json.loads((field.metadata or {}).get(DERIVED_FROM, b"[]")))


def _told_by(changeable: Sequence[str]) -> list[str]:
    """The columns that tell whether what is read of a row is still the same."""
    return ["id", *(id_column(name) if name in KINDS else name for name in changeable)]


def _rows_digest(found: pa.Table) -> str:
    told = ["".join(found["id"].to_pylist())]
    told += [repr(found[name].to_pylist()) for name in found.schema.names if name != "id"]
    return hashlib.sha256("".join(told).encode()).hexdigest()


def as_lists(
    values: npt.NDArray[Any], kind: pa.DataType, there: npt.NDArray[np.bool_] | None = None
) -> pa.Array:
    """``values`` as lists; with ``there``, [rows], they are those of the rows where it holds."""
    import pyarrow as pa

    numbers = values.shape[1]
    there = np.ones(len(values), bool) if there is None else there
    if pa.types.is_fixed_size_list(kind):
        if there.all():
            return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), numbers)
        padded = np.zeros((len(there), numbers), values.dtype)
        padded[there] = values
        flat = pa.array(padded.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, numbers, mask=pa.array(~there))
    offsets = np.concatenate([[0], np.cumsum(there) * numbers]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)), mask=pa.array(~there))


def made_under(dataset: Dataset, column: str, key: Key) -> bool:
    """Whether there is such a column and this key made it."""
    if column not in dataset.columns:
        return False
    metadata = dataset.schema.field(column).metadata or {}
    return bool(metadata.get(DERIVED_KEY) == _canonical(key).encode())


def rows_without(dataset: Dataset, column: str, rows: Rows | None) -> Rows:
    """Those of ``rows``, ascending, that have no value yet."""
    missing = dataset.without(column) if column in dataset.columns else dataset.indices(None)
    return missing if rows is None else np.intersect1d(missing, rows)


def _canonical(key: Key) -> str:
    return json.dumps(key, sort_keys=True, separators=(",", ":"))
