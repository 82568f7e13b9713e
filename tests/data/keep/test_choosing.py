"""Rows by a condition, by chance, or evenly; mistakes in a condition are told in one line."""

import json
from collections import Counter
from pathlib import Path

import pytest

from carrara.cli.clean import data_filter
from carrara.dataset.dataset import Dataset
from carrara.dataset.subset import choose
from carrara.dataset.word_changes import amend
from carrara.errors import UserError
from carrara.importing.importing import import_pictures


@pytest.fixture
def dataset(folder: Path, tmp_path: Path) -> Dataset:
    list(import_pictures(folder, tmp_path / "data", held_out=0))
    found = Dataset.open(tmp_path / "data")
    amend(found, {"label": {k: "cat" if k < 18 else "dog" for k in range(25)}})
    return found


def test_conditions(dataset: Dataset) -> None:
    assert choose(dataset, "label = 'dog' AND caption LIKE '%number%'").tolist() == list(range(18, 25))
    assert choose(dataset, "label IS NULL", sample=9).tolist() == list(range(25, 30))
    few = choose(dataset, "label = 'cat'", sample=5, seed=1)
    assert len(few) == 5
    assert few.max() < 18
    assert few.tolist() == sorted(few.tolist())
    assert few.tolist() != choose(dataset, "label = 'cat'", sample=5, seed=2).tolist()


def test_evenly(dataset: Dataset) -> None:
    labels = dataset.column("label")
    assert Counter(labels[row] for row in choose(dataset, balance="label")) == {"cat": 7, "dog": 7}
    assert Counter(labels[row] for row in choose(dataset, balance="label", at_most=9)) == {"cat": 9, "dog": 7}


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("lable = 'cat'", "a column 'lable' that .* does not have; did you mean 'label'"),
        ("label = cat", "a column 'cat' that .* does not have; a text stands in single quotes"),
        ("width >", "cannot be read: Expected: an expression, found: its end$"),
        ("width > 'wide'", "cannot be read: Received literal.*'Int32'$"),
        ("coalesce(label, 1) = 'cat'", r"cannot be read: (?!.*\.rs:).*Cast error"),
        ("nothing(width)", "cannot be read: it calls 'nothing'"),
        (" ", "the condition is empty"),
    ],
)
def test_mistakes_in_a_condition(dataset: Dataset, where: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose(dataset, where)
    with pytest.raises(UserError, match="did you mean 'label'"):
        choose(dataset, balance="lable")
    with pytest.raises(UserError, match="no picture has a licence"):
        choose(dataset, balance="licence")


def test_the_command(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_filter(dataset.path, where="label = 'dog'", dry_run=True)
    said = capsys.readouterr().out
    assert "7 of 30 pictures" in said
    assert "18: " in said
    data_filter(dataset.path, tmp_path / "dogs", where="label = 'dog'", as_json=True)
    assert json.loads(capsys.readouterr().out)["chosen"] == 7
    dogs = Dataset.open(tmp_path / "dogs")
    assert dogs.column("label") == ["dog"] * 7
    assert dogs.about["subset"]["why"] == "where label = 'dog'"
    with pytest.raises(UserError, match=r"no picture of .* is left"):
        data_filter(dataset.path, tmp_path / "birds", where="label = 'bird'")
    assert not (tmp_path / "birds").exists()
    for options, words in [
        ({}, "nothing to filter by"),
        ({"sample": 3}, "give the new data set a name"),
        ({"sample": 3, "at_most": 3, "dry_run": True}, "--at-most is for --balance"),
    ]:
        with pytest.raises(UserError, match=words):
            data_filter(dataset.path, **options)  # type: ignore[arg-type]
