"""Neighbours by vectors: exact and through an index, with conditions, rows without vectors and rows added later."""

import json
from pathlib import Path

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from carrara.dataset.columns import DERIVED_KEY, DERIVED_SHAPE, schema
from carrara.dataset.dataset import Dataset
from carrara.dataset.description import ABOUT, FORMAT
from carrara.dataset.store import TABLE
from carrara.search import by_vector as module
from carrara.search.by_vector import Effort, index_vectors, nearest
from carrara.search.indexes import covers
from carrara.search.query import Ranked
from carrara.search.search import fuse
from carrara.search.table_scores import row_numbers
from carrara.search.vector_columns import VectorColumn, lacking, newest, vector_columns, vector_key

WIDTH = 64


def vectors(count: int, seed: int) -> npt.NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((12, WIDTH))
    found = centres[draw.integers(0, 12, count)] + 0.4 * draw.standard_normal((count, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def rows_of(values: npt.NDArray[np.float32], first: int) -> pa.Table:
    key = json.dumps(vector_key("test", {}, "image", joint=False))
    metadata = {DERIVED_KEY: key, DERIVED_SHAPE: json.dumps([WIDTH])}
    field = pa.field("seen_0", pa.list_(pa.float16(), WIDTH), metadata=metadata)
    count = len(values)
    told = {name: [None] * count for name in schema().names}
    told |= {"id": [f"{first + k:064x}" for k in range(count)], "image": [b"x"] * count}  # type: ignore[dict-item]
    told["split"] = ["held_out" if (first + k) % 10 == 0 else "train" for k in range(count)]  # type: ignore[misc]
    flat = pa.array(values.astype(np.float16).reshape(-1))
    columns = [pa.array(told[f.name], f.type) for f in schema()] + [
        pa.FixedSizeListArray.from_arrays(flat, WIDTH)
    ]
    return pa.table(columns, schema=schema().append(field))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Two thousand rows in three fragments; row 7 has a vector of zeros, as one without its caption has."""
    values = vectors(2000, 1)
    values[7] = 0
    for start, end in ((0, 900), (900, 1500), (1500, 2000)):
        mode = "append" if start else "create"
        lance.write_dataset(
            rows_of(values[start:end], start), str(tmp_path / TABLE), mode=mode, data_storage_version="2.2"
        )
    (tmp_path / ABOUT).write_text(f"format = {FORMAT}\nsources = []\n")
    return Dataset.open(tmp_path)


def exactly(data: Dataset, query: npt.NDArray[np.float32], count: int) -> list[int]:
    stored = np.array(data.column("seen_0"), np.float32)
    length = np.linalg.norm(stored, axis=1)
    scores = np.where(length > 0, stored @ query / np.maximum(length, 1e-6), -9)
    return [int(row) for row in np.argsort(-scores, kind="stable")[:count]]


def test_neighbours_are_those_of_numpy(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    column = vector_columns(data)[0]
    assert column == VectorColumn("seen_0", "test", {}, "image", False, WIDTH)
    assert newest([column], of_pictures=True, joint=False) == [column]
    assert newest([column], of_pictures=True, joint=True) == []
    made = [VectorColumn(name, name, {}, "caption", False, 8) for name in ("first", "use", "ngrams")]
    assert newest(made, of_pictures=False, joint=False) == made[1:2]
    assert newest(made[2:], of_pictures=False, joint=False) == made[2:]
    assert not index_vectors(data, column)  # so few are compared one by one
    queries = vectors(8, 2)
    for query in queries:
        rows, scores = nearest(data, column, query, limit=10)
        assert rows.tolist() == exactly(data, query, 10)
        assert (np.diff(scores) <= 0).all()
        assert 7 not in nearest(data, column, query, limit=2000)[0]
    monkeypatch.setattr(module, "EXACT", 1000)
    assert index_vectors(data, column)
    assert covers(data, "seen_0") in (1999, 2000)
    hits = sum(len({*nearest(data, column, q, limit=10)[0]} & {*exactly(data, q, 10)}) for q in queries)
    assert hits >= 0.95 * 80
    held_out, _ = nearest(data, column, queries[0], limit=10, where="split = 'held_out'")
    assert len(held_out) == 10
    assert (held_out % 10 == 0).all()
    more = vectors(30, 3)
    lance.write_dataset(rows_of(more, 2000), str(data.path / TABLE), mode="append")
    data.refresh()
    assert nearest(data, column, more[4], limit=1)[0].tolist() == [2004]  # no index holds it yet
    monkeypatch.setattr("carrara.search.indexes._STALE", 0.001)
    assert index_vectors(data, column)
    assert (covers(data, "seen_0") or 0) >= 2029
    assert nearest(data, column, more[4], limit=1)[0].tolist() == [2004]


def test_absent_vectors_are_counted_but_not_read_where_all_are_there(data: Dataset) -> None:
    column = vector_columns(data)[0]
    data.table.io_stats_incremental()
    assert lacking(data, column) == 0
    assert data.table.io_stats_incremental().read_bytes == 0
    emptied = rows_of(vectors(10, 4), 2000)
    absent = pa.array([None, *emptied["seen_0"].to_pylist()[1:]], emptied["seen_0"].type)
    place = emptied.schema.get_field_index("seen_0")
    later = emptied.slice(3).drop_columns("seen_0")  # as an import does, which knows no vectors
    for rows in (emptied.set_column(place, emptied.schema.field(place), absent), later):
        lance.write_dataset(rows, str(data.path / TABLE), mode="append")
    data.refresh()
    assert lacking(data, column) == 8 == data.table.count_rows(filter="seen_0 IS NULL")
    lance.dataset(data.path / TABLE).optimize.compact_files()
    data.refresh()
    assert len(data.table.get_fragments()) == 1
    assert lacking(data, column) == 8


def test_addresses_become_row_numbers(data: Dataset) -> None:
    found = data.table.to_table(columns=["id"], with_row_address=True, filter="id >= '" + f"{899:064x}" + "'")
    rows = row_numbers(data, found["_rowaddr"].to_numpy())
    assert [int(name, 16) for name in found["id"].to_pylist()] == rows.tolist()
    assert len(row_numbers(data, np.empty(0, np.uint64))) == 0


def test_effort_grows_with_the_rows() -> None:
    assert Effort.of(50_000, 256) == Effort(64, 16, 10)
    assert Effort.of(10, 64) == Effort(1, 1, 40)
    assert Effort.of(5_000_000, 512).probes == 32


def test_rankings_become_one() -> None:
    def ranked(way: str, rows: list[int]) -> Ranked:
        scores = np.linspace(1, 0.5, len(rows))
        return Ranked(way, np.array(rows, np.int64), scores, [way] * len(rows))  # type: ignore[arg-type]

    found = fuse([ranked("words", [5, 3, 1]), ranked("meaning", [3, 4, 5])])
    assert [f.row for f in found] == [3, 5, 4, 1]
    assert found[0].score == pytest.approx(1 / 62 + 1 / 61)
    assert [(r.way, r.rank) for r in found[0].reasons] == [("words", 2), ("meaning", 1)]
    alone = fuse([ranked("words", [5, 3])])
    assert [(f.row, f.score) for f in alone] == [(5, 1.0), (3, 0.5)]
