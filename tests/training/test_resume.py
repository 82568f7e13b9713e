"""A training that was stopped and opened again ends with the same weights, bit for bit, as one that was not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from carrara.autoencoders.stored import load_autoencoder
from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.training import checkpoint
from carrara.training.loop import Report
from carrara.training.metrics_log import read_metrics
from carrara.training.recipe import LOG_EVERY
from carrara.training.stages import train_autoencoder, train_diffusion
from conftest import Trained, first_step, run_out, small_autoencoder, small_diffusion, some_steps, steps

STEPS = 12
Start = Callable[..., Iterator[Report]]


@pytest.fixture(params=["autoencoder", "diffusion"])
def start(request: pytest.FixtureRequest, dataset: Dataset) -> Start:
    """start(folder, **train) of one of the stages."""
    if request.param == "autoencoder":
        return lambda folder, budget=f"{STEPS}steps", **train: train_autoencoder(
            small_autoencoder(budget, **train), dataset, folder
        )
    trained: Trained = request.getfixturevalue("trained")
    autoencoder = load_autoencoder(trained.autoencoder / "model")
    return lambda folder, budget=f"{STEPS}steps", **train: train_diffusion(
        small_diffusion(budget, **train), dataset, autoencoder, folder
    )


def weights(run: Path) -> dict[str, bytes]:
    """The bytes of every weights file of the finished model."""
    found = {str(f.relative_to(run)): f.read_bytes() for f in sorted((run / "model").rglob("*.safetensors"))}
    assert found
    return found


def logged(run: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in ("rate", "spent")} for line in read_metrics(run)]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_anywhere_the_weights_are_the_same(
    start: Start, tmp_path: Path, optimizer: str, precision: str
) -> None:
    options = {"optimizer": optimizer, "precision": precision}
    whole = steps(start(tmp_path / "whole", **options))
    assert [report.step for report in whole] == list(range(1, STEPS + 1))
    reports: list[Report] = []
    for length in (1, 4, 0, 6):  # a stop straight after opening is one too
        part = start(tmp_path / "parts", **options)
        reports += some_steps(part, length)
        part.close()  # type: ignore[attr-defined]
    reports += steps(start(tmp_path / "parts", **options))
    assert [(r.step, r.seen, r.losses, r.lr) for r in reports] == [
        (r.step, r.seen, r.losses, r.lr) for r in whole
    ]
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


def test_steps_after_the_last_checkpoint_are_done_again(start: Start, tmp_path: Path) -> None:
    """As a kill leaves it: the log is ahead of the checkpoint."""
    run_out(start(tmp_path / "whole", budget="32steps"))
    part = start(tmp_path / "parts", budget="32steps")
    some_steps(part, 7)
    part.close()  # type: ignore[attr-defined]
    kept = checkpoint.newest(tmp_path / "parts" / "checkpoints")
    assert kept is not None
    assert kept.name == f"{7 * 4:012d}"
    part = start(tmp_path / "parts", budget="32steps")
    some_steps(part, 19)
    part.close()  # type: ignore[attr-defined]
    later = checkpoint.newest(tmp_path / "parts" / "checkpoints")
    assert later is not None
    (later / "state.json").unlink()
    later.rename(later.with_suffix(".part"))
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 30, "se')
    assert [line["step"] for line in read_metrics_leniently(tmp_path / "parts")] == [10, 20]
    assert first_step(start(tmp_path / "parts", budget="32steps")).step == 8
    run_out(start(tmp_path / "parts", budget="32steps"))
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert [line["step"] for line in logged(tmp_path / "parts") if "lr" in line] == [10, 20, 30]
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert not list((tmp_path / "parts" / "checkpoints").glob("*.part"))


def read_metrics_leniently(run: Path) -> list[dict[str, Any]]:
    import json

    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def test_a_finished_run_is_left_alone(start: Start, tmp_path: Path) -> None:
    run_out(start(tmp_path / "run"))
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")}
    assert run_out(start(tmp_path / "run")) == []
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")} == before


def test_killed_between_the_last_checkpoint_and_the_model(start: Start, tmp_path: Path) -> None:
    import shutil

    run_out(start(tmp_path / "run"))
    before = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    assert steps(start(tmp_path / "run")) == []
    assert weights(tmp_path / "run") == before


def test_another_seed_gives_other_weights(start: Start, tmp_path: Path) -> None:
    """What the tests above compare is not the same anyway."""
    run_out(start(tmp_path / "a"))
    run_out(start(tmp_path / "b", seed=1))
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert a.keys() == b.keys()
    assert all(a[name] != b[name] for name in a if not name.startswith("model/autoencoder/"))


def test_another_recipe_in_the_same_folder_is_refused(start: Start, tmp_path: Path) -> None:
    part = start(tmp_path / "run")
    first_step(part)
    part.close()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"was begun with train\.batch = 4, now it is 5"):
        first_step(start(tmp_path / "run", batch=5))


def test_other_pictures_in_the_same_folder_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    from carrara.importing.importing import import_pictures
    from conftest import write_pictures

    folder = write_pictures(tmp_path / "other", size=21)
    run_out(import_pictures(str(folder), tmp_path / "data"))
    part = train_autoencoder(small_autoencoder(), dataset, tmp_path / "run")
    first_step(part)
    part.close()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="other pictures"):
        first_step(train_autoencoder(small_autoencoder(), Dataset.open(tmp_path / "data"), tmp_path / "run"))


def test_a_folder_with_other_things_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        first_step(train_autoencoder(small_autoencoder(), dataset, tmp_path / "run"))
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_the_log_has_every_tenth_step() -> None:
    assert LOG_EVERY == 10
