"""A text encoder that was trained here goes out as CLIP's, with its tokenizer, and gives the same there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers_cases import diffusers
from test_diffusers_pipeline_parts import SMALL, assert_near, model

from carrara.conditions import text
from carrara.denoisers import unet
from carrara.errors import UserError
from carrara.generation.model import load_model
from carrara.interop.diffusers import pipeline, pipeline_export
from carrara.interop.exportable import exportable, stand_in
from carrara.recipes.catalogue import named
from carrara.training.random_data import MadeUp

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own
CONFIG = text.Config(vocabulary=300, length=9, width=16, depth=2, heads=2, causal=True)
PROMPTS = ["a red disc", "Ein ROTES Éclair", "红心", "very " * 30, "a", ""]


def encoder() -> text.TextEncoder:
    torch.manual_seed(0)
    made = text.TextEncoder(CONFIG, text.learn_tokenizer(["a red disc", "ein rotes Quadrat"], 300))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_the_same_words_give_the_same_there(tmp_path: Path) -> None:
    own = encoder()
    mine = model(
        unet.Config(**{**SMALL, "depth": 1}),
        conditions={"caption": own},
        schedule="scaled_linear",
        parameterization="v",
    )
    mine.save(tmp_path / "mine")
    pipeline_export.write(load_model(tmp_path / "mine"), tmp_path / "out")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        expected = own(own.prepare(PROMPTS)).tokens
        assert expected is not None
        assert expected.std() > 0.1
        theirs, _ = pipe.encode_prompt(PROMPTS, torch.device("cpu"), 1, False)
        assert_near(theirs, expected)
        z, t = torch.randn(6, *mine.latent_shape), torch.tensor(500)
        again = mine.network(z, torch.full((6,), 0.501), mine.context([{"caption": p} for p in PROMPTS]))
        assert_near(pipe.unet(z, t, theirs).sample, again)
        back = pipeline.read(tmp_path / "out").model
        tokens = back.context([{"caption": p} for p in PROMPTS[:-1]]).tokens
        assert tokens is not None
        assert_near(tokens, expected[:-1])
    made = pipe("a red disc", num_inference_steps=2, height=16, width=16, output_type="np").images
    assert made.shape == (1, 16, 16, 3)


def test_what_plan_says_of_it() -> None:
    said = exportable(named("text_ldm_exportable"), stand_in(4, 64), MadeUp())  # type: ignore[arg-type]
    assert said == "as StableDiffusionPipeline of diffusers: carrara export RUN DEST"
    said = exportable(named("text_ldm"), stand_in(4, 64), MadeUp())  # type: ignore[arg-type]
    assert "train by the recipe text_ldm_exportable" in said


def test_a_model_with_a_second_text_is_refused(tmp_path: Path) -> None:
    mine = model(
        unet.Config(**{**SMALL, "depth": 1}),
        conditions={"caption": encoder(), "other": encoder()},
        schedule="scaled_linear",
        parameterization="v",
    )
    with pytest.raises(UserError, match="text, the second"):
        pipeline_export.write(mine, tmp_path / "out")
