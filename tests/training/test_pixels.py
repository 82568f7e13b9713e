"""Diffusion in pixels: no autoencoder to train, no column to derive, and everything after it unchanged."""

from pathlib import Path

import pytest
import torch

import carrara
from carrara.autoencoders import identity
from carrara.dataset.dataset import Dataset
from carrara.dataset.loader import Loaded, Reading, load
from carrara.errors import UserError
from carrara.generation.model import Model, build_network
from carrara.generation.sample import Settings, generate, settings_for
from carrara.tensors import from_pixels
from carrara.training.batches import LatentColumns
from carrara.training.diffusion_task import DiffusionTask
from carrara.training.recipe import AutoencoderRecipe, DiffusionRecipe, Pixels
from carrara.training.stages import train_autoencoder, train_diffusion
from conftest import Command, run_out, small_diffusion, some_steps, steps


def in_pixels(budget: str = "6steps", *, captions: bool = True, flip: bool = True) -> DiffusionRecipe:
    recipe = small_diffusion(budget, captions=captions)
    return recipe.model_copy(update={"pixels": Pixels(size=16, flip=flip)})


def test_the_identity_gives_everything_back() -> None:
    autoencoder = identity.Config(image_channels=4).build()
    image = torch.rand(2, 4, 6, 6) * 2 - 1
    encoding = autoencoder.encode(image)
    assert torch.equal(encoding.mode(), image)
    assert torch.equal(encoding.sample(torch.randn_like(image)), image)
    assert torch.equal(autoencoder.decode(encoding.mode()), image)
    assert torch.equal(encoding.penalty(), torch.zeros(2))
    assert (autoencoder.channels, autoencoder.factor, list(autoencoder.parameters())) == (4, 1, [])


def first_batch(recipe: DiffusionRecipe, dataset: Dataset) -> tuple[DiffusionTask, Loaded]:
    assert recipe.pixels
    scale = recipe.pixels.autoencoder().scale
    assert scale is not None
    nothing = torch.nn.ModuleDict()
    task = DiffusionTask(
        recipe,
        build_network(recipe.model, nothing, 3),
        nothing,
        latents=LatentColumns(["image"]),
        scale=scale,
        words={},
        device=torch.device("cpu"),
    )
    batches = load(dataset, Reading(task.columns, size=16), batch=8, seed=3)
    batch = next(batches)
    batches.close()
    return task, batch


def test_a_latent_is_the_picture_itself_or_its_mirror_image(dataset: Dataset) -> None:
    mirrored = set()
    for flip in (False, True):
        task, batch = first_batch(in_pixels(captions=False, flip=flip), dataset)
        image = from_pixels(batch.columns["image"])  # type: ignore[arg-type]
        raw, _ = task.raw(batch, [int(s) for s in batch.seeds])
        latent = task.scale.scale(raw)
        assert image.std() > 0.1
        for mine, plain in zip(latent, image, strict=True):
            same = torch.equal(mine, plain)
            assert same or (flip and torch.equal(mine, plain.flip(-1)))
            mirrored.add((flip, same))
    assert (True, False) in mirrored  # some are mirrored where that was asked for
    assert (False, False) not in mirrored


def test_a_model_in_pixels_trains_saves_opens_and_samples(dataset: Dataset, tmp_path: Path) -> None:
    dataset.refresh()  # other tests derive columns, in handles of their own
    before = set(dataset.columns)
    reports = run_out(train_diffusion(in_pixels(), dataset, None, tmp_path / "run"))
    dataset.refresh()
    assert set(dataset.columns) == before
    assert reports[-1].step == 6
    model = carrara.load(tmp_path / "run" / "model")
    assert isinstance(model, Model)
    assert (model.size, model.latent_shape) == (16, (3, 16, 16))
    rows = [{"caption": "red disc"}, {"caption": "blue bar"}]
    settings = Settings(steps=3, seed=5)
    together = generate(model, rows, settings)
    assert together.shape == (2, 3, 16, 16)
    assert together.float().std() > 1
    alone = generate(model, rows[1:], settings, numbers=[1])
    assert (together[1:].int() - alone.int()).abs().max() <= 1
    model.save(tmp_path / "again")
    again = carrara.load(tmp_path / "again")
    assert isinstance(again, Model)
    assert torch.equal(generate(again, rows, settings), together)


def test_stopped_and_continued_it_ends_with_the_same_weights(dataset: Dataset, tmp_path: Path) -> None:
    recipe = in_pixels("6steps")
    run_out(train_diffusion(recipe, dataset, None, tmp_path / "whole"))
    part = train_diffusion(recipe, dataset, None, tmp_path / "parts")
    some_steps(part, 2)
    part.close()  # type: ignore[attr-defined]
    assert len(steps(train_diffusion(recipe, dataset, None, tmp_path / "parts"))) == 4
    files = [tmp_path / run / "model" / "denoiser.safetensors" for run in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_settings_suit_the_model(dataset: Dataset, tmp_path: Path) -> None:
    run_out(train_diffusion(in_pixels("1step", captions=False), dataset, None, tmp_path / "run"))
    model = carrara.load(tmp_path / "run" / "model")
    assert isinstance(model, Model)
    assert (settings_for(model, {}).grid, settings_for(model, {}).guidance) == ("shifted", 1.0)
    discrete = model.config.model_copy(update={"schedule": "linear"})
    model.config = discrete
    assert settings_for(model, {"steps": 5, "grid": None}).grid == "trailing"
    assert settings_for(model, {"grid": "uniform"}).grid == "uniform"
    with pytest.raises(UserError, match="did you mean 'karras'"):
        settings_for(model, {"grid": "karas"})


def test_what_cannot_be_is_said(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to train"):
        run_out(train_autoencoder(AutoencoderRecipe(autoencoder=identity.Config()), dataset, tmp_path / "a"))
    with pytest.raises(UserError, match="needs an autoencoder"):
        run_out(train_diffusion(small_diffusion(), dataset, None, tmp_path / "b"))
    odd = in_pixels().model_copy(update={"pixels": Pixels(size=15)})
    with pytest.raises(UserError, match="multiple of 2; here it is 15"):
        run_out(train_diffusion(odd, dataset, None, tmp_path / "c"))


def test_the_command_line_trains_without_an_autoencoder(carrara: Command, dataset: Dataset) -> None:
    small = ["pixels.size=16", "model.denoiser.channels=8", "model.denoiser.head_width=8", "train.batch=4"]
    changes = [word for change in small for word in ("--set", change)]
    done = carrara("train", "ddpm", dataset.path, "--out", "run", "--budget", "2steps", *changes)
    assert done.status == 0, done.err
    assert "next: carrara sample run --out pictures" in done.out
    sampled = carrara(
        "sample", "run", "--sampler", "ancestral", "--steps", "1000", "--grid", "uniform", "--count", 1
    )
    assert sampled.status == 0, sampled.err
    assert (carrara.folder / sampled.out.splitlines()[-1]).is_file()
    refused = carrara("train", "ddpm", dataset.path, "--out", "other", "--autoencoder", "run")
    assert "omit --autoencoder" in refused.refusal
    unknown = carrara("train", "ddpm", dataset.path, "--out", "other", "--set", "pixels.siez=9")
    assert "did you mean 'pixels.size'" in unknown.refusal
