"""`carrara plan`: its figures are those of real steps, and what cannot fit is refused with what would."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import activation_bytes

from carrara.config import to_toml
from carrara.dataset.dataset import Dataset
from carrara.recipes import kl_autoencoder, text_ldm
from carrara.training import plan as preflight
from carrara.training.checkpoint import TrainingState
from carrara.training.devices import Memory, Placement, resident
from carrara.training.disk_and_memory import Subject, on_disk
from carrara.training.memory_estimate import Imagined, imagine
from carrara.training.plan import plan
from carrara.training.random_data import AutoencoderRehearsal, Rehearsal
from carrara.training.recipe import Pixels, TrainConfig, ValidationConfig
from conftest import Here, Trained, recipe_file, small_autoencoder, small_diffusion

CPU = torch.device("cpu")
WIDTH, DEPTH = 64, 3


def _layer() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sigmoid())


class Stack(nn.Module):
    """Linear layers, two in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(_layer(), _layer()) for _ in range(DEPTH))

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Plain(Rehearsal):
    """A network whose needs can be counted on fingers."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.modules = {"network": Stack()}
        self.parts = []

    def terms(self, update: str, count: int) -> dict[str, torch.Tensor]:
        return {"loss": self.modules["network"](torch.rand(count, 256, WIDTH)).mean()}


NEEDS = Imagined(
    parameters={},
    weights=30_000_000,
    averages=30_000_000,
    optimizer=60_000_000,
    gradients=30_000_000,
    least=100_000_000,
    further=0.0,
    base=0.0,
    each=500_000_000.0,
    activations=400_000_000.0,
    stepping=0,
    flops=1e9,
    device="cpu",
)


def config(**values: Any) -> TrainConfig:
    return TrainConfig(**{"optimizer": "adamw", **values})


def test_a_step_by_hand() -> None:
    found = imagine(Plain, config(), Placement(CPU, bf16=False))
    count = 2 * DEPTH * (WIDTH * WIDTH + WIDTH)
    row = 256 * WIDTH * 4  # bytes of a picture's values at a layer
    assert found.weights == found.averages == found.gradients == 4 * count
    assert found.optimizer == pytest.approx(8 * count, rel=0.01)
    # Forward, and backward to weights and to inputs; the first layer's input wants no gradient.
    assert found.flops == 2 * 256 * WIDTH * WIDTH * (3 * 2 * DEPTH - 1)
    # The input, and each layer's sigmoid, which is the next one's input.
    assert found.activations == (2 * DEPTH + 1) * row
    assert found.activations < found.each <= found.activations + 3 * row
    twice = imagine(Plain, config(checkpointing=True), Placement(CPU, bf16=False))
    assert twice.activations == (DEPTH + 1) * row  # what enters blocks stays, what is between does not
    assert twice.each < found.each
    many = imagine(Plain, config(ema_lengths=(0.1, 0.2)), Placement(CPU, bf16=False))
    assert many.averages == 3 * found.averages


def test_half_a_batch_takes_half_and_holds_its_gradients() -> None:
    found = Imagined({}, 100, 100, 200, 100, 110, 1.0, 50.0, 60.0, 55.0, 10, 1.0, "cpu")
    assert found.passing(1) == 110
    assert found.passing(10) == 650
    assert found.peak(10, 1) - found.peak(5, 1) == pytest.approx(1.3 * 300)
    assert found.peak(5, 2) - found.peak(5, 1) == pytest.approx(1.3 * 100)


@pytest.mark.parametrize("size", [16, 64])
def test_the_optimizer_has_no_pictures_in_it(size: int) -> None:
    """Nor have checkpoints: what they hold goes by the weights alone."""
    recipe = small_autoencoder(optimizer="adamw").model_copy(update={"size": size})
    found = imagine(lambda: AutoencoderRehearsal(recipe, CPU), recipe.train, Placement(CPU, bf16=False))
    assert found.optimizer == pytest.approx(2 * found.weights, rel=0.01)


@pytest.mark.parametrize("bf16", [True])
def test_what_is_saved_is_what_a_real_step_saves(bf16: bool) -> None:
    placement = Placement(CPU, bf16)
    recipe = small_diffusion("1steps", optimizer="adamw").model_copy(update={"pixels": Pixels(size=16)})
    subject = Subject.of(recipe, None, None, None)
    found = imagine(preflight._rehearsal(subject, placement)[0], recipe.train, placement)
    real = preflight._rehearsal(subject, placement)[0]()
    TrainingState(real.modules, recipe.train, placement)

    def saved(count: int) -> int:
        with placement.autocast():
            return activation_bytes(lambda: real.terms("denoiser", count)["denoising"])

    assert found.activations == pytest.approx((saved(9) - saved(3)) / 6, rel=0.15)
    assert sum(found.parameters.values()) * 4 == found.weights == found.gradients


def test_a_network_far_too_large_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand million weights, of which none is made."""
    model = text_ldm.recipe().model
    wide = model.denoiser.model_copy(update={"channels": 3072, "multipliers": (1,), "blocks": 1})
    recipe = text_ldm.recipe().model_copy(
        update={"model": model.model_copy(update={"denoiser": wide, "conditions": {}})}
    )
    monkeypatch.setattr(preflight, "memory", lambda device: Memory(24 * 10**9, 24 * 10**9, "RAM"))
    before = resident("VmHWM") or 0
    found = plan(Subject.of(recipe, None, None, (4, 32, 32)), seconds=5)
    assert found.parameters["denoiser"] > 6e8
    assert (resident("VmHWM") or 0) - before < 1e9
    assert found.peak > 24e9 or found.trial.peak is None  # what cannot fit is not tried


def test_a_plan_of_pixels_on_a_command_line(here: Here, tmp_path: Path) -> None:
    recipe = small_diffusion("40steps", captions=False).model_copy(update={"pixels": Pixels(size=16)})
    file = recipe_file(recipe, tmp_path / "mine.toml")
    done = here("plan", file, "--seconds", "0.3", "--json")
    assert done.status == 0, done.err
    told = json.loads(done.out)
    assert told["seen"] == 160
    assert told["seconds"] == pytest.approx(160 / told["rate"] + told["seconds_of_looks"])
    assert told["fits"][0] == {"batch": 4, "accumulate": 1}
    assert any("half of the pictures are mirrored" in note for note in told["notes"])
    assert told["memory"]["peak"] < told["memory"]["free"]
    assert "measured" in told["rate_from"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.toml"]  # nothing is written


def test_a_plan_on_data(here: Here, trained: Trained, tmp_path: Path) -> None:
    recipe = recipe_file(small_diffusion("10m"), tmp_path / "mine.toml")
    given = (recipe, trained.dataset.path, "--seconds", "0")
    done = here("plan", *given, "--autoencoder", trained.autoencoder)
    assert done.status == 0, done.err
    for words in ("denoiser", "caption", "autoencoder", "memory at its peak", "10:00", "FLOPs at"):
        assert words in done.out
    assert "latents" not in done.out  # they are there
    assert "made up" not in done.out
    subject = Subject.of(small_diffusion("10m"), trained.dataset, None, (4, 8, 8))
    assert on_disk(subject, NEEDS)["latents"] == len(trained.dataset) * 2 * 4 * 8 * 8 * 2


def test_an_autoencoder_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "disk_free", lambda path: 1000)
    found = plan(Subject.of(small_autoencoder("20steps"), None, None, None), seconds=5)
    whole = sum(p.numel() for p in small_autoencoder().network.build().parameters())
    assert found.parameters == {"autoencoder": whole}
    assert found.seen == pytest.approx(80)
    assert "of disk are needed" in found.refusals[0]
    assert "no trial" in found.trial.words


def test_what_cannot_fit_is_refused_with_what_would(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(preflight, "memory", lambda device: Memory(250_000_000, 10**9, "RAM"))
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(kl_autoencoder.recipe()))
    given = ("plan", file, "--set", "train.batch=128", "--seconds", "0")
    done = here(*given)
    assert done.status == 2
    assert "250 MB of RAM are free: take --set train.accumulate=" in done.err
    parts = done.err.split("train.accumulate=")[1].split()[0]
    again = here(*given, "--set", f"train.accumulate={parts}")
    assert again.status == 0, again.err


@pytest.mark.parametrize("word", ["size", "pixels.size"])
def test_training_is_refused_before_its_first_step_with_a_size_that_fits(
    here: Here, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str
) -> None:
    """In one line, and nothing is left behind."""
    memory = Memory(300_000_000, 10**9, "RAM")
    monkeypatch.setattr(preflight, "memory", lambda device: memory)
    recipe: Any = small_autoencoder("1steps")
    if word == "pixels.size":
        plain = small_diffusion("1steps", captions=False)
        few = ValidationConfig(looks=0)
        recipe = plain.model_copy(update={"pixels": Pixels(size=16), "validation": few})
    file = recipe_file(recipe, tmp_path / "mine.toml")
    given = ("train", file, dataset.path, "--out", tmp_path / "run", "--set")
    refusal = here(*given, f"{word}=16384").refusal
    assert "300 MB of RAM are free: take --set " in refusal
    assert not (tmp_path / "run").exists()
    size = int(refusal.split(f"take --set {word}=")[1])
    assert 32 <= size < 16384


def test_the_time_to_the_end_has_the_looks_in_it(dataset: Dataset) -> None:
    recipe = small_diffusion("100steps", captions=False).model_copy(
        update={"pixels": Pixels(size=16), "validation": ValidationConfig(looks=5)}
    )
    found = plan(Subject.of(recipe, dataset, None, None), seconds=0)
    assert found.looks > 0
    assert found.seconds == pytest.approx(400 / found.trial.rate + found.looks)
    assert any("conditions mean something from about" in note for note in found.notes)
    timed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"budget": "10s"})})
    found = plan(Subject.of(timed, dataset, None, None), seconds=0)
    assert (found.seconds, found.looks <= 1) == (10, True)
    assert found.seen == pytest.approx((10 - found.looks) * found.trial.rate)


def test_pairs_that_cannot_fit_are_refused_with_a_smaller_batch(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of pairs cannot be learnt in parts: their recipe takes no train.accumulate."""
    monkeypatch.setattr(preflight, "memory", lambda device: Memory(2 * 10**9, 10**10, "RAM"))
    given = ("plan", "contrastive", "--set", "texts=ngrams", "--seconds", "0", "--set")
    done = here(*given, "train.batch=16384")
    assert done.status == 2
    assert "accumulate" not in done.err
    batch = int(done.err.split("take --set train.batch=")[1].split()[0])
    assert 1024 <= batch < 16384
    again = here(*given, f"train.batch={batch}", "--json")
    assert again.status == 0, again.err
    assert json.loads(again.out)["fits"] == [{"batch": batch, "accumulate": 1}]


@pytest.mark.parametrize(
    ("free", "words"), [(300_000_000, "train.checkpointing=true"), (200_000_000, "a smaller network")]
)
def test_what_cannot_fit_at_all(free: int, words: str) -> None:
    assert preflight._fitting(NEEDS, 4, free) == []
    told = preflight._too_large(NEEDS, config(batch=4), 10**9, Memory(free, 10**9, "RAM"), [])
    assert words in told
    assert "a single picture at a time still needs 899 MB" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("text_ldm",), "give its --autoencoder, or their shape as --latent"),
        (("text_ldm", "--latent", "4x64"), "expected channels x height x width"),
        (("text_ldm", "--latent", "4x64x32"), "expected a square one"),
        (("text_ldm", "--latent", "4x1000000000x1000000000"), "expected channels x height x width"),
        (("text_ldm", "--latent", "4x2049x2049"), "'height': expected at most 2048, got 2049"),
        (("text_ldm", "--latent", "99999x8x8"), "'channels': expected at most 4096"),
        (("text_ldm", "--latent", "0x8x8"), "'channels': expected at least 1"),
        (("text_ldm", "--latent", "4x7x7"), "sides are a multiple of 16; here it is 56"),
        (("text_ldm", "--latent", "²x8x8"), "expected channels x height x width"),
        (("text_ldn", "--latent", "4x64x64"), "did you mean 'text_ldm'"),
    ],
)
def test_mistakes(here: Here, arguments: tuple[str, ...], words: str) -> None:
    assert words in here("plan", *arguments).refusal
