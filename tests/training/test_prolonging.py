"""A run goes on with a larger budget from before its learning rate fell; what touches no weights may change."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import Toy, Training

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.training import checkpoint
from carrara.training.metrics_log import read_metrics
from carrara.training.optim import falls_from, lr_share
from carrara.training.recipe import TrainConfig
from carrara.training.stages import train_autoencoder
from conftest import first_step, run_out, small_autoencoder, some_steps, steps


def longer(folder: Path, **train: Any) -> Training:
    return Training(folder, lambda: Toy(0.3), **{"budget": "20steps", **train})


def assert_same(one: Training, two: Training) -> None:
    assert all(torch.equal(value, two.weights()[name]) for name, value in one.weights().items())


@pytest.mark.parametrize("stop", [None, 9, 6, 3])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_prolonged_it_is_the_run_that_was_longer_from_the_start(
    tmp_path: Path, stop: int | None, optimizer: str
) -> None:
    """Bit for bit, whether it was finished, stopped in its fall or stopped before."""
    options: dict[str, Any] = {"save_every": 1e-9, "keep": 1, "optimizer": optimizer, "posthoc": (0.05, 0.1)}
    whole = longer(tmp_path / "whole", **options)
    whole.run()
    longer(tmp_path / "run", budget="10steps", **options).run(stop)
    again = longer(tmp_path / "run", **options)
    first, *rest = again.run()
    begins = min(stop or 10, 6)
    assert first.note.startswith(f"the budget is now 20steps instead of 10steps: going on from {8 * begins}")
    assert first.note.endswith("before the learning rate fell") == (begins == 6 and stop != 6)
    assert [report.step for report in rest if getattr(report, "losses", None)] == list(range(begins + 1, 21))
    assert_same(again, whole)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [10, 20]
    assert 'budget = "20steps"' in (tmp_path / "run" / "recipe.toml").read_text()
    assert again.run() == []
    further = longer(tmp_path / "run", budget="30steps", **options)
    assert first_step(further.run()).step == 13, "its own plateau was kept"


@pytest.mark.parametrize("damaged", ["hashes.json", "state.json"])
def test_where_the_newest_cannot_be_read_the_plateau_is_taken(tmp_path: Path, damaged: str) -> None:
    whole = longer(tmp_path / "whole", keep=1)
    whole.run()
    longer(tmp_path / "run", budget="10steps", keep=1).run()
    newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    (newest / damaged).write_text("[]")
    again = longer(tmp_path / "run", keep=1)
    assert again.run()[0].note.endswith("before the learning rate fell")
    assert_same(again, whole)


@pytest.fixture(scope="module")
def runs(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished one, "short", and "long" with twice its steps."""
    folder = tmp_path_factory.mktemp("runs")
    run_out(train_autoencoder(small_autoencoder("4steps"), dataset, folder / "short"))
    run_out(train_autoencoder(small_autoencoder("8steps"), dataset, folder / "long"))
    return folder


@pytest.mark.parametrize("moment", ["copied", "removed", "renamed"])
def test_killed_while_it_is_prolonged(
    dataset: Dataset, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    shutil.copytree(runs / "short", tmp_path / "run")

    def killed(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    where = {"copied": "shutil.rmtree", "removed": "pathlib.Path.rename", "renamed": "os.replace"}[moment]
    reports = train_autoencoder(small_autoencoder("8steps"), dataset, tmp_path / "run")
    monkeypatch.setattr(where, killed)
    with pytest.raises(KeyboardInterrupt):
        first_step(reports)
    monkeypatch.undo()
    made = steps(train_autoencoder(small_autoencoder("8steps"), dataset, tmp_path / "run"))
    assert made[-1].step == 8
    files = [run / "model" / "weights.safetensors" for run in (tmp_path / "run", runs / "long")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_shorter_budget_than_what_is_done_is_refused(tmp_path: Path) -> None:
    longer(tmp_path / "run", save_every=1e-9).run(9)
    with pytest.raises(
        UserError, match=r"trained for 9 steps of a budget of 20steps .* now 9steps; give a larger"
    ):
        longer(tmp_path / "run", budget="9steps", save_every=1e-9).run()
    with pytest.raises(UserError, match=r"trained for \d+ s of a budget of 20steps already, .* now 0\.001s"):
        longer(tmp_path / "run", budget="0.001s", save_every=1e-9).run()
    assert 'budget = "20steps"' in (tmp_path / "run" / "recipe.toml").read_text()
    assert steps(longer(tmp_path / "run", budget="11steps").run())[-1].step == 11


def test_a_finished_model_is_not_trained_for_less(dataset: Dataset, tmp_path: Path) -> None:
    run_out(train_autoencoder(small_autoencoder("0.5s"), dataset, tmp_path / "run"))
    for budget, wanted in (("0.49s", False), ("0.5sec", None), ("0.6s", True)):
        reports = train_autoencoder(small_autoencoder(budget), dataset, tmp_path / "run")
        if wanted is False:
            with pytest.raises(
                UserError, match=r"of a budget of 0\.5s already, and the budget is now 0\.49s"
            ):
                first_step(reports)
        elif wanted is None:
            assert run_out(reports) == []
        else:
            assert any("now 0.6s instead of 0.5s" in report.note for report in reports)


def test_a_course_without_a_plateau_says_that_the_rate_rises_again(tmp_path: Path) -> None:
    longer(tmp_path / "run", budget="10steps", lr_schedule="cosine").run()
    first, second, *_ = longer(tmp_path / "run", lr_schedule="cosine").run()
    assert (
        "going on from 80 pictures seen, where the learning rate, which had fallen, rises again" in first.note
    )
    assert second.step == 11


@pytest.mark.parametrize(("name", "falls"), [("wsd", 0.6), ("cosine", 0.0), ("constant", 1.0)])
def test_until_it_falls_the_rate_is_at_its_highest(name: str, falls: float) -> None:
    config = TrainConfig(lr_schedule=name, cooldown=0.4, warmup=0)
    assert falls_from(config) == pytest.approx(falls)
    assert lr_share(config, used=falls_from(config), step=0) == pytest.approx(1)
    assert lr_share(config, used=falls + 0.1, step=0) < 1 or falls == 1


# --- settings ---

FREE = [{"save_every": 7.0}, {"keep": 5}, {"snapshots": 9}]


@pytest.mark.parametrize("change", FREE, ids=[next(iter(c)) for c in FREE])
def test_what_touches_no_weights_may_change(tmp_path: Path, change: dict[str, Any]) -> None:
    whole = longer(tmp_path / "whole")
    whole.run()
    longer(tmp_path / "run", save_every=1e-9).run(9)
    again = longer(tmp_path / "run", **change)
    assert first_step(again.run()).step == 10
    assert_same(again, whole)
    (key, value) = next(iter(change.items()))
    assert f"{key} = {value}\n" in (tmp_path / "run" / "recipe.toml").read_text()


@pytest.mark.parametrize(
    ("change", "key", "advice"),
    [
        (
            {"train": TrainConfig(budget="6steps", batch=5, warmup=2)},
            "train.batch",
            "--start {run} --out NEW",
        ),
        ({"flip": False}, "flip", "--start {run} --out NEW"),
        ({"size": 32}, "size", "give another folder with --out"),
    ],
)
def test_the_refusal_of_others_says_what_to_do(
    dataset: Dataset, tmp_path: Path, change: dict[str, Any], key: str, advice: str
) -> None:
    run = tmp_path / "run"
    other = small_autoencoder().model_copy(update=change)
    reports = train_autoencoder(small_autoencoder(), dataset, run)
    some_steps(reports, 2)
    reports.close()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=rf"was begun with {key} = ") as told:
        first_step(train_autoencoder(other, dataset, run))
    assert str(told.value).endswith(advice.format(run=run))
    assert "continue with the former, or " in str(told.value)


@pytest.mark.parametrize("change", [{"flip": False}, {"size": 32}])
def test_a_run_without_a_step_may_change_anything(
    dataset: Dataset, tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill before the first checkpoint: only the recipe and half a log are there."""
    run, other = tmp_path / "run", small_autoencoder().model_copy(update=change)
    run_out(train_autoencoder(other, dataset, tmp_path / "fresh"))
    reports = train_autoencoder(small_autoencoder("30steps"), dataset, run)
    some_steps(reports, 12)
    monkeypatch.setattr("carrara.training.checkpoint.TrainingState.save", lambda *_, **__: run)
    reports.close()  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert read_metrics(run)
    assert not checkpoint.all_of(run / "checkpoints")
    run_out(train_autoencoder(other, dataset, run))
    files = [folder / "model" / "weights.safetensors" for folder in (run, tmp_path / "fresh")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not read_metrics(run)
    assert json.loads((run / "run.json").read_text())["data"] == str(dataset.path)
