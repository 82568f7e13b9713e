"""What goes wrong in a training ends in one line, and the last good checkpoint stays."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.training import checkpoint
from carrara.training.autoencoder_task import AutoencoderTask
from carrara.training.metrics_log import read_stopped
from carrara.training.stages import train_autoencoder
from conftest import first_step, run_out, small_autoencoder, some_steps


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of eight megabytes; needs the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a small disk here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """A file that takes all but ``leave`` bytes."""
    about = os.statvfs(disk)
    file = disk / "something-else"
    file.write_bytes(b"\1" * (about.f_bavail * about.f_frsize - leave))
    return file


def test_a_checkpoint_is_whole_and_only_two_are_kept(tmp_path: Path) -> None:
    for seen in (8, 16, 999_999_999_999):
        checkpoint.save(tmp_path, seen, {"a": torch.full((3,), float(seen))}, {"step": seen // 8})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["000000000016", "999999999999"]
    last = checkpoint.newest(tmp_path)
    assert last is not None
    tensors, numbers = checkpoint.load(last)
    assert torch.equal(tensors["a"], torch.full((3,), 999_999_999_999.0))
    assert numbers == {"seen": 999_999_999_999, "step": 124_999_999_999}


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "never") is None
    good = checkpoint.save(tmp_path, 8, {"a": torch.zeros(3)}, {})
    (tmp_path / "000000000016.part").mkdir()
    assert checkpoint.newest(tmp_path) == good
    checkpoint.save(tmp_path, 24, {"a": torch.zeros(3)}, {})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["000000000008", "000000000024"]


def test_the_same_checkpoint_again_is_left_as_it_is(tmp_path: Path) -> None:
    """As a stop straight after a save asks for it; never is there a moment without it."""
    first = checkpoint.save(tmp_path, 8, {"a": torch.ones(3)}, {})
    before = {f: f.stat().st_mtime_ns for f in first.iterdir()}
    assert checkpoint.save(tmp_path, 8, {"a": torch.ones(3)}, {}) == first
    assert {f: f.stat().st_mtime_ns for f in first.iterdir()} == before
    assert list(tmp_path.iterdir()) == [first]


def test_a_full_disk_while_a_checkpoint_is_written(tiny_disk: Path) -> None:
    good = checkpoint.save(tiny_disk / "c", 8, {"a": torch.ones(1000)}, {})
    with pytest.raises(UserError, match="No space left on device"):
        checkpoint.save(tiny_disk / "c", 16, {"a": torch.ones(3_000_000)}, {})
    assert [p.name for p in (tiny_disk / "c").iterdir()] == [good.name]
    assert checkpoint.load(good)[0]["a"].sum() == 1000


@pytest.mark.parametrize("leave", [0, 3000, 40_000])
def test_a_disk_that_fills_up_while_training(
    dataset: Dataset, tiny_disk: Path, tmp_path: Path, leave: int
) -> None:
    """Whether the log or a checkpoint meets the end first: one line, and the run continues once there is room."""
    recipe = small_autoencoder("24steps", save_every=1e-9)
    run_out(train_autoencoder(recipe, dataset, tmp_path / "whole"))
    run = tiny_disk / "run"
    reports = train_autoencoder(recipe, dataset, run)
    some_steps(reports, 5)
    other = fill(tiny_disk, leave=leave)
    with pytest.raises(
        UserError, match=r"No space left on device; the last good checkpoint is .*/0000"
    ) as told:
        run_out(reports)
    assert "\n" not in str(told.value)
    assert (newest := checkpoint.newest(run / "checkpoints")) is not None
    assert str(told.value).endswith(str(newest))
    assert not list((run / "checkpoints").glob("*.part"))
    assert not (run / "model").exists()
    other.unlink()
    run_out(train_autoencoder(recipe, dataset, run))
    for file in ("model/weights.safetensors",):
        assert (run / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_full_disk_by_the_system_s_word(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where no disk can be mounted: safetensors wraps the error into its own."""
    import safetensors.torch
    from safetensors import SafetensorError

    reports = train_autoencoder(small_autoencoder(save_every=1e-9), dataset, tmp_path / "run")
    some_steps(reports, 2)

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(
        UserError, match=r"No space left on device; the last good checkpoint is .*/000000000008$"
    ):
        run_out(reports)
    left = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["000000000004", "000000000008"]


@pytest.mark.parametrize("fault", ["cut", "swapped", "no weights", "no numbers", "other numbers"])
def test_a_damaged_checkpoint_is_named(dataset: Dataset, tmp_path: Path, fault: str) -> None:
    reports = train_autoencoder(small_autoencoder(), dataset, tmp_path / "run")
    some_steps(reports, 2)
    reports.close()  # type: ignore[attr-defined]
    last = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert last is not None
    state = last / "state.safetensors"
    if fault == "cut":
        state.write_bytes(state.read_bytes()[:-100])
    elif fault == "swapped":
        state.write_bytes(b"\xff" * 1000)
    elif fault == "no weights":
        state.unlink()
    elif fault == "no numbers":
        (last / "state.json").unlink()
    else:
        (last / "state.json").write_text('{"seen": 8}')
    with pytest.raises(UserError, match=last.name) as told:
        run_out(train_autoencoder(small_autoencoder(), dataset, tmp_path / "run"))
    assert "\n" not in str(told.value)


def test_a_loss_that_is_no_number_stops_before_the_weights_are_touched(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = small_autoencoder(save_every=1e-9, precision="fp32")  # so that no trial asks for losses before
    whole = AutoencoderTask.losses
    calls = []

    def sick(self: AutoencoderTask, update: str, batch: object) -> object:
        calls.append(update)
        terms = dict(whole(self, update, batch))  # type: ignore[arg-type]
        if len(calls) == 4:
            terms["edges"] = terms["edges"] * float("nan")
        return terms

    monkeypatch.setattr(AutoencoderTask, "losses", sick)
    with pytest.raises(UserError) as told:
        run_out(train_autoencoder(chosen, dataset, tmp_path / "run"))
    last = tmp_path / "run" / "checkpoints" / "000000000012"
    assert str(told.value) == (
        f"the loss edges is no longer finite at 12 pictures seen; the last good checkpoint is {last}"
    )
    tensors, numbers = checkpoint.load(last)
    assert numbers["step"] == 3
    assert all(value.isfinite().all() for value in tensors.values())
    assert not (tmp_path / "run" / "model").exists()
    assert read_stopped(tmp_path / "run") == "the loss edges is no longer finite at 12 pictures seen"
    run_out(train_autoencoder(chosen, dataset, tmp_path / "run"))  # a cosmic ray
    assert read_stopped(tmp_path / "run") == ""
    assert (tmp_path / "run" / "model" / "weights.safetensors").is_file()


def test_a_recipe_found_wanting_leaves_no_folder(dataset: Dataset, tmp_path: Path) -> None:
    recipe = small_autoencoder().model_copy(update={"size": 17})
    with pytest.raises(UserError, match="multiple of 2"):
        first_step(train_autoencoder(recipe, dataset, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_gradient_that_is_no_number_stops_before_the_weights_are_touched(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss may look well: the square root of nothing."""
    whole = AutoencoderTask.losses
    calls = []

    def sick(self: AutoencoderTask, update: str, batch: object) -> object:
        calls.append(update)
        terms = dict(whole(self, update, batch))  # type: ignore[arg-type]
        if len(calls) == 3:
            terms["edges"] = terms["edges"] + (terms["edges"] - terms["edges"]).abs().sqrt()
        return terms

    monkeypatch.setattr(AutoencoderTask, "losses", sick)
    with pytest.raises(
        UserError, match="the gradient of autoencoder is no longer finite at 8 pictures seen"
    ) as told:
        run_out(train_autoencoder(small_autoencoder(save_every=1e-9), dataset, tmp_path / "run"))
    last = tmp_path / "run" / "checkpoints" / "000000000008"
    assert str(told.value).endswith(f"the last good checkpoint is {last}")
    assert all(value.isfinite().all() for value in checkpoint.load(last)[0].values())


def test_a_file_in_the_place_of_the_run(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        first_step(train_autoencoder(small_autoencoder(), dataset, tmp_path / "run"))
