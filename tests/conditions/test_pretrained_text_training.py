"""Training on what frozen encoders make of captions: kept once, used by every run, checked when a model is opened."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny_encoders
from carrara.conditions import pretrained_text, size
from carrara.dataset.dataset import Dataset
from carrara.denoisers import unet
from carrara.errors import UserError
from carrara.generation.model import ModelConfig, load_model
from carrara.generation.sample import generate, settings_for
from carrara.training.recipe import DiffusionRecipe, Pixels, TrainConfig
from carrara.training.stages import train_diffusion
from conftest import run_out, steps, write_pictures


def test_from_captions_to_pictures_by_two_encoders_and_the_size(tmp_path: Path) -> None:
    """SDXL's conditions in small: side by side, the pooled text and the size added to the time."""
    from carrara.importing.importing import import_pictures

    write_pictures(tmp_path / "source")
    run_out(import_pictures(str(tmp_path / "source"), tmp_path / "data", held_out=0.2))
    dataset = Dataset.open(tmp_path / "data")
    tiny_encoders.clip(tmp_path / "one")
    tiny_encoders.clip(tmp_path / "two", projection=12, width=24)
    caption = pretrained_text.Config(
        paths=(str(tmp_path / "one"), str(tmp_path / "two")),
        length=tiny_encoders.WINDOW,
        layer=-2,
        norm=False,
        pooled="last",
        padding="read",
    )
    recipe = DiffusionRecipe(
        pixels=Pixels(size=8),
        model=ModelConfig(
            denoiser=unet.Config(channels=8, multipliers=(1,), blocks=1, attention=(1,), head_width=8),
            conditions={"caption": caption, "size": size.Config(features=4)},
        ),
        train=TrainConfig(budget="4steps", batch=4, warmup=2),
    )
    reports = run_out(train_diffusion(recipe, dataset, None, tmp_path / "run"))
    assert any(report.title == "conditions" for report in reports)
    assert steps(reports)[-1].step == 4
    assert len([name for name in dataset.columns if name.startswith("text_")]) == 2, "one for each language"
    again = train_diffusion(recipe, dataset, None, tmp_path / "again")
    assert not any(report.title == "conditions" for report in again), "the next run finds them"
    model = load_model(tmp_path / "run" / "model")
    encoder: nn.Module = model.conditions["caption"]
    assert (encoder.tokens, encoder.vector, model.conditions["size"].vector) == (40, 12, 24)
    files = [f for f in (tmp_path / "run" / "model").rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files if "condition" in str(f)) < 20_000, "references, not weights"
    settings = settings_for(model, {"steps": 2})
    rows = [{"caption": "red disc"}, {"caption": "blauer Balken", "size": "20x20"}]
    pictures = generate(model, rows, settings)
    assert pictures.shape == (2, 3, 8, 8)
    with torch.inference_mode():
        a, b = model.context(rows[:1], (8, 8)), model.context([{}], (8, 8))
    assert not torch.equal(a.roles()["tokens"], b.roles()["tokens"])

    shutil.move(tmp_path / "two", tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"there is no text encoder at .*two.*change 'paths' in"):
        load_model(tmp_path / "run" / "model")
