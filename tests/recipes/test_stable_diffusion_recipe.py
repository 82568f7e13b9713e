"""The recipe of Stable Diffusion 1: the published network, and a step of it in small."""

from pathlib import Path

import pytest
import torch

import tiny_encoders
from carrara.autoencoders import kl
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.conditions.pretrained_text import PretrainedTextEncoder
from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.generation.model import load_model
from carrara.importing.importing import import_pictures
from carrara.recipes.catalogue import named
from carrara.training.condition_columns import learned
from carrara.training.recipe import DiffusionRecipe
from carrara.training.stages import train_diffusion
from conftest import run_out, steps, write_pictures

CLIP_WIDTH = 768


def recipe(*changes: str) -> DiffusionRecipe:
    found = named("stable_diffusion_1", list(changes))
    assert isinstance(found, DiffusionRecipe)
    return found


def test_it_is_the_published_network() -> None:
    chosen = recipe()
    with torch.device("meta"):
        network = chosen.model.denoiser.build(channels=4, tokens=CLIP_WIDTH)  # type: ignore[attr-defined]
    assert sum(p.numel() for p in network.parameters()) == 859_520_964
    readers = [block for block in network.modules() if hasattr(block, "key_value")]
    assert [block.heads for block in readers] == [8] * 16
    assert (chosen.train.batch, chosen.train.batch // chosen.train.accumulate) == (2048, 16)


def test_a_step_in_small(tmp_path: Path) -> None:
    """Through the recipe's task: frozen CLIP, latents at two sizes, noise predicted at whole steps."""
    write_pictures(tmp_path / "source")
    run_out(import_pictures(str(tmp_path / "source"), tmp_path / "data", held_out=0))
    dataset = Dataset.open(tmp_path / "data")
    config = kl.Config(channels=8, multipliers=(1, 1), blocks=1, middle_attention=False)
    torch.manual_seed(0)
    autoencoder = StoredAutoencoder.of(config.build(), config, 16, {})
    small = recipe(
        f"model.conditions.caption.paths=['{tiny_encoders.clip_folder()}']",
        f"model.conditions.caption.length={tiny_encoders.WINDOW}",
        "model.denoiser.channels=16", "model.denoiser.groups=8", "model.denoiser.heads=2",
        "resolutions=[{size=16}, {size=32}]", "train.batch=4", "train.accumulate=2", "train.budget=2steps",
        "train.warmup=1", "train.precision=fp32", "validation.looks=0",
    )  # fmt: skip
    reports = steps(train_diffusion(small, dataset, autoencoder, tmp_path / "run"))
    assert [r.step for r in reports] == [1, 2]
    assert 0.5 < reports[0].losses["denoising"] < 2, "of a network that says 0, the variance of the noise"
    model = load_model(tmp_path / "run" / "model")
    assert isinstance(model.conditions["caption"], PretrainedTextEncoder)
    assert model.network.conv_out.weight.abs().max() > 0  # type: ignore[union-attr]
    assert model.size == 32


def test_without_clip_it_says_what_is_missing(dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"pretrained_text needs 'paths', the folders of one or more text"):
        learned(recipe().model, dataset, None, 0)  # type: ignore[arg-type]
