"""A run whose recipe.toml is damaged goes on with the copy in its model; without one it says so in a line."""

import shutil
from itertools import islice
from pathlib import Path

import pytest

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.training.run_changes import recipe_file
from carrara.training.stages import train_autoencoder
from conftest import Here, Trained, run_out, small_autoencoder


def damage(file: Path, fault: str) -> None:
    """In one of the ways in which a file stops being what it was."""
    whole = file.read_bytes()
    file.unlink()
    if fault == "a bad byte":
        file.write_bytes(whole[:40] + b"\xff" + whole[41:])
    elif fault == "half":
        file.write_bytes(whole[: len(whole) // 2])
    elif fault == "whole lines":
        file.write_bytes(whole[: whole.index(b"[train]")])
    elif fault == "a list":
        file.write_bytes(
            whole[: whole.index(b"[train]")].replace(b"[losses]", b"[other]") + b"\ntrain = [1, 2]\n"
        )
    elif fault == "a number":
        file.write_bytes(b"train = 3\n")
    elif fault == "empty":
        file.write_bytes(b"")
    elif fault == "a folder":
        file.mkdir()
    elif fault == "a loop":
        file.symlink_to(file.name)


FAULTS = ["a bad byte", "half", "whole lines", "a list", "a number", "empty", "a folder", "a loop", "missing"]


@pytest.fixture(scope="module")
def stopped(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint after two steps of six."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    reports = train_autoencoder(small_autoencoder(), dataset, run)
    run_out(islice((r for r in reports if getattr(r, "losses", None)), 2))
    reports.close()  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_goes_on_with_the_copy(
    dataset: Dataset, stopped: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    damage(run / "recipe.toml", fault)
    reports = run_out(train_autoencoder(small_autoencoder(), dataset, run))
    assert reports[-1].step == 6
    told = capsys.readouterr().err
    assert told.startswith("note: ")
    assert told.endswith(f"; the recipe is read from {run / 'unfinished' / 'recipe.toml'}\n")
    assert len(told.splitlines()) == 1
    set_aside = f"{run / 'recipe.toml'} was damaged, and is recipe.toml.damaged now"
    assert (set_aside in [report.note for report in reports]) == (fault != "missing")
    assert (run / "recipe.toml").read_bytes() == (stopped / "recipe.toml").read_bytes()
    with pytest.raises(UserError, match=r"was begun with train\.lr = 0\.003"):
        run_out(train_autoencoder(small_autoencoder(lr=0.1), dataset, run))


def test_without_a_copy_it_is_said(dataset: Dataset, stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    for file in (run / "recipe.toml", run / "unfinished" / "recipe.toml"):
        damage(file, "half")
    with pytest.raises(
        UserError, match=r"recipe\.toml is not valid TOML: .*; put its recipe back from a copy, or"
    ):
        run_out(train_autoencoder(small_autoencoder(), dataset, run))
    shutil.rmtree(run / "checkpoints")  # no step was made, so nothing is lost
    *_, last = run_out(train_autoencoder(small_autoencoder(), dataset, run))
    assert last.step == 6
    assert (run / "recipe.toml").read_bytes() == (stopped / "recipe.toml").read_bytes()


@pytest.mark.parametrize("fault", ["half", "a list", "a folder", "missing"])
def test_what_only_reads_a_run_reads_the_copy(
    here: Here, trained: Trained, tmp_path: Path, fault: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.diffusion, run)
    damage(run / "recipe.toml", fault)
    made = here("average", run, "--out", tmp_path / "average")
    assert made.status == 0
    assert made.err.endswith(f"; the recipe is read from {run / 'model' / 'recipe.toml'}\n")
    shutil.rmtree(run / "model")
    if fault != "missing":
        assert str(run / "recipe.toml") in here("doctor", run).refusal


def test_a_recipe_is_no_more_damaged_than_its_copy(stopped: Path) -> None:
    assert recipe_file(stopped, Path.read_bytes) == stopped / "recipe.toml"
