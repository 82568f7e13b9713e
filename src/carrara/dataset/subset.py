"""A subset: some rows of a data set as a data set of their own, with everything that was derived for them.

Rows chosen by a condition, at random, or evenly by a column, for a data set of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tomli_w

from carrara.dataset import ranges
from carrara.dataset.commits import STORAGE_VERSION
from carrara.dataset.dataset import Dataset
from carrara.dataset.description import ABOUT, FORMAT
from carrara.dataset.sql_condition import nameable
from carrara.dataset.store import TABLE, for_lance, store_at
from carrara.errors import UserError, nearest, refusal
from carrara.files import check_writable, replacing_folder

if TYPE_CHECKING:
    import pyarrow as pa

    from carrara.dataset.store import Store
    from carrara.tensors import Index


AT_A_TIME = 64 * 2**20  # bytes that are read at once
MOST_ROWS = 2048
BEGUN = "subset.partial"  # in object storage, until all is there: what was left by halves may be written over


def subset(dataset: Dataset, rows: npt.NDArray[np.int64], destination: Path, *, why: str) -> Dataset:
    """Copies ``rows``, in their order and each once, with all columns into a new data set, which it opens.

    Its ``dataset.toml`` says of which version of what it was made and ``why``, in words or as a condition. All of it
    is there or nothing. UserError where there are no rows, or the destination holds something already.
    """
    if not len(rows):
        raise UserError(f"no picture of {dataset.path} is left: {why}")
    if len(np.unique(rows)) != len(rows):
        raise ValueError("a row is asked for twice")
    store = store_at(destination)
    begun = store.path != store.work and store.read(BEGUN) is not None
    if not begun and (store.has_table() or store.read(ABOUT) is not None or _holds_something(store)):
        raise UserError(f"{destination} is there already; give a new name for the data set")
    own = ranges.of(dataset.about)
    about = {
        "format": FORMAT,
        "sources": [],
        "subset": {
            "of": whereabouts(dataset.store),
            "version": dataset.version,
            "why": why,
            "pictures": len(rows),
            "sources": dataset.about.get("sources", []),
        },
        **({ranges.KEY: {name: list(span) for name, span in own.items()}} if own else {}),
    }
    if store.path != store.work:  # in object storage; it is a data set once the last object says so
        store.write(BEGUN, why)
        _copy(dataset, rows, store.table, again=begun and store.has_table())
        store.write(ABOUT, tomli_w.dumps(about))
        store.remove(BEGUN)
        return Dataset.open(destination)
    check_writable(destination)
    try:
        with replacing_folder(destination) as part:
            _copy(dataset, rows, for_lance(part / TABLE), again=False)
            store_at(part).write(ABOUT, tomli_w.dumps(about))
    except BaseException as error:
        if not isinstance(error, UserError) and (reason := refusal(error)):
            raise UserError(f"cannot make {destination}: {reason}") from None
        raise
    return Dataset.open(destination)


def whereabouts(store: Store) -> str:
    """Where a data set lies, also for one who stands in another folder."""
    return str(store.path.resolve() if store.path == store.work else store.path)


def _holds_something(store: Store) -> bool:
    folder = store.path
    return store.work == folder and folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _copy(dataset: Dataset, rows: npt.NDArray[np.int64], table: str, *, again: bool) -> None:
    import lance
    import pyarrow as pa

    schema = dataset.schema
    reader = pa.RecordBatchReader.from_batches(schema, _pieces(dataset, rows, schema))
    lance.write_dataset(
        reader,
        table,
        mode="overwrite" if again else "create",
        data_storage_version=STORAGE_VERSION,
        max_rows_per_file=2**15,
    )


def _pieces(dataset: Dataset, rows: npt.NDArray[np.int64], schema: pa.Schema) -> Iterator[Any]:
    """The rows some megabytes at a time, whatever their size: as many as those before say."""
    start, count = 0, 16
    while start < len(rows):
        found = dataset.take_arrow(rows[start : start + count], schema.names).cast(schema)
        yield from found.to_batches()
        start += count
        count = int(min(MOST_ROWS, 4 * count, max(1, AT_A_TIME * len(found) // max(1, found.nbytes))))


def choose(
    dataset: Dataset,
    where: str | None = None,
    *,
    sample: int | None = None,
    balance: str | None = None,
    at_most: int | None = None,
    seed: int = 0,
) -> Index:
    """Row numbers, ascending: where the SQL condition holds, then at most ``at_most`` of each value of the column
    ``balance`` (None: as many as the rarest has), then ``sample`` of them.

    The seed and the row number decide what is taken at random. UserError for a condition or a column that is none.
    """
    rows = dataset.indices(None, where)
    ranked = np.random.default_rng(seed).random(len(dataset))[rows]
    if balance is not None:
        if balance not in (known := nameable(dataset.table.schema)):
            raise UserError(f"no column to balance is called {balance!r}{nearest(balance, known)}")
        values = dataset.take(rows, [balance])[balance]
        counts = Counter(value for value in values if value is not None)
        if not counts:
            raise UserError(f"no picture has a {balance} to balance by")
        most = at_most or min(counts.values())
        taken: Counter[str] = Counter()
        keep = []
        for k in np.argsort(ranked, kind="stable").tolist():
            if values[k] is not None and taken[values[k]] < most:
                taken[values[k]] += 1
                keep.append(k)
        keep = sorted(keep)
        rows, ranked = rows[keep], ranked[keep]
    if sample is not None and sample < len(rows):
        rows = np.sort(rows[np.argsort(ranked, kind="stable")[:sample]])
    return rows
