"""What is said of a recipe before training is what the exporters do with its model after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers_cases import diffusers
from test_diffusers_pipeline_parts import SMALL, classes, model

import tiny_encoders
from carrara.autoencoders import kl
from carrara.conditions import label, pretrained_text
from carrara.conditions import text as own_text
from carrara.config import Config
from carrara.denoisers import dit, unet
from carrara.errors import UserError
from carrara.generation.model import ModelConfig
from carrara.interop import diffusers_pipeline_export
from carrara.interop.exportable import exportable
from carrara.training.autoencoding import AutoencoderRecipe
from carrara.training.diffusing import DiffusionRecipe
from carrara.training.rehearsal import MadeUp
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
            diffusers_pipeline_export.write(mine, tmp_path / "out")
        assert said == f"not to diffusers: {str(refused.value).removeprefix('diffusers cannot express it: ')}"
    else:
        assert said == f"as {words} of diffusers: carrara export RUN DEST"
        diffusers_pipeline_export.write(mine, tmp_path / "out")
        index = diffusers.DiffusionPipeline.load_config(tmp_path / "out")
        assert index["_class_name"] == words


def test_nothing_learns_of_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of captions is not learned only to say that its model cannot be exported."""
    monkeypatch.setattr(own_text.Config, "learn", lambda *_: pytest.fail("it learned"))
    said = exportable(small_diffusion(), model(unet.Config(**SMALL)).autoencoder, MadeUp())
    assert said.startswith("not to diffusers: the condition 'caption' (text) cannot be exported: its text")


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
