"""A part of a data set is a data set; words that were set by hand stay set."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carrara.dataset import subset as room
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, derive, derived
from carrara.dataset.loader import Reading
from carrara.dataset.subset import subset
from carrara.dataset.word_changes import amend
from carrara.errors import UserError
from carrara.importing.importing import import_pictures


@pytest.fixture
def dataset(folder: Path, tmp_path: Path) -> Dataset:
    list(import_pictures(folder, tmp_path / "data"))
    return Dataset.open(tmp_path / "data")


def sizes(columns: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.array([[len(data), 1] for data in columns["image"]], np.float16)


def lengths(columns: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.array([[len(text or "")] for text in columns["caption"]], np.float32)


KEY = {"k": 1}


def test_rows_with_all_of_their_columns(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(derive(dataset, Derivation("size", KEY, sizes, batch=8)))
    list(
        derive(
            dataset,
            Derivation("length", KEY, lengths, batch=8, reading=Reading(("caption",))),
            rows=np.arange(3, 30),
        )
    )
    monkeypatch.setattr(room, "AT_A_TIME", 3000)  # several pieces
    rows = np.array([7, 3, 29, 0, 12])
    part = subset(dataset, rows, tmp_path / "part", why="those that I like")
    assert part.schema.equals(dataset.schema, check_metadata=True)
    assert part.take(range(5), part.columns) == dataset.take(rows, dataset.columns)
    assert derived(part, "size", KEY)
    assert derived(part, "length", KEY) is None  # one of the rows has none
    assert derived(part, "length", KEY, np.array([0, 1, 2, 4]))
    made = part.about["subset"]
    assert (made["of"], made["version"], made["why"]) == (
        str(dataset.path),
        dataset.version,
        "those that I like",
    )
    # It can be added to, and still knows where it is from.
    list(import_pictures(tmp_path / "source", tmp_path / "part"))
    part = Dataset.open(tmp_path / "part")
    assert len(part) == 30
    assert part.about["subset"] == made
    list(derive(part, Derivation("length", KEY, lengths, batch=8, reading=Reading(("caption",)))))
    assert derived(part, "length", KEY)


def test_where_it_is_from_is_known_from_anywhere(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    subset(Dataset.open(Path("data")), np.arange(3), Path("part"), why="a few")
    monkeypatch.chdir("/")
    assert Dataset.open(tmp_path / "part").about["subset"]["of"] == str((tmp_path / "data").resolve())
    assert capfd.readouterr() == ("", ""), "what the table notes for itself is no news to a user"


def test_nothing_is_left_by_halves(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no picture of .*data is left: label = 'x'"):
        subset(dataset, np.array([], np.int64), tmp_path / "part", why="label = 'x'")
    with pytest.raises(ValueError, match="twice"):
        subset(dataset, np.array([1, 1]), tmp_path / "part", why="")
    for taken in (dataset.path, tmp_path / "source"):
        with pytest.raises(UserError, match="is there already"):
            subset(dataset, np.array([1]), taken, why="")

    def broken(*_: Any) -> None:
        raise OSError("the disk is full")

    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.setattr(Dataset, "take_arrow", broken)
    with pytest.raises(UserError, match=r"cannot make .*part: .*disk is full$"):
        subset(dataset, np.array([1]), tmp_path / "part", why="")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_amended_words_outlive_the_next_import(dataset: Dataset, folder: Path, tmp_path: Path) -> None:
    for name, made_of in (("length", "caption"), ("size", "image")):
        function: Callable[..., Any] = lengths if made_of == "caption" else sizes
        list(derive(dataset, Derivation(name, KEY, function, batch=8, reading=Reading((made_of,)))))
    version = dataset.version
    old = Dataset.open(dataset.path, version=version)
    amend(dataset, {"caption_de": {4: "vier", 5: "fünf"}, "caption": {5: None}})
    amend(dataset, {"split": {4: "held_out"}, "flags": {9: "grey tiny"}})
    assert dataset.column("caption_de")[3:7] == [None, "vier", "fünf", None]
    assert dataset.column("caption")[4:7] == ["picture number 4", None, "picture number 6"]
    assert dataset.column("flags")[9] == "grey tiny"
    length = dataset.column(next(c for c in dataset.columns if c.startswith("length_")))
    assert [row for row, value in enumerate(length) if value is None] == [5]
    assert derived(dataset, "size", KEY)  # not made of words
    (folder / "x4.txt").write_text("four, by its source")
    (folder / "x5.txt").write_text("five, by its source")
    (folder / "x6.txt").write_text("six, by its source")
    list(import_pictures(folder, dataset.path))
    dataset.refresh()
    assert dataset.column("caption")[4:7] == ["four, by its source", None, "six, by its source"]
    assert dataset.column("caption_de")[3:7] == [None, "vier", "fünf", None]
    assert dataset.column("split")[4] == "held_out"
    assert old.column("caption")[5] == "picture number 5"


def test_what_cannot_be_amended(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="'image' is no column of words"):
        amend(dataset, {"image": {0: "x"}})
    with pytest.raises(UserError, match="no split is called 'tset'"):
        amend(dataset, {"split": {0: "tset"}})
    version = dataset.version
    amend(dataset, {"caption": {}})
    assert dataset.version == version
    with pytest.raises(UserError, match=r"version 1 of .* cannot be changed, only the newest can"):
        amend(Dataset.open(dataset.path, version=1), {"caption": {0: "x"}})
