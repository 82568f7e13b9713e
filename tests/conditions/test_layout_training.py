"""Boxes from the file beside a picture to a model that paints what it is told where it is told; and the recipe."""

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from carrara.conditions import layout
from carrara.dataset.dataset import Dataset
from carrara.denoisers import unet
from carrara.errors import UserError
from carrara.generation.model import ModelConfig, load_model
from carrara.generation.sample import generate, settings_for
from carrara.importing.importing import import_pictures
from carrara.recipes import layout_ldm
from carrara.tensors import from_pixels
from carrara.training.recipe import DiffusionRecipe, Pixels, TrainConfig
from carrara.training.stages import train_diffusion
from conftest import run_out

COLOURS = {"red": (230, 30, 40), "blue": (20, 60, 220)}


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Forty-eight pictures of 12 x 10 pixels on white, each with a red or a blue rectangle somewhere."""
    root, draw = tmp_path_factory.mktemp("rectangles"), random.Random(3)
    (root / "source").mkdir()
    for k in range(48):
        label, (left, top) = draw.choice(list(COLOURS)), (draw.randint(1, 7), draw.randint(0, 6))
        picture = Image.new("RGB", (12, 10), "white")
        picture.paste(COLOURS[label], (left, top, left + 4, top + 4))
        picture.putpixel((0, 0), (255, 255, 255 - k))  # none is a copy of another
        picture.save(root / "source" / f"{k}.png")
        boxes = [{"label": label, "box": [left, top, 4, 4]}]  # in pixels
        (root / "source" / f"{k}.boxes.json").write_text(json.dumps(boxes))
    run_out(import_pictures(str(root / "source"), root / "data", held_out=0))
    return Dataset.open(root / "data")


@pytest.mark.slow
def test_it_paints_what_it_is_told_where_it_is_told(rectangles: Dataset, tmp_path: Path) -> None:
    small = DiffusionRecipe(
        pixels=Pixels(size=8, flip=True),
        model=ModelConfig(
            denoiser=unet.Config(channels=32, multipliers=(1,), blocks=1, attention=(1,), head_width=16),
            conditions={"boxes": layout.Config(width=16, paints=4)},
        ),
        train=TrainConfig(budget="120steps", batch=16, lr=5e-3, warmup=10, ema=0.05, precision="fp32"),
    )
    run_out(train_diffusion(small, rectangles, None, tmp_path / "run"))
    model = load_model(tmp_path / "run" / "model")
    places = [("red", 0, 4), ("red", 4, 0), ("blue", 0, 0), ("blue", 4, 4)]
    rows = [
        {"boxes": json.dumps([{"label": label, "box": [left / 8, top / 8, 0.5, 0.5]}])}
        for label, left, top in places
    ]
    settings = settings_for(model, {"steps": 12, "seed": 1, "guidance": 2.0})
    pictures = from_pixels(generate(model, rows * 3, settings))
    for index, picture in enumerate(pictures):
        label, left, top = places[index % 4]
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[top : top + 4, left : left + 4] = True
        wanted = from_pixels(torch.tensor(COLOURS[label]))
        assert (picture[:, inside].mean(1) - wanted).abs().max() < 0.5, (index, "the right thing")
        assert picture[:, ~inside].mean() > 0.6, (index, "and white around it")


def test_a_recipe_for_boxes_needs_data_with_boxes(dataset: Dataset, tmp_path: Path) -> None:
    recipe = layout_ldm.recipe().model_copy(update={"pixels": Pixels(size=16)})
    with pytest.raises(UserError, match="no column 'boxes', which a layout needs"):
        run_out(train_diffusion(recipe, dataset, None, tmp_path / "run"))


def test_the_real_form_is_the_published_network() -> None:
    """Channels 128; 1, 2, 3, 4; cross-attention of width 512 to the boxes, three blocks deep."""
    config = layout_ldm.published().model
    assert config.conditions["boxes"].width == 512
    with torch.device("meta"):
        network = config.denoiser.build(channels=3, tokens=512)
    assert sum(p.numel() for p in network.parameters()) == 246_277_379
    from carrara.denoisers.unet_blocks import SpatialTransformer

    transformers = [m for m in network.modules() if isinstance(m, SpatialTransformer)]
    assert len(transformers) == 3 * (2 + 3) + 1
