"""Averages of several lengths at once, and of any length afterwards: against ones that were tracked all along."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from toy import Toy, Training, batches, config, state_of

from carrara.config import to_toml
from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.generation.model import load_model
from carrara.training import checkpoint
from carrara.training.ema import Ema, power_of
from carrara.training.loop import train
from carrara.training.post_hoc_averages import Snapshots, fit, rebuild, snapshots
from carrara.training.recipe import AutoencoderRecipe, DiscriminatorConfig, TrainConfig, ValidationConfig
from carrara.training.stages import train_diffusion
from conftest import Here, Trained, run_out, small_diffusion, some_steps

LENGTHS = (0.05, 0.1)


def profile(step: int, length: float, until: int) -> Tensor:
    """What an average after ``step`` steps owes to each of ``until`` steps."""
    edges = torch.arange(until + 1, dtype=torch.float64).clamp(max=step) / step
    return (edges ** (power_of(length) + 1)).diff()


# --- several at once ---


def test_several_lengths_are_kept_and_taken_up(tmp_path: Path) -> None:
    """Each is what it would be alone; after a kill all go on as they were."""
    many: dict[str, Any] = {"ema": 0.05, "ema_lengths": (0.1, 0.2), "save_every": 1e-9}
    whole = Training(tmp_path / "whole", **many)
    whole.run()
    killed = Training(tmp_path / "killed", **many)
    killed.run(5)
    killed.run(4)
    killed.run()
    for length in (0.05, 0.1, 0.2):
        alone = Training(tmp_path / f"alone{length}", ema=length)
        alone.run()
        for name, value in alone.state.averages["m"].average.items():
            assert torch.equal(whole.state.averages_of(length)["m"].average[name], value)
            assert torch.equal(killed.state.averages_of(length)["m"].average[name], value)
    a, b = (whole.state.averages_of(length)["m"].average["conv_in.weight"] for length in (0.05, 0.2))
    assert not torch.equal(a, b)
    with pytest.raises(KeyError):
        whole.state.averages_of(0.15)


def test_frozen_parameters_have_no_average() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert list(Ema(module).average) == ["weight"]
    Ema(module).update(module, 1)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"posthoc": (0.05,)}, "posthoc needs two lengths"),
        ({"posthoc": (0.05, 0.05)}, "a length comes twice"),
        ({"ema_lengths": (0.3,)}, "less than 0.25"),
    ],
)
def test_lengths_that_cannot_be(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TrainConfig(**values)
    if told.startswith("posthoc"):
        with pytest.raises(ValidationError, match="a discriminator may be undone"):
            AutoencoderRecipe(discriminator=DiscriminatorConfig(), train=TrainConfig(posthoc=LENGTHS))


# --- any length afterwards ---


@pytest.mark.parametrize("length", [0.05, 0.1])
def test_a_stored_length_is_given_back(length: float) -> None:
    stored = [(step, own) for step in range(40, 401, 40) for own in LENGTHS]
    found = fit(stored, 400, length)
    expected = torch.tensor([float(pair == (400, length)) for pair in stored], dtype=torch.float64)
    torch.testing.assert_close(found.shares, expected, rtol=0, atol=1e-6)
    assert found.error < 1e-6


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.2])
def test_profiles_come_closer_with_more_snapshots(length: float) -> None:
    """The error that is told is the true one, and it falls; the weights' common part is kept to the last digit."""
    steps, errors = 2000, []
    for count in (4, 8, 16, 32):
        stored = [(steps * k // count, own) for k in range(1, count + 1) for own in LENGTHS]
        found = fit(stored, steps, length)
        made = sum(s * profile(step, own, steps) for s, (step, own) in zip(found.shares, stored, strict=True))
        goal = profile(steps, length, steps)
        assert found.error == pytest.approx(float((made - goal).norm() / goal.norm()), rel=0.05, abs=1e-3)
        assert float(found.shares.sum()) == pytest.approx(1, abs=1e-12)
        errors.append(found.error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.15 * errors[0]


def test_averages_made_afterwards_are_those_that_were_tracked(tmp_path: Path) -> None:
    """On a training that moves: the made average is far nearer to the tracked one than any stored one is."""
    goals = (0.07, 0.13)
    state = state_of(task := Toy(), config(budget="240steps", lr=0.02, ema_lengths=goals, posthoc=LENGTHS))
    errors: dict[float, list[float]] = {goal: [] for goal in goals}
    kept = {count: Snapshots(tmp_path / f"{count}", state) for count in (4, 8, 16)}
    for count, each in kept.items():
        each._count = count
    for _ in train(task, batches(0), state):
        for each in kept.values():
            each.after(state)

    def flat(tensors: Any) -> Tensor:
        return torch.cat([tensors[name].flatten() for name, _ in task.modules["m"].named_parameters()])

    for goal in goals:
        tracked = flat(state.averages_of(goal)["m"].average)
        stored = min(float((flat(state.averages_of(own)["m"].average) - tracked).norm()) for own in LENGTHS)
        for count in kept:
            found = snapshots(tmp_path / f"{count}")
            assert len(found) == count
            made, _ = rebuild(found, goal)
            made = {name.removeprefix("m."): value for name, value in made.items()}
            errors[goal].append(float((flat(made) - tracked).norm()) / stored)
        assert errors[goal] == sorted(errors[goal], reverse=True)
        assert errors[goal][-1] < 0.05
    exact, _ = rebuild(snapshots(tmp_path / "16"), 0.1)
    for name, value in state.averages_of(0.1)["m"].average.items():
        torch.testing.assert_close(exact[f"m.{name}"], value, rtol=1e-3, atol=1e-6)  # float16


def test_a_resumed_run_has_the_same_snapshots(tmp_path: Path) -> None:
    """Also those that a kill undid, and after a stop that comes early one more."""
    options: dict[str, Any] = {"budget": "20steps", "posthoc": LENGTHS, "snapshots": 4}
    Training(tmp_path / "whole", **options).run()
    killed = Training(tmp_path / "killed", **options)
    killed.run(11)  # never saved, but two snapshots are there
    assert [s.step for s in snapshots(tmp_path / "killed" / "averages")] == [5, 10]
    next(iter(opened := killed.open()))
    assert snapshots(tmp_path / "killed" / "averages") == []
    opened.close()
    killed.run()
    found = [snapshots(tmp_path / name / "averages") for name in ("whole", "killed")]
    assert [s.step for s in found[0]] == [5, 10, 15, 20]
    for a, b in zip(*found, strict=True):
        assert (a.path / "0.05.safetensors").read_bytes() == (b.path / "0.05.safetensors").read_bytes()
        assert a[1:] == b[1:]
    early = Training(
        tmp_path / "early", lambda: Toy(over=lambda step: "enough" if step == 13 else ""), **options
    )
    early.run()
    assert [s.step for s in snapshots(tmp_path / "early" / "averages")] == [5, 10, 13]


def test_weights_beyond_float16_are_kept_as_they_are(tmp_path: Path) -> None:
    state = state_of(Toy(), config(posthoc=LENGTHS))
    state.step = 1
    for length in LENGTHS:
        state.averages_of(length)["m"].average["conv_in.bias"].fill_(1e6)
    Snapshots(tmp_path, state).store(state)
    made, _ = rebuild(snapshots(tmp_path), 0.05)
    assert made["m.conv_in.bias"].tolist() == pytest.approx([1e6] * 8)


# --- the command ---


def test_a_model_out_of_a_run_that_goes_on_and_of_one_that_ended(
    trained: Trained, dataset: Dataset, tmp_path: Path, here: Here
) -> None:
    from carrara.autoencoders.stored import load_autoencoder

    autoencoder = load_autoencoder(trained.autoencoder / "model")
    recipe = small_diffusion("20steps", posthoc=LENGTHS, snapshots=10, lr=0.02).model_copy(
        update={"validation": ValidationConfig(looks=2, pictures=4, samples=0)}
    )
    run = tmp_path / "run"
    reports = train_diffusion(recipe, dataset, autoencoder, run)
    some_steps(reports, 13)
    assert "has no whole checkpoint yet" in here("average", "run", "--out", "now").refusal
    reports.close()  # type: ignore[attr-defined]
    told = here("average", "run", "--out", "now")
    assert told.out.startswith("now: the average of length 0.05 after 52 pictures (kept while training")
    assert load_model(tmp_path / "now").passport["steps"] == 13
    kept, _ = checkpoint.load(run / "checkpoints" / f"{52:012d}")
    now = load_model(tmp_path / "now").network.state_dict()
    assert all(torch.equal(v, kept[f"average.denoiser.network.{k}"]) for k, v in now.items())
    told = here("average", "run", "--length", "0.08", "--out", "then")
    assert told.out.startswith(
        "then: the average of length 0.08 after 48 pictures (made from 6 snapshots, to within "
    )
    assert (
        "give the length 0.01 only to within"
        in here("average", "run", "--length", "0.01", "--out", "x").refusal
    )
    assert "exists already" in here("average", "run", "--out", "then").refusal
    best = checkpoint.newest(run / "checkpoints" / "best")
    assert best is not None
    told = here("average", "run", "--best", "--out", "best")
    assert f"after {int(best.name)} pictures (kept while training" in told.out
    lengths = here("average", "run", "--best", "--length", "0.08", "--out", "x").refusal
    assert lengths == "the best checkpoint has the lengths 0.05, 0.1; got 0.08"
    run_out(train_diffusion(recipe, dataset, autoencoder, run))
    assert not (run / "unfinished").exists()
    assert here("average", "run", "--out", "ended").status == 0
    ended, model = load_model(tmp_path / "ended"), load_model(run / "model")
    assert ended.hash == model.hash
    assert ended.passport["average"]["length"] == 0.05
    assert here("average", "run", "--length", "0.08", "--out", "long").status == 0
    assert load_model(tmp_path / "long").hash != model.hash
    assert here("sample", "long", "red disc", "--count", 1, "--steps", 2).status == 0


def test_what_cannot_be_averaged(trained: Trained, tmp_path: Path, here: Here) -> None:
    assert "no best checkpoint" in here("average", trained.autoencoder, "--best", "--out", "x").refusal
    told = here("average", trained.autoencoder, "--length", "0.1", "--out", "x").refusal
    assert told.endswith("train with --set train.posthoc=[0.05,0.1] for any length")
    assert here("average", trained.autoencoder, "--out", "same").status == 0
    same, model = (p / "weights.safetensors" for p in (tmp_path / "same", trained.autoencoder / "model"))
    assert same.read_bytes() == model.read_bytes()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "recipe.toml").write_text(to_toml(small_diffusion()))
    assert (
        "is not a run: it has no recipe.toml; did you mean 'runs'?"
        in here("average", "run", "--out", "x").refusal
    )
    assert "its training has not begun" in here("average", "runs", "--out", "x").refusal
    (tmp_path / "runs" / "averages" / "000000000001").mkdir(parents=True)
    with pytest.raises(UserError, match=r"000000000001 is damaged: "):
        snapshots(tmp_path / "runs" / "averages")
    (tmp_path / "runs" / "averages" / "000000000001" / "snapshot.json").write_text(json.dumps({"step": 1}))
    with pytest.raises(UserError, match="is damaged"):
        snapshots(tmp_path / "runs" / "averages")


def test_a_damaged_snapshot_is_set_aside(tmp_path: Path) -> None:
    run = Training(tmp_path / "run", posthoc=(0.05, 0.1), save_every=1e-9)
    run.run(7)
    first, *_ = snapshots(tmp_path / "run" / "averages")
    (first.path / "snapshot.json").write_text('{"step": 1, "seen": 8, "lengths": [0.05]}')
    told, *rest = run.run()
    assert told.note.startswith(f"the snapshot {first.path} is damaged: ")
    assert told.note.endswith(f", and is {first.path.name}.damaged now")
    assert rest[-1].step == 12
    assert first.path not in [one.path for one in snapshots(tmp_path / "run" / "averages")]
