"""`carrara doctor`: a fault put into a run is named, with what mends it; a sound run has none of the serious ones."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

from carrara.config import read_toml
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, derive
from carrara.dataset.latents import latent_key
from carrara.dataset.loader import Reading
from carrara.doctor import latents, network, sampling, training_log
from carrara.doctor.finding import Check
from carrara.doctor.opened_run import Patient
from carrara.generation.model import load_model
from carrara.generation.sample import settings_for
from carrara.importing import summary
from carrara.importing.importing import import_pictures
from carrara.recipes.catalogue import named
from carrara.training import lr_and_budget
from carrara.training.recipe import DiffusionRecipe, Pixels, TrainConfig
from carrara.training.stages import train_diffusion
from conftest import Here, Trained, run_out, small_diffusion


def names(check: Check, *, serious: bool = False) -> set[str]:
    """Of the findings; each of them says what to do."""
    assert all(finding.words and finding.fix for finding in check.findings)
    return {finding.name for finding in check.findings if finding.serious or not serious}


@pytest.fixture(scope="module")
def sound(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in pixels that saw each picture some twenty times."""
    run = tmp_path_factory.mktemp("sound") / "run"
    recipe = small_diffusion("50steps", batch=8).model_copy(update={"pixels": Pixels(size=16, flip=False)})
    run_out(train_diffusion(recipe, dataset, None, run))
    return run


@pytest.fixture
def patient_of(tmp_path: Path, trained: Trained) -> Callable[..., Patient]:
    """A copy of the trained run to put a fault into; ``train`` changes its recipe."""

    def make(dataset: Dataset | None = trained.dataset, **train: Any) -> Patient:
        shutil.copytree(trained.diffusion, tmp_path / "run", dirs_exist_ok=True)
        recipe = named(str(tmp_path / "run" / "recipe.toml"))
        assert isinstance(recipe, DiffusionRecipe)
        changed = recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})
        return Patient(tmp_path / "run", changed, dataset)

    return make


def test_a_sound_run(sound: Path, dataset: Dataset, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_STEPS", 30)
    told = here("doctor", sound, dataset.path, "--json")
    document = json.loads(told.out)
    assert told.status == 1  # it is a tiny one
    assert not document["serious"], document
    assert {f["name"] for c in document["checks"] for f in c["findings"]} <= {
        "few_pictures", "few_seen", "condition_useless",
    }  # fmt: skip
    looked = {c["check"] for c in document["checks"] if not c["skipped"]}
    assert looked == {
        "course of the loss", "amount of data", "latent scale", "terminal signal", "times trained", "sampler",
        "averaged weights", "conditions", "one batch",
    }  # fmt: skip
    monkeypatch.setattr(summary, "FEW", 5)
    monkeypatch.setattr(lr_and_budget, "_MEETINGS", 5)
    monkeypatch.setattr(network, "_HELPS", 2)
    told = here("doctor", sound, dataset.path)
    assert told.status == 0, told.out
    assert told.out.count("✓") == 9
    assert "? stored latents: not checked: the model works on pixels" in told.out


def test_without_data_less_is_looked_at(sound: Path, here: Here) -> None:
    told = here("doctor", sound)
    assert told.status == 0, told.out
    assert told.out.count("give the data set to look at it") >= 4


def test_the_wrong_latent_scale(patient_of: Callable[..., Patient], tmp_path: Path, trained: Trained) -> None:
    patient = patient_of()
    assert names(latents.scale(patient)) == set()
    about = tmp_path / "run" / "model" / "autoencoder" / "model.toml"
    values = read_toml(about)
    about.write_text(tomli_w.dumps({**values, "std": [10 * s for s in values["std"]]}))
    again = Patient(tmp_path / "run", patient.recipe, trained.dataset)
    check = latents.scale(again)
    assert names(check) == {"latent_scale"}
    assert "standard deviation 0.1;" in check.findings[0].words


def test_latents_of_nothing_and_of_noise(
    patient_of: Callable[..., Patient], pictures: Path, tmp_path: Path
) -> None:
    run_out(import_pictures(str(pictures), tmp_path / "data", held_out=0.2))
    data = Dataset.open(tmp_path / "data")
    patient = patient_of(data)
    check = latents.cache(patient)
    assert names(check) == {"stale_latents"}
    assert "carrara data encode" in check.findings[0].fix
    assert network.overfits(patient).skipped

    def noise(columns: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        draw = torch.Generator().manual_seed(0)
        count = len(columns["image"])
        return (30 * torch.randn(count, 8, 8, 8, generator=draw)).abs().half().numpy()

    key = latent_key(patient.model.autoencoder)
    run_out(derive(data, Derivation("latent", key, noise, batch=8, reading=Reading(size=16))))
    assert "broken_latents" in names(latents.cache(patient_of(data)))


def test_stored_latents_that_are_sound(patient_of: Callable[..., Patient]) -> None:
    check = latents.cache(patient_of())
    assert names(check) <= {"poor_autoencoder"}  # it was trained for 30 steps
    assert "dB" in check.saw


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, set[str]()),
        ({"schedule": "scaled_linear", "parameterization": "eps"}, {"terminal_snr"}),
        ({"schedule": "linear", "parameterization": "eps"}, set[str]()),
        (
            {
                "schedule": "linear",
                "schedule_options": {"zero_terminal": True},
                "parameterization": "eps",
            },
            {"blind_start"},
        ),
        ({"schedule": "edm", "parameterization": "edm"}, set[str]()),
    ],
)
def test_ends_of_schedules(sound: Path, change: dict[str, Any], found: set[str]) -> None:
    model = load_model(sound / "model")
    changed = replace(model, config=model.config.model_copy(update=change))
    assert names(sampling.terminal(changed)) == found


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, set[str]()),
        ({"times": "uniform"}, set[str]()),
        ({"times": "lognormal", "times_options": {"mean": -2.5, "std": 1.0}}, {"untrained_noise"}),
        ({"times_shift": 0.1}, {"untrained_noise"}),
    ],
)
def test_times_that_were_never_trained(sound: Path, change: dict[str, Any], found: set[str]) -> None:
    model, recipe = load_model(sound / "model"), small_diffusion().model_copy(update=change)
    assert names(sampling.times(model, recipe, settings_for(model, {}))) == found


@pytest.mark.parametrize(
    ("given", "schedule", "dropout", "found"),
    [
        ({}, "flow", 0.1, set[str]()),
        ({}, "linear", 0.1, set[str]()),
        ({"grid": "leading", "steps": 10}, "cosine", 0.1, {"grid_start"}),
        ({"grid": "uniform", "steps": 30}, "linear", 0.1, {"between_steps"}),
        ({"steps": 2}, "flow", 0.1, {"few_steps"}),
        ({"sampler": "ancestral"}, "linear", 0.1, {"ancestral_steps"}),
        ({"guidance": 30}, "flow", 0.1, {"much_guidance"}),
        ({}, "flow", 0.0, {"never_dropped"}),
        ({"guidance": 1.0}, "flow", 0.0, set[str]()),
    ],
)
def test_how_pictures_were_sampled(
    sound: Path, given: dict[str, Any], schedule: str, dropout: float, found: set[str]
) -> None:
    model = load_model(sound / "model")
    caption = model.config.conditions["caption"].model_copy(update={"dropout": dropout})
    config = model.config.model_copy(update={"schedule": schedule, "conditions": {"caption": caption}})
    changed = replace(model, config=config)
    recipe = small_diffusion().model_copy(update={"times": "discrete"})
    assert names(sampling.sampling(changed, recipe, settings_for(changed, given))) == found


def test_a_picture_tells_how_it_was_sampled(sound: Path, trained: Trained, here: Here) -> None:
    made = here("sample", sound, "red disc", "--count", "1", "--steps", "2", "--out", "made")
    picture = made.out.splitlines()[-1]
    told = here("doctor", sound, "--picture", picture)
    assert "2 steps are few for dpmpp_2m" in told.out
    assert here("doctor", trained.diffusion, "--picture", picture).refusal.endswith(
        "was made by another model than this run's"
    )


def test_an_average_that_is_behind(patient_of: Callable[..., Patient], tmp_path: Path) -> None:
    patient = patient_of()
    assert names(network.average(patient)) == set()
    (state,) = (tmp_path / "run" / "checkpoints").glob("*/state.safetensors")
    tensors = load_file(state)
    for name in tensors:
        if name.startswith("average.denoiser.network.conv_out"):
            tensors[name] = 3 + 0 * tensors[name]
    save_file(tensors, state)
    (state.parent / "hashes.json").unlink()
    check = network.average(patient_of_again(patient))
    assert names(check) == {"average_behind"}
    assert "train.ema" in check.findings[0].fix


def patient_of_again(patient: Patient) -> Patient:
    """The same run, read anew."""
    return Patient(patient.folder, patient.recipe, patient.dataset)


def test_a_condition_that_is_not_listened_to(patient_of: Callable[..., Patient]) -> None:
    patient = patient_of()
    with torch.no_grad():
        for parameter in patient.model.conditions["caption"].norm.parameters():  # type: ignore[union-attr]
            parameter.zero_()
    assert names(network.conditions(patient)) == {"condition_ignored"}


def test_a_run_that_was_stopped_is_looked_at(
    patient_of: Callable[..., Patient], tmp_path: Path, here: Here
) -> None:
    patient = patient_of()
    before = patient.losses()
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "run" / "unfinished")
    shutil.rmtree(tmp_path / "run" / "model")
    again = patient_of_again(patient)
    assert not again.finished
    assert again.losses() == pytest.approx(before, rel=1e-6)
    shutil.rmtree(tmp_path / "run" / "unfinished")
    assert "its training has not begun" in here("doctor", tmp_path / "run").refusal


@pytest.mark.parametrize(("lr", "word"), [(2e-4, "raise"), (3.0, "lower")])
def test_one_batch(
    patient_of: Callable[..., Patient], lr: float, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_STEPS", 30)
    check = network.overfits(patient_of(lr=lr))
    assert [f.fix.partition(" ")[0] for f in check.findings] == [word], check


def line(step: int, loss: float, gradient: float = 1.0) -> dict[str, float]:
    return {"step": step, "seen": 4 * step, "denoising": loss, "gradient": gradient, "lr": 1e-3}


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([line(10 * k, 1 / k) for k in range(1, 30)], set[str]()),
        ([line(10, 1.0), line(20, float("nan"))], {"not_a_number"}),
        ([line(10 * k, 0.1 + abs(k - 15) / 15) for k in range(1, 30)], {"diverged"}),
        ([line(10 * k, 1.0) for k in range(1, 30)], {"flat"}),
        ([line(10 * k, 1 / k, 1.3**k) for k in range(1, 30)], {"gradient_grows", "always_clipped"}),
        ([line(10 * k, 1 / k, 50.0) for k in range(1, 30)], {"always_clipped"}),
    ],
)
def test_the_course_of_a_loss(lines: list[dict[str, float]], found: set[str]) -> None:
    assert names(training_log.losses(lines, TrainConfig())) == found


@pytest.mark.parametrize(
    ("reason", "fix"), [("the loss l1 is no longer finite", "lower train.lr"), ("no space left", "free what")]
)
def test_why_a_training_could_not_go_on(reason: str, fix: str) -> None:
    (finding,) = training_log.losses([line(10, 1.0)], TrainConfig(), reason).findings
    assert finding.name == "stopped"
    assert reason in finding.words
    assert finding.fix.startswith(fix)


def test_too_little_of_it(tmp_path: Path, pictures: Path) -> None:
    shutil.copytree(pictures, tmp_path / "alike")
    for file in (tmp_path / "alike").glob("*.txt"):
        file.write_text("a picture")
    run_out(import_pictures(str(tmp_path / "alike"), tmp_path / "data", held_out=0.0))
    check = training_log.amount([line(10, 1.0)], Dataset.open(tmp_path / "data"), conditional=True)
    assert names(check) == {"few_pictures", "few_seen", "one_caption"}
    for file in (tmp_path / "alike").glob("*.png"):
        if file.name != "red-bar-0.png":
            file.unlink()
    run_out(import_pictures(str(tmp_path / "alike"), tmp_path / "one", held_out=0.0))
    assert "one_picture" in names(training_log.amount([], Dataset.open(tmp_path / "one"), conditional=False))


def test_runs_of_others(trained: Trained, here: Here, tmp_path: Path) -> None:
    assert "carrara inspect autoencoder" in here("doctor", trained.autoencoder).refusal
    assert "is not a run: it has no recipe.toml" in here("doctor", tmp_path).refusal
