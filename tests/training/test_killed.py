"""kill -9 at random moments, then the same command again: the weights of an undisturbed run; Ctrl-C is polite."""

import json
import random
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from carrara.autoencoders import vq
from carrara.dataset.dataset import Dataset
from carrara.training.metrics_log import read_metrics
from carrara.training.recipe import DiscriminatorConfig
from conftest import Command, Trained, recipe_file, small_autoencoder, small_diffusion

STEPS, BATCH = 120, 4
Arguments = Callable[[str], list[object]]


@pytest.fixture(params=["autoencoder", "codes and a discriminator", "diffusion"])
def arguments(request: pytest.FixtureRequest, tmp_path: Path, dataset: Dataset) -> Arguments:
    """arguments(run) of `carrara train` for one of the stages; a checkpoint after nearly every step."""
    options = {"save_every": 0.01, "precision": "bf16"}
    if request.param == "autoencoder":
        file = recipe_file(small_autoencoder(**options), tmp_path / "mine.toml")
        return lambda run: ["train", file, dataset.path, "--out", run, "--budget", f"{STEPS}steps"]
    if request.param == "codes and a discriminator":
        plain = small_autoencoder(**options)
        network = vq.Config(channels=8, multipliers=(1, 2), blocks=1, middle_attention=False, codes=64)
        opponent = DiscriminatorConfig(layers=1, channels=8, latest=0.3, settled=0.0)
        chosen = plain.model_copy(update={"autoencoder": network, "discriminator": opponent})
        file = recipe_file(chosen, tmp_path / "mine.toml")
        return lambda run: ["train", file, dataset.path, "--out", run, "--budget", f"{STEPS}steps"]
    trained: Trained = request.getfixturevalue("trained")
    file = recipe_file(small_diffusion(**options), tmp_path / "mine.toml")
    more = ["--autoencoder", trained.autoencoder]
    return lambda run: ["train", file, dataset.path, "--out", run, "--budget", f"{STEPS}steps", *more]


def weights(run: Path) -> dict[str, bytes]:
    found = {str(f.relative_to(run)): f.read_bytes() for f in sorted((run / "model").rglob("*.safetensors"))}
    assert found
    return found


def logged(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("rate", "spent")} for line in read_metrics(run)]


@pytest.mark.slow
def test_killed_at_random_moments_the_weights_are_the_same(
    carrara: Command, tmp_path: Path, arguments: Arguments, kill_within: Callable[..., None]
) -> None:
    whole = carrara(*arguments("whole"))
    assert whole.status == 0, whole.err
    draw = random.Random(7)
    moments = sorted(draw.sample(range(1, STEPS - 20), 3))
    for moment in moments:
        kill_within(carrara.start(*arguments("killed")), tmp_path / "killed", moment * BATCH, draw)
        assert not (tmp_path / "killed" / "model").exists()
    again = carrara(*arguments("killed"))
    assert again.status == 0, again.err
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    steps = [
        line for line in read_metrics(tmp_path / "killed") if "spent" in line
    ]  # the last look is about none
    assert [line["step"] for line in steps] == list(range(10, STEPS + 1, 10))
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
    spent = [line["spent"] for line in steps]
    assert all(a < b for a, b in pairwise(spent))
    left = {p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()} - {"best", "plateau"}
    assert all(name.isdigit() for name in left), left
    assert len(left) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_saves_says_so_and_continues(
    carrara: Command, tmp_path: Path, dataset: Dataset, number: signal.Signals
) -> None:
    file = recipe_file(small_autoencoder(save_every=1000.0), tmp_path / "mine.toml")
    arguments = ["train", file, dataset.path, "--out", "run", "--budget", "4000steps"]
    process = carrara.start(*arguments)
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.is_file() and log.stat().st_size):
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err == "carrara: stopped and saved in run; the same command again continues\n"
    (state,) = (tmp_path / "run" / "checkpoints").iterdir()
    numbers = json.loads((state / "state.json").read_text())
    steps = [line["step"] for line in read_metrics(tmp_path / "run")]
    assert steps == list(range(10, numbers["step"] + 1, 10))
    again = carrara.start(*arguments)
    while again.poll() is None and len(read_metrics(tmp_path / "run")) < len(steps) + 2:
        time.sleep(0.01)
    again.send_signal(number)
    again.communicate()
    assert again.returncode == 130
    assert [line["step"] for line in read_metrics(tmp_path / "run")][: len(steps)] == steps
    later = max((tmp_path / "run" / "checkpoints").iterdir())
    assert json.loads((later / "state.json").read_text())["step"] > numbers["step"]
