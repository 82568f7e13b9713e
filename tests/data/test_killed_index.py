"""kill -9 while an index is made or freshened, then again: it answers as that of an undisturbed table."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from carrara.dataset.columns import schema
from carrara.dataset.dataset import Dataset
from carrara.dataset.description import ABOUT, FORMAT
from carrara.dataset.store import TABLE
from carrara.search.indexes import covers, make_index

PROGRAM = """
import os, signal, threading
from carrara.dataset import commits
from carrara.search import indexes as indexing
from carrara.dataset.dataset import Dataset
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
{sabotage}
indexing.make_index(Dataset.open({path!r}), {column!r}, {kind!r}, **{settings!r})
die()
"""
# While it is made (some 50 ms, however far it is then), when it is made, and when it is published but nobody told.
SABOTAGE = {
    "soon": "threading.Timer(0.02, die).start()",
    "made": "old = indexing.build; indexing.make_index.__defaults__ = ((lambda *a: (old(*a), die())),)",
    "published": "",
}
VECTORS = {"metric": "cosine", "num_partitions": 4}
WORDS = {"base_tokenizer": "icu", "with_position": False}

Start = Callable[[str], "subprocess.Popen[bytes]"]


def table(place: Path) -> Dataset:
    draw = np.random.default_rng(0)
    for start in (0, 3000):
        told = {name: [None] * 3000 for name in schema().names}
        told["id"] = [f"{start + k:064x}" for k in range(3000)]  # type: ignore[misc]
        told["image"] = [b"x"] * 3000  # type: ignore[list-item]
        told["caption"] = [" ".join(map(str, draw.integers(0, 500, 12))) for _ in range(3000)]  # type: ignore[misc]
        columns = [pa.array(told[field.name], field.type) for field in schema()]
        vectors = pa.array(draw.standard_normal(3000 * 32).astype(np.float32))
        columns.append(pa.FixedSizeListArray.from_arrays(vectors, 32))
        rows = pa.table(columns, schema=schema().append(pa.field("seen", columns[-1].type)))
        mode = "append" if start else "create"
        lance.write_dataset(rows, str(place / TABLE), mode=mode, data_storage_version="2.2")
    (place / ABOUT).write_text(f"format = {FORMAT}\nsources = []\n")
    return Dataset.open(place)


def answers(data: Dataset, column: str) -> list[list[str]]:
    if column == "caption":
        asked = [{"full_text_query": str(word), "limit": 50} for word in (3, 77, 400)]
    else:
        queries = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
        asked = [
            {"nearest": {"column": column, "q": query, "k": 10, "nprobes": 4, "refine_factor": 100}}
            for query in queries
        ]
    found = [data.table.to_table(columns=["id"], **how)["id"].to_pylist() for how in asked]  # type: ignore[arg-type]
    return [sorted(ids) for ids in found]


@pytest.mark.parametrize(
    ("column", "kind", "settings"),
    [("caption", "INVERTED", WORDS), ("seen", "IVF_RQ", VECTORS)],
    ids=["words", "vectors"],
)
def test_killed_again_and_again(
    column: str, kind: str, settings: dict[str, object], tmp_path: Path, start_python: Start
) -> None:
    killed, undisturbed = (table(tmp_path / name) for name in ("killed", "undisturbed"))
    make_index(undisturbed, column, kind, **settings)
    begun = [
        start_python(
            PROGRAM.format(sabotage=how, path=str(killed.path), column=column, kind=kind, settings=settings)
        )
        for how in SABOTAGE.values()
    ]
    for process in begun:  # they are also in each other's way
        process.communicate(timeout=200)
        assert process.returncode == -signal.SIGKILL
    killed.refresh()
    make_index(killed, column, kind, **settings)
    assert covers(killed, column) == covers(undisturbed, column) == 6000
    assert len(killed.table.describe_indices()) == 1
    assert answers(killed, column) == answers(undisturbed, column)
    assert all(answers(killed, column))
