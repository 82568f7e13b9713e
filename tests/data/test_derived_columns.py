"""A derived column is computed once, survives kill -9 to the same bytes, and is never used when stale."""

import json
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, column_name, derive, derived, forget
from carrara.dataset.loader import Reading
from carrara.errors import UserError
from carrara.importing.importing import import_pictures

KEY = {"model": "abc", "size": 8, "version": 1}
Columns = Mapping[str, torch.Tensor | list[Any]]


@pytest.fixture
def dataset(folder: Path, tmp_path: Path) -> Dataset:
    list(import_pictures(folder, tmp_path / "data"))
    return Dataset.open(tmp_path / "data")


class Means:
    """The mean colour of each 4 x 4 corner, and how often it was asked."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, columns: Columns) -> npt.NDArray[np.float16]:
        image = torch.as_tensor(columns["image"])
        self.batches.append(len(image))
        return (image.float().unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2)) / 255).half().numpy()


def run(
    dataset: Dataset, function: Callable[[Columns], npt.NDArray[Any]], key: Any = KEY, rows: Any = None
) -> str:
    wanted = Derivation("mean", key, function, batch=8, reading=Reading(size=8))
    reports = list(derive(dataset, wanted, rows))
    assert all(r.column is None for r in reports[:-1])
    assert reports[-1].column is not None
    return reports[-1].column


def values(dataset: Dataset, column: str) -> npt.NDArray[np.float16]:
    return np.array(dataset.column(column), np.float16)


def test_a_column_beside_the_pictures(dataset: Dataset) -> None:
    assert derived(dataset, "mean", KEY) is None
    before = {p for p in (dataset.path / "pictures.lance" / "data").iterdir()}
    means = Means()
    column = run(dataset, means)
    assert column == column_name("mean", KEY) == derived(dataset, "mean", KEY)
    assert means.batches == [8, 8, 8, 6]
    pictures = dataset.pictures(range(30), 8)
    want = torch.as_tensor(Means()({"image": pictures}).astype(np.float32))
    assert want.std() > 0.02
    got = torch.tensor(dataset.column(column)).reshape(30, 3, 2, 2)
    assert torch.equal(got, want)
    # The pictures were not written again, and nothing is left beside the table.
    new = [p for p in (dataset.path / "pictures.lance" / "data").iterdir() if p not in before]
    assert sum(p.stat().st_size for p in new) < 30 * 12 * 2 + 2000
    assert not list((dataset.path / "derive.partial").iterdir())
    run(dataset, means)
    assert len(means.batches) == 4  # it was there


def test_another_key_is_another_column(dataset: Dataset) -> None:
    column = run(dataset, Means())
    for key in ({**KEY, "model": "abd"}, {**KEY, "size": 9}, {**KEY, "version": 2}):
        assert derived(dataset, "mean", key) is None
    newer = run(dataset, lambda c: Means()(c) * np.float16(0.5), {**KEY, "model": "abd"})
    assert newer != column
    np.testing.assert_array_equal(values(dataset, newer), values(dataset, column) * np.float16(0.5))
    forget(dataset, "mean", KEY)
    assert derived(dataset, "mean", KEY) is None
    assert derived(dataset, "mean", {**KEY, "model": "abd"}) == newer


def test_a_name_that_lies_about_its_key_is_rebuilt(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two keys whose short hashes collide: the whole key decides."""
    monkeypatch.setattr("carrara.dataset.derived.column_name", lambda name, key: f"{name}_12345678")
    run(dataset, lambda c: Means()(c) * 0, {"model": "old"})
    assert derived(dataset, "mean", KEY) is None
    means = Means()
    column = run(dataset, means)
    assert sum(means.batches) == 30
    assert values(dataset, column).any()


def test_rows_that_came_later_are_filled_in(
    dataset: Dataset, folder: Path, make_png: Callable[..., bytes]
) -> None:
    column = run(dataset, Means())
    old = values(dataset, column)
    for k in range(50, 61):
        (folder / f"new{k}.png").write_bytes(make_png(k))
    list(import_pictures(folder, dataset.path))
    dataset.refresh()
    assert len(dataset) == 41
    assert derived(dataset, "mean", KEY) is None  # not complete: not to be trained on
    means = Means()
    assert run(dataset, means) == column
    assert means.batches == [8, 3]
    np.testing.assert_array_equal(values(dataset, column)[:30], old)
    assert values(dataset, column)[30:].all()
    assert derived(dataset, "mean", KEY) == column
    # A table with a derived column can still be told new words.
    (folder / "x1.txt").write_text("other words")
    list(import_pictures(folder, dataset.path))
    dataset.refresh()
    assert derived(dataset, "mean", KEY) == column
    assert dataset.column("caption")[1] == "other words"
    np.testing.assert_array_equal(values(dataset, column)[:30], old)


KILLED = """
import os, signal, sys
import numpy as np
sys.path.insert(0, {tests!r})
from test_derived_columns import KEY, Means
from carrara.dataset import derived as room
from carrara.dataset.dataset import Dataset
from carrara.dataset.loader import Reading
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
means = Means()
def function(columns):
    if len(means.batches) == {batches}:
        die()
    return means(columns)
{sabotage}
for report in room.derive(Dataset.open({path!r}), room.Derivation("mean", KEY, function, 8, Reading(size=8))):
    pass
"""


@pytest.mark.slow
def test_killed_again_and_again(
    dataset: Dataset, folder: Path, tmp_path: Path, start_python: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    def kill_one(batches: int, sabotage: str = "") -> None:
        tests = str(Path(__file__).parent)
        program = KILLED.format(tests=tests, batches=batches, sabotage=sabotage, path=str(dataset.path))
        process = start_python(program)
        process.communicate(timeout=200)
        assert process.returncode == -signal.SIGKILL

    kill_one(2)
    staging = dataset.path / "derive.partial" / column_name("mean", KEY)
    with open(staging / "values", "ab") as file:
        file.write(b"torn")  # as if the kill had come in the middle of a write
    kill_one(1)
    assert derived(dataset, "mean", KEY) is None
    kill_one(99, "room._publish = die")
    kill_one(99, "room._Staging.remove = die")
    dataset.refresh()
    assert derived(dataset, "mean", KEY) is not None  # published before the last kill
    means = Means()
    column = run(dataset, means)
    assert means.batches == []
    other = tmp_path / "other"
    list(import_pictures(folder, other))
    undisturbed = Dataset.open(other)
    run(undisturbed, Means())
    assert values(dataset, column).tobytes() == values(undisturbed, column).tobytes()


def test_finished_batches_are_not_computed_again(dataset: Dataset) -> None:
    means = Means()
    started = derive(dataset, Derivation("mean", KEY, means, batch=8, reading=Reading(size=8)))
    assert [next(started).done, next(started).done] == [8, 16]
    started.close()
    again = Means()
    run(dataset, again)
    assert (means.batches, again.batches) == ([8, 8], [8, 6])


def test_staged_values_of_other_batches_are_not_mixed_in(dataset: Dataset) -> None:
    started = derive(dataset, Derivation("mean", KEY, Means(), batch=4, reading=Reading(size=8)))
    assert [next(started).done, next(started).done] == [4, 8]
    started.close()
    again = Means()
    run(dataset, again)
    assert again.batches == [8, 8, 8, 6]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda c: Means()(c) / np.float16(0), "not finite, at row 0 first"),
        (lambda c: Means()(c).astype(np.float64), "expected float16 or float32"),
        (lambda c: Means()(c)[:3], "for 8 rows"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values_that_cannot_be_kept(
    function: Callable[[Columns], npt.NDArray[Any]], message: str, dataset: Dataset
) -> None:
    with pytest.raises(ValueError, match=message):
        run(dataset, function)
    assert derived(dataset, "mean", KEY) is None
    assert run(dataset, Means())  # and the fault leaves nothing in the way


def test_names_and_other_writers(dataset: Dataset) -> None:
    for bad in ("", "Mean", "a b", "x;y", "caption_de"):
        with pytest.raises(ValueError, match="cannot name a column"):
            column_name(bad, KEY)
    assert column_name("a", {"x": 1, "y": 2}) == column_name("a", json.loads('{"y": 2, "x": 1}'))
    started = derive(dataset, Derivation("mean", KEY, Means(), batch=8, reading=Reading(size=8)))
    next(started)
    with pytest.raises(UserError, match="another process is writing"):
        run(dataset, Means())
    started.close()
