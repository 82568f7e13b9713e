"""What is said of a recipe before training is what the exporters do with its model after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_cases import diffusers
from test_diffusers_pipeline_parts import SMALL, classes, model
from torch import nn

import tiny_encoders
from carrara.autoencoders import kl, vq
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.conditions import label, pretrained_text
from carrara.conditions import text as own_text
from carrara.config import Config, to_toml
from carrara.denoisers import dit, unet
from carrara.errors import UserError
from carrara.generation.model import Model, ModelConfig, build_network
from carrara.interop.diffusers import pipeline_export
from carrara.interop.exportable import exportable, stand_in
from carrara.training.random_data import MadeUp
from carrara.training.recipe import AutoencoderRecipe, DiffusionRecipe
from conftest import Here, Trained, recipe_file, small_diffusion

PLAIN_DIT: dict[str, Any] = {"width": 24, "depth": 1, "heads": 2, "frequency_shift": 1.0}
TABLE = {"schedule": "scaled_linear", "parameterization": "v"}
CASES: dict[str, tuple[Config, bool, dict[str, Any]]] = {
    "LDMPipeline": (unet.Config(**SMALL), False, TABLE),
    "StableDiffusionPipeline": (unet.Config(**{**SMALL, "depth": 1}), True, TABLE),
    "DiTPipeline": (dit.Config(**PLAIN_DIT), False, {}),
    "positions": (dit.Config(**{**PLAIN_DIT, "positions": "rotary"}), False, {}),
    "cut times to whole numbers": (unet.Config(**SMALL), False, {}),
    "divide by zero": (unet.Config(**SMALL), False, {
        "schedule": "linear", "schedule_options": {"zero_terminal": True}, "parameterization": "eps"
    }),
    "patch is 2": (unet.Config(**SMALL, patch=2), False, TABLE),
}  # fmt: skip


@pytest.mark.parametrize("words", CASES)
def test_said_before_and_done_after(words: str, tmp_path: Path) -> None:
    denoiser, reads, process = CASES[words]
    config: Config | None = None
    conditions: dict[str, Any] = {}
    if reads:
        config = pretrained_text.Config(paths=(tiny_encoders.clip_folder(),), length=9, padding="read")
        conditions = {"caption": config.learn(MadeUp())}
    elif isinstance(denoiser, dit.Config):
        config, conditions = label.Config(width=8), {"caption": classes(8)}
    mine = model(denoiser, conditions=conditions, **process)
    recipe = DiffusionRecipe(
        model=ModelConfig(denoiser=denoiser, conditions={"caption": config} if config else {}, **process)
    )
    said = exportable(recipe, mine.autoencoder, MadeUp())
    assert words in said
    if said.startswith("not"):
        with pytest.raises(UserError) as refused:
            pipeline_export.write(mine, tmp_path / "out")
        assert said == f"not to diffusers: {str(refused.value).removeprefix('diffusers cannot express it: ')}"
    else:
        assert said == f"as {words} of diffusers: carrara export RUN DEST"
        pipeline_export.write(mine, tmp_path / "out")
        index = diffusers.DiffusionPipeline.load_config(tmp_path / "out")
        assert index["_class_name"] == words


def test_nothing_learns_of_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of captions is not learned only to say that its model cannot be exported."""
    monkeypatch.setattr(own_text.Config, "learn", lambda *_: pytest.fail("it learned"))
    said = exportable(small_diffusion(), model(unet.Config(**SMALL)).autoencoder, MadeUp())
    assert said.startswith(
        "not to diffusers: the condition 'caption' (text) cannot be exported: diffusers has no"
    )


def test_autoencoders() -> None:
    fits = AutoencoderRecipe(autoencoder=kl.Config(channels=32, multipliers=(1, 1), blocks=1))
    assert exportable(fits, None, None) == "as AutoencoderKL of diffusers: carrara export RUN DEST"
    patched = AutoencoderRecipe(autoencoder=kl.Config(channels=32, multipliers=(1, 1), blocks=1, patch=2))
    assert exportable(patched, None, None).startswith("not to diffusers: patch is 2, ")


def test_plan_and_train_say_it(here: Here, trained: Trained, tmp_path: Path) -> None:
    recipe = recipe_file(small_diffusion("1steps", captions=False), tmp_path / "mine.toml")
    given = (recipe, trained.dataset.path, "--autoencoder", trained.autoencoder)
    planned = here("plan", *given, "--seconds", 0)
    began = here("train", *given, "--out", "run")
    assert began.status == 0, began.err
    why = "not to diffusers: the schedulers for flow matching that LDMPipeline works with"
    assert f"export                 {why}" in planned.out
    assert f"export: {why}" in began.out
    assert began.out.index("export: ") < began.out.index("training the diffusion model")


def test_a_latent_alone_and_a_model_to_begin_from(here: Here, tmp_path: Path) -> None:
    """The first stands for the plainest autoencoder; of the second the latent scale stays as it is."""
    table = DiffusionRecipe(model=ModelConfig(denoiser=unet.Config(**SMALL), **TABLE))
    (tmp_path / "table.toml").write_text(to_toml(table))
    words = "as LDMPipeline of diffusers: carrara export RUN DEST, if its autoencoder can be"
    planned = here("plan", "table.toml", "--latent", "4x4x4", "--seconds", 0)
    assert f"export                 {words}" in planned.out, planned
    flow = exportable(small_diffusion(captions=False), stand_in(4, 64), MadeUp())
    assert flow.startswith("not to diffusers: the schedulers for")

    config = vq.Config(channels=32, multipliers=(1, 2), blocks=1, latent_channels=3, codes=8)
    coded = StoredAutoencoder.of(config.build(), config, 16, {})
    plain = coded.with_scale(LatentScale(torch.zeros(3), torch.full((3,), 0.5)))
    start = Model(table.model, build_network(table.model, nn.ModuleDict(), 3), nn.ModuleDict(), plain, {})
    assert "cannot take it in" in exportable(table, plain, MadeUp())
    assert exportable(table, plain, MadeUp(), start=start).startswith("as LDMPipeline of diffusers")
    pipeline_export.write(start, tmp_path / "out")
