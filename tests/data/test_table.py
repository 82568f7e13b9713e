"""Opening, choosing and naming rows of a data set."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from carrara.dataset.dataset import Dataset
from carrara.dataset.writer import chosen_by_hash
from carrara.errors import UserError
from carrara.importing.importing import import_pictures


@pytest.fixture
def dataset(folder: Path, tmp_path: Path) -> Dataset:
    (folder / "dogs").mkdir()
    for k in range(5):
        (folder / f"x{k}.png").rename(folder / "dogs" / f"x{k}.png")
        (folder / f"x{k}.txt").rename(folder / "dogs" / f"x{k}.txt")
    list(import_pictures(folder, tmp_path / "data", held_out=0.3))
    return Dataset.open(tmp_path / "data")


def test_rows_by_split_and_condition(dataset: Dataset) -> None:
    train, held_out = dataset.indices("train"), dataset.indices("held_out")
    assert sorted([*train, *held_out]) == list(range(30)) == dataset.indices(None).tolist()
    assert len(held_out) > 2
    assert (np.diff(train) > 0).all()
    dogs = dataset.indices(None, "label = 'dogs'")
    assert dataset.take(dogs, ["source"])["source"] == [f"dogs/x{k}.png" for k in range(5)]
    assert set(dataset.indices("train", "label = 'dogs'")) == set(dogs) & set(train)
    for where, words in {
        "labl = 1": "names a column 'labl' that .* did you mean 'label'",
        "width > 0) OR (true": "its brackets do not match",
        " ": "the condition is empty",
    }.items():
        with pytest.raises(UserError, match=words):
            dataset.indices(None, where)


def test_take_keeps_order_and_repeats(dataset: Dataset) -> None:
    sources = dataset.column("source")
    asked = [29, 3, 3, 0, 29]
    assert dataset.take(asked, ["source"])["source"] == [sources[i] for i in asked]
    assert dataset.pictures(asked, 8).shape == (5, 3, 8, 8)
    assert dataset.pictures([], 8).shape == (0, 3, 8, 8)


def test_fingerprints(dataset: Dataset, folder: Path, tmp_path: Path) -> None:
    list(import_pictures(folder, tmp_path / "same", held_out=0.3))
    same = Dataset.open(tmp_path / "same")
    assert (same.fingerprint(), same.hash) == (dataset.fingerprint(), dataset.hash)
    (folder / "x9.txt").write_text("other words")
    list(import_pictures(folder, tmp_path / "same", held_out=0.3))
    same.refresh()
    assert same.fingerprint() == dataset.fingerprint()
    assert same.hash != dataset.hash


def test_an_old_version_stays_readable(dataset: Dataset, folder: Path) -> None:
    (folder / "x9.txt").write_text("other words")
    list(import_pictures(folder, dataset.path, held_out=0.3))
    old, new = Dataset.open(dataset.path, version=dataset.version), Dataset.open(dataset.path)
    assert new.version > old.version
    assert "other words" in new.column("caption")
    assert "other words" not in old.column("caption")


def test_opening_what_is_no_data_set(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no data set at .*dataa; did you mean '.*/data'\?"):
        Dataset.open(tmp_path / "dataa")
    with pytest.raises(UserError, match=r"is not a Carrara data set \(no dataset.toml in it\); did you mean"):
        Dataset.open(tmp_path)
    with pytest.raises(UserError, match="make one with `carrara data import`"):
        Dataset.open(tmp_path / "source")
    about = tmp_path / "data" / "dataset.toml"
    about.write_text(about.read_text().replace("format = 1", "format = 2"))
    with pytest.raises(UserError, match="has data format 2; this Carrara reads format 1: update Carrara"):
        Dataset.open(tmp_path / "data")


def test_shares_by_hash() -> None:
    chosen = sum(chosen_by_hash(f"group {k}", 0.05) for k in range(4000))
    assert 150 < chosen < 250
    assert not any(chosen_by_hash(f"{k}", 0.0) for k in range(100))


def test_the_room_opens_fast() -> None:
    """The heavy modules are loaded by what needs them, so that `--help` stays fast."""
    program = (
        "import sys, carrara.importing.importing, carrara.dataset.loader\n"
        "print([m for m in ('lance', 'grain', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
