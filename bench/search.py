"""Nearest neighbours in the table: time to index, time a query, and recall@10 against exact search.

    python bench/search.py --json bench/results/search_cpu.json
    python bench/search.py --data data/cifar            # on the features that `carrara data encode --features` stored

The vectors are clustered as features are: centres of unequal weight, each with a spread of its own in few directions.
Queries are new draws of the same distribution (of a data set: every so many of its rows). Times are those of whole
calls, row numbers included, one after another, the first five left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from carrara.dataset.columns import DERIVED_KEY, DERIVED_SHAPE
from carrara.dataset.dataset import Dataset
from carrara.dataset.description import ABOUT, FORMAT
from carrara.dataset.store import TABLE
from carrara.dataset.subset import subset
from carrara.search.by_vector import Effort, index_vectors, nearest
from carrara.search.vector_columns import VectorColumn, newest, vector_columns, vector_key

Vectors = npt.NDArray[np.float32]
HITS = 10


def clustered(rows: int, width: int, seed: int) -> Vectors:
    """Unit ``[rows width]``: rows / 100 centres, chosen as often as Zipf has it, around each a spread of rank 32."""
    shape, draw = np.random.default_rng(0), np.random.default_rng(seed)
    count = max(1, 50_000 // 100)
    centres = shape.standard_normal((count, width)).astype(np.float32)
    weights = 1 / np.arange(1, count + 1) ** 0.7
    basis = shape.standard_normal((16, 32, width)).astype(np.float32) / np.sqrt(32)
    chosen = draw.choice(count, rows, p=weights / weights.sum())
    found = centres[chosen].copy()
    for kind in range(len(basis)):
        mine = np.flatnonzero(chosen % len(basis) == kind)
        found[mine] += 0.8 * draw.standard_normal((len(mine), 32)).astype(np.float32) @ basis[kind]
    found += 0.15 * draw.standard_normal(found.shape).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def written(folder: Path, vectors: Vectors) -> Dataset:
    """A data set whose pictures are a byte each, with these vectors as a derived column."""
    import lance
    import pyarrow as pa

    from carrara.dataset.columns import schema

    width = vectors.shape[1]
    key = json.dumps(vector_key("bench", {}, "image", joint=False), sort_keys=True)
    metadata = {DERIVED_KEY: key, DERIVED_SHAPE: json.dumps([width])}
    field = pa.field("seen_bench", pa.list_(pa.float16(), width), metadata=metadata)
    whole = schema().append(field)
    count = len(vectors)
    columns: dict[str, Any] = {name: [None] * count for name in schema().names}
    columns |= {
        "id": [f"{k:064x}" for k in range(count)],
        "image": [b"x"] * count,
        "split": ["train"] * count,
    }
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).reshape(-1)), width)
    table = pa.table(
        [pa.array(columns[n], schema().field(n).type) for n in schema().names] + [values], schema=whole
    )
    lance.write_dataset(table, str(folder / TABLE), data_storage_version="2.2")
    (folder / ABOUT).write_text(f"format = {FORMAT}\nsources = []\n")
    return Dataset.open(folder)


def timed(
    ask: Callable[[Vectors], npt.NDArray[np.int64]], queries: Vectors
) -> tuple[list[float], list[set[int]]]:
    """Milliseconds of each query but the first five, and what each found."""
    times, found = [], []
    for query in queries:
        start = time.perf_counter()
        rows = ask(query)
        times.append(1000 * (time.perf_counter() - start))
        found.append(set(rows.tolist()))
    return times[5:], found


def measured(
    dataset: Dataset, column: VectorColumn, queries: Vectors, *, where: str | None
) -> list[dict[str, Any]]:
    """A row of the table each for exact search and for the index."""

    def ask(query: Vectors) -> npt.NDArray[np.int64]:
        return nearest(dataset, column, query, limit=HITS, where=where)[0]

    rows: list[dict[str, Any]] = []
    times, truth = timed(ask, queries)
    rows.append({"search": "one by one", "build_s": 0.0, **_row(times, truth, truth)})
    start = time.perf_counter()
    if index_vectors(dataset, column):
        built = time.perf_counter() - start
        times, found = timed(ask, queries)
        effort = Effort.of(len(dataset), column.width)
        rows.append({"search": f"IVF_RQ {effort}", "build_s": round(built, 2), **_row(times, found, truth)})
    return rows


def _row(times: list[float], found: list[set[int]], truth: list[set[int]]) -> dict[str, float]:
    recall = np.mean([len(a & b) / max(1, len(b)) for a, b in zip(found, truth, strict=True)])
    middle, slow = np.percentile(times, [50, 95])
    return {
        "median_ms": round(float(middle), 2),
        "p95_ms": round(float(slow), 2),
        "recall_at_10": round(float(recall), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--where", help="a condition that has to hold, e.g. \"split = 'train'\"")
    parser.add_argument(
        "--data", type=Path, help="a data set with stored features, instead of made-up vectors"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "data"
        if given.data:  # a copy, so that no index is left behind
            source = Dataset.open(given.data)
            dataset = subset(source, source.indices(None), place, why="to measure search")
            column = newest(vector_columns(dataset), of_pictures=True, joint=False)[0]
            rows = np.linspace(0, len(dataset) - 1, given.queries).astype(np.int64)
            values = dataset.take_arrow(rows, [column.column])[column.column].combine_chunks().flatten()
            queries = values.to_numpy(zero_copy_only=False).reshape(len(rows), -1).astype(np.float32)
        else:
            place.mkdir()
            dataset = written(place, clustered(given.rows, given.width, 1))
            column = vector_columns(dataset)[0]
            queries = clustered(given.queries, given.width, 2)
        found = measured(dataset, column, queries, where=given.where)
        about = {"rows": len(dataset), "width": column.width, "queries": given.queries, "where": given.where}
    print(
        f"{about['rows']} vectors of {about['width']} numbers, {given.queries} queries, where {given.where}"
    )
    print(f"{'':52} {'built in s':>10} {'median ms':>10} {'95 % ms':>9} {'recall@10':>10}")
    for row in found:
        print(
            f"{row['search']:52} {row['build_s']:10} {row['median_ms']:10} {row['p95_ms']:9} {row['recall_at_10']:10}"
        )
    if given.json:
        given.json.write_text(json.dumps({**about, "rows_measured": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
