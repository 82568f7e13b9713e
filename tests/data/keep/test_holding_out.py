"""What is alike is on one side; what is held out stays so; who trained on it is told."""

from pathlib import Path

import numpy as np
import pytest

from carrara.cleaning.duplicates import by_hash
from carrara.cleaning.split import apply, divide, names_by_column, names_by_likeness, with_groups
from carrara.cli.dedup import data_split
from carrara.dataset.dataset import Dataset
from carrara.dataset.word_changes import amend
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from data.keep.test_perceptual_hash import drawing
from glances import all_glanced


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Forty pictures, of which 20 to 39 are the first twenty again, larger."""
    source = tmp_path / "source"
    source.mkdir()
    for k in range(40):
        drawing(k % 20, (48, 32) if k < 20 else (96, 64)).save(source / f"{k:02}.png")
    list(import_pictures(source, tmp_path / "data", held_out=0))
    return Dataset.open(tmp_path / "data")


def test_look_alikes_are_on_one_side(dataset: Dataset) -> None:
    amend(
        dataset,
        {"group": {0: "series", 1: "series"}, "split": {3: "held_out", 8: "held_out", 28: "held_out"}},
    )
    names = names_by_likeness(dataset, by_hash(dataset, all_glanced(dataset)))
    assert names[0] == names[1] == names[20] == names[21]
    assert (names[2:20] == names[22:]).all()
    assert len(np.unique(names)) == 19
    division = divide(dataset, names, 0.2)
    assert (division.held_out[:20] == division.held_out[20:]).all()
    assert division.held_out.sum() == 8
    assert division.held_out[8], "what was held out as a whole stays"
    assert not division.held_out[3], "a group that was trained on in part comes last"
    assert (division.now_held, division.now_trained, division.largest) == (6, 1, 4)
    assert apply(dataset, division) == 7
    assert dataset.indices("held_out").tolist() == np.flatnonzero(division.held_out).tolist()
    assert apply(dataset, divide(dataset, names, 0.2)) == 0, "again, nothing moves"


def test_chance_decides_with_a_seed(dataset: Dataset) -> None:
    names = np.arange(40)
    first, second = (divide(dataset, names, 0.25, seed=seed).held_out for seed in (1, 2))
    assert first.sum() == second.sum() == 10
    assert (first != second).any()
    assert (first == divide(dataset, names, 0.25, seed=1).held_out).all()
    assert divide(dataset, names, 0).held_out.sum() == 0
    assert divide(dataset, np.repeat([0, 39], [39, 1]), 0.3).held_out.tolist() == [False] * 39 + [True]


def test_who_trained_on_them_is_told(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    dataset.table.tags.create("run-a", dataset.version)
    data_split(dataset.path, held_out=0.1, dry_run=True)
    said = capsys.readouterr().out
    assert "4 of 40 pictures (10.0%) would be held out: 4 of 40 groups, by group" in said
    dataset.refresh()
    assert len(dataset.indices("held_out")) == 0
    data_split(dataset.path, held_out=0.1, by="near")
    said = capsys.readouterr().out
    assert "2 of 20 groups, by near" in said
    assert "warning: run-a was trained on 4 of the pictures now held out" in said
    dataset.refresh()
    held = dataset.indices("held_out")
    assert (held[:2] + 20).tolist() == held[2:].tolist()


def test_groups_by_a_column(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    amend(dataset, {"label": {0: "a", 5: "a", 6: "b"}})
    names = names_by_column(dataset, "label")
    assert names[[0, 5, 6, 7]].tolist() == [0, 0, 6, 7]
    data_split(dataset.path, held_out=0.5, by="label", dry_run=True)
    assert "of 39 groups" in capsys.readouterr().out
    amend(dataset, {"group": {5: "series", 7: "series"}})
    names = with_groups(dataset, names_by_column(dataset, "label"))
    assert names[[0, 5, 6, 7]].tolist() == [0, 0, 6, 0], "what belongs together stays so"
    data_split(dataset.path, held_out=0.5, by="label", dry_run=True)
    assert "of 38 groups" in capsys.readouterr().out
    with pytest.raises(UserError, match="did you mean 'label'"):
        names_by_column(dataset, "lable")
    with pytest.raises(UserError, match="cannot be grouped by 'image'"):
        names_by_column(dataset, "image")
    with pytest.raises(UserError, match="--within is for --by near"):
        data_split(dataset.path, within=3.0)
