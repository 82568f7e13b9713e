"""The recipes of DDPM: what they are, what they differ in, and that they learn."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from carrara.conditions import text
from carrara.config import to_toml
from carrara.dataset.dataset import Dataset
from carrara.diffusion.ddpm import DDPM
from carrara.diffusion.schedules import Discrete
from carrara.diffusion.times import TIMES
from carrara.generation.model import bind, load_model
from carrara.generation.sample import generate, settings_for
from carrara.importing.importing import import_pictures
from carrara.recipes.catalogue import named, recipes
from carrara.tensors import from_pixels, sample_uniform
from carrara.training.recipe import DiffusionRecipe
from carrara.training.stages import train_diffusion
from conftest import run_out, steps

RED, BLUE = (230, 30, 40), (20, 60, 220)


def recipe(name: str, *changes: str) -> DiffusionRecipe:
    found = named(name, list(changes))
    assert isinstance(found, DiffusionRecipe)
    return found


def test_noise_and_direct_predictor_differ_in_one_line() -> None:
    noise, direct = (to_toml(recipe(name)).splitlines() for name in ("ddpm", "ddpm_x0"))
    assert len(noise) == len(direct)
    differing = [pair for pair in zip(noise, direct, strict=True) if pair[0] != pair[1]]
    assert differing == [('parameterization = "eps"', 'parameterization = "x0"')]


def test_it_is_the_lectures_process() -> None:
    chosen = recipe("ddpm")
    schedule = bind(chosen.model, torch.nn.Identity()).schedule  # type: ignore[arg-type]
    assert isinstance(schedule, Discrete)
    n = torch.tensor([1, 10, 500, 1000])
    alpha_bars = DDPM.linear().alpha_bars[n - 1]
    torch.testing.assert_close(schedule.alpha(n.double() / 1000) ** 2, alpha_bars)
    t = TIMES[chosen.times](sample_uniform(range(20000), stream=3), schedule, **chosen.times_options)
    steps = (t * 1000).round()
    torch.testing.assert_close(t * 1000, steps)  # Algorithm 1 trains on whole steps alone
    assert (steps.min(), steps.max(), len(steps.unique())) == (1, 1000, 1000)
    assert chosen.times_shift == 1


def test_with_text_it_is_the_same_with_a_condition() -> None:
    plain, with_text = recipe("ddpm"), recipe("ddpm_text")
    assert isinstance(with_text.model.conditions["caption"], text.Config)
    assert with_text.model.model_copy(update={"conditions": {}}) == plain.model
    assert with_text.train == plain.train
    assert with_text.pixels
    assert not with_text.pixels.flip


def test_every_recipe_has_a_sentence() -> None:
    assert {"ddpm", "ddpm_x0", "ddpm_text"} <= recipes().keys()
    assert all(len(sentence) > 20 for sentence in recipes().values())


@pytest.fixture(scope="module")
def two_squares(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A red picture and a blue one, eight times each (a little different, so that none is a copy)."""
    root = tmp_path_factory.mktemp("squares")
    (root / "source").mkdir()
    for k in range(16):
        colour = RED if k % 2 else BLUE
        picture = Image.new("RGB", (8, 8), colour)
        picture.putpixel((k // 4, k % 4), tuple(value + 8 for value in colour))
        picture.save(root / "source" / f"{k}.png")
    run_out(import_pictures(str(root / "source"), root / "data", held_out=0))
    return Dataset.open(root / "data")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpm", "ddpm_x0"])
def test_trained_on_two_squares_it_makes_both(name: str, two_squares: Dataset, tmp_path: Path) -> None:
    small = recipe(
        name, "pixels.size=8", "model.denoiser.channels=64", "model.denoiser.multipliers=[1]",
        "model.denoiser.attention=[1]", "train.budget=300steps", "train.batch=16",
        "train.lr=5e-3", "train.warmup=10", "train.ema=0.02", "train.precision=fp32",
    )  # fmt: skip
    reports = steps(train_diffusion(small, two_squares, None, tmp_path / name))
    first, last = (sum(r.losses["denoising"] for r in part) / 20 for part in (reports[:20], reports[-20:]))
    assert last < 0.7 * first
    model = load_model(tmp_path / name / "model")
    settings = settings_for(model, {"sampler": "ancestral", "steps": 250, "seed": 1})
    pictures = from_pixels(generate(model, [{}] * 16, settings))
    colours = from_pixels(torch.tensor([RED, BLUE]))[:, :, None, None]
    errors = (pictures[:, None] - colours[None]).square().flatten(2).mean(2).sqrt()  # [16 2]
    assert errors.min(1).values.median() < 0.35, errors  # the two are 1.3 apart
    nearest = errors.argmin(1)
    assert 2 <= nearest.sum() <= 14, nearest
