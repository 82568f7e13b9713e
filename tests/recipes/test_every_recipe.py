"""Every recipe trains on data that it is for; every published form builds, as large as was published."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from carrara.autoencoders import kl
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.dataset.dataset import Dataset
from carrara.generation.model import build_network, latent_of, load_model
from carrara.generation.sample import Settings, generate
from carrara.importing.importing import import_pictures
from carrara.recipes.catalogue import named, recipes
from carrara.training.recipe import AutoencoderRecipe, DiffusionRecipe
from carrara.training.stages import train_diffusion
from conftest import run_out, steps

CHANGES = [
    "train.budget=2steps",
    "train.batch=4",
    "train.accumulate=1",
    "validation={looks=1, pictures=2, samples=2, steps=1}",
]
DIFFUSION = [
    name for name in recipes() if not name.endswith(":published") and isinstance(named(name), DiffusionRecipe)
]
PUBLISHED = {  # the network's weights; DiT's without its table of 1001 classes and 256 fixed positions
    "class_dit:published": 675_129_632 - (1001 + 256) * 1152,
    "class_ldm:published": 400_920_579,
    "ddpm:published": 35_746_307,
    "inpainting_ldm:published": 387_245_827,
    "layout_ldm:published": 246_277_379,
    "semantic_ldm:published": 215_229_315,
    "superresolution_ldm:published": 113_622_563,
    "text_ldm:published": 872_300_484 + 2 * 1280 * (1280 + 1),  # and two layers for the mean of the words
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Scenes with captions, boxes and maps."""
    path = tmp_path_factory.mktemp("scenes") / "data"
    run_out(import_pictures("scenes", path, count=16, held_out=0.2))
    return Dataset.open(path)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Pictures in two folders, whose names are their classes."""
    folder = tmp_path_factory.mktemp("classes")
    lines = ["file_name,label"]
    for number in range(12):
        Image.new("RGB", (32, 32), (number * 20, 99, 255 - number * 20)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'dark' if number < 6 else 'light'}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    path = tmp_path_factory.mktemp("classes-data") / "data"
    run_out(import_pictures(str(folder), path, held_out=0.2))
    return Dataset.open(path)


@pytest.fixture(scope="module")
def autoencoder() -> StoredAutoencoder:
    """Thirty-two pixels to 4 x 8 x 8."""
    torch.manual_seed(0)
    config = kl.Config(
        channels=8, multipliers=(1,), blocks=1, patch=4, middle_attention=False, projections=False
    )
    return StoredAutoencoder.of(config.build(), config, 32, {})


@pytest.mark.parametrize("name", DIFFUSION)
def test_a_recipe_trains_is_saved_and_makes_pictures(
    name: str, data: Dataset, labelled: Dataset, autoencoder: StoredAutoencoder, tmp_path: Path
) -> None:
    recipe = named(name, CHANGES)
    assert isinstance(recipe, DiffusionRecipe)
    kinds = {c.kind for c in recipe.model.conditions.values()}
    if "pretrained_text" in kinds:
        pytest.skip("needs an encoder of others; tested beside its recipe")
    dataset = labelled if "label" in kinds else data
    stored = None if recipe.pixels else autoencoder
    reports = steps(train_diffusion(recipe, dataset, stored, tmp_path / "run"))
    assert [r.step for r in reports] == [1, 2]
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 1
    model = load_model(tmp_path / "run" / "model")
    made = generate(model, [{}], Settings(steps=2)) if not recipe.model.conditions else None
    if made is not None:
        assert made.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", [name for name in recipes() if name.endswith(":published")])
def test_a_published_form_is_as_large_as_was_published(name: str) -> None:
    recipe = named(name)
    if isinstance(recipe, AutoencoderRecipe):
        pytest.skip("their sizes are tested by themselves")
    shape = {"unet": (3, 4), "dit": (4, 8)}[recipe.model.denoiser.kind]
    if name == "text_ldm:published":
        shape = (4, 8)
    config = kl.Config(channels=8, multipliers=(1,), blocks=1, patch=shape[1], latent_channels=shape[0])
    if recipe.pixels:
        stored = recipe.pixels.autoencoder()
    else:
        scale = LatentScale(torch.zeros(shape[0]), torch.ones(shape[0]))
        stored = StoredAutoencoder.of(config.build(), config, 256, {}).with_scale(scale)
    latent = latent_of(stored)
    with torch.device("meta"):
        conditions = nn.ModuleDict({n: c.learn(Table(), latent) for n, c in recipe.model.conditions.items()})
        network = build_network(recipe.model, conditions, latent.channels)
    count = sum(p.numel() for p in network.parameters())
    assert count == PUBLISHED[name]


class Table:
    """What conditions learn from, for those that learn little."""

    captions = {"en": "caption_en"}  # noqa: RUF012
    names = ("caption_en", "label", "boxes", "map", "image", "width", "height")

    def values(self, column: str) -> list[str]:
        boxes = '[{"label": "a", "box": [0.1, 0.1, 0.5, 0.5]}]'
        return {"label": [str(n) for n in range(1000)], "boxes": [boxes]}.get(column, ["a word"])
