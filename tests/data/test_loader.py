"""What the loader hands out is what lies in the table, in the exact order, without threads left behind."""

import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from carrara.dataset import loader
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, derive
from carrara.dataset.loader import Reading, in_background, load
from carrara.dataset.order import batches
from carrara.errors import UserError
from carrara.importing.importing import import_pictures


@pytest.fixture
def dataset(folder: Path, tmp_path: Path) -> Dataset:
    list(import_pictures(folder, tmp_path / "data", held_out=0.2))
    return Dataset.open(tmp_path / "data")


def test_columns_belong_to_their_rows(dataset: Dataset) -> None:
    for _ in derive(
        dataset,
        Derivation(
            "sizes",
            {"v": 1},
            lambda c: np.stack([c["width"], c["height"]], 1).astype(np.float32),
            batch=7,
            reading=Reading(["width", "height"]),
        ),
    ):
        pass
    column = dataset.columns[-1]
    loading = load(dataset, Reading(["image", "caption", "width", column, "label"], size=16), batch=8, seed=5)
    expected = batches(dataset.indices("train"), batch=8, seed=5)
    for got, want in islice(zip(loading, expected, strict=False), 9):
        assert got.rows.tolist() == want.rows.tolist()
        assert got.seeds.tolist() == want.seeds.tolist()
        assert got.seen == want.seen
        assert torch.equal(torch.as_tensor(got.columns["image"]), dataset.pictures(want.rows, 16))
        assert got.columns["caption"] == dataset.take(want.rows, ["caption"])["caption"]
        assert got.columns["label"] == [None] * 8
        assert torch.as_tensor(got.columns[column]).tolist() == [[12.0, 10.0]] * 8
        assert torch.as_tensor(got.columns["width"]).tolist() == [12] * 8
    loading.close()


def test_held_out_pictures_are_never_trained_on(dataset: Dataset) -> None:
    held_out = set(dataset.indices("held_out").tolist())
    assert held_out
    seen = {
        r for b in islice(load(dataset, Reading(["caption"]), batch=8, seed=0), 12) for r in b.rows.tolist()
    }
    assert seen == set(range(30)) - held_out


def test_resume_equals_the_undisturbed_run(dataset: Dataset) -> None:
    whole = [b.columns["caption"] for b in islice(load(dataset, Reading(["caption"]), batch=4, seed=1), 20)]
    late = [
        b.columns["caption"]
        for b in islice(load(dataset, Reading(["caption"]), batch=4, seed=1, start=44), 9)
    ]
    assert late == whole[11:]


def test_pictures_are_the_same_kept_in_memory_or_not(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> list[torch.Tensor]:
        loading = load(dataset, Reading(["image"], size=8, channels=1), batch=8, seed=2)
        return [torch.as_tensor(b.columns["image"]) for b in islice(loading, 10)]

    kept = read()
    monkeypatch.setattr(loader, "IN_MEMORY", 0)
    assert all(torch.equal(a, b) for a, b in zip(kept, read(), strict=True))
    assert kept[0].shape == (8, 1, 8, 8)


def test_mistakes_are_told_before_the_thread_starts(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column 'captoin'; did you mean 'caption'"):
        load(dataset, Reading(["captoin"]), batch=4, seed=0)
    with pytest.raises(UserError, match="no split is called 'trian'; did you mean 'train'"):
        load(dataset, Reading(["caption"]), batch=4, seed=0, split="trian")
    with pytest.raises(ValueError, match="needs a size"):
        load(dataset, Reading(["image"]), batch=4, seed=0)


def test_the_background_is_bounded_and_ends_with_its_consumer() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for k in range(1000):
            made.append(k)
            yield k

    before = threading.active_count()
    background = in_background(items(), ahead=3)
    assert [next(background) for _ in range(5)] == [0, 1, 2, 3, 4]
    time.sleep(0.2)
    assert len(made) <= 5 + 3 + 1  # taken, waiting, in hand
    background.close()
    assert threading.active_count() == before


def test_an_exception_arrives_after_what_came_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("from the thread")

    background = in_background(items(), ahead=8)
    assert [next(background), next(background)] == [1, 2]
    with pytest.raises(KeyError, match="from the thread"):
        next(background)
    assert list(in_background(iter([1, 2, 3]), ahead=1)) == [1, 2, 3]
