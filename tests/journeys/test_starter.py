"""The model that comes with Carrara: small enough, says what it is, and draws what it is asked for."""

from pathlib import Path

import numpy as np
import torch

import carrara as library
from carrara.dataset.dataset import Dataset
from carrara.generation.model import Model
from carrara.generation.png import read_recipe
from carrara.generation.sample import Settings, generate
from carrara.importing.importing import import_pictures
from carrara.metrics.reconstruction import nearest_picture
from conftest import Here, run_out

STARTER = Path(library.__file__).with_name("starter")


def test_it_is_small_and_says_where_it_comes_from() -> None:
    assert sum(file.stat().st_size for file in STARTER.rglob("*") if file.is_file()) <= 12e6
    model = library.load(STARTER)
    assert isinstance(model, Model)
    assert model.passport["licences"] == ["CC-BY-4.0"]
    assert model.passport["measured"]["obeyed"] >= 0.97
    assert all(parameter.dtype == torch.float32 for parameter in model.network.parameters())


def test_it_is_named_by_its_name(here: Here, tmp_path: Path) -> None:
    assert "carrara sample starter" in here("sample").refusal
    made = here("sample", "starter", "red heart", "--count", 2, "--steps", 2, "--out", "p")
    assert made.status == 0, made.err
    files = sorted((tmp_path / "p").glob("*.png"))
    assert [read_recipe(file)["caption"] for file in files] == ["red heart"] * 2
    (tmp_path / "starter").mkdir()  # a folder of the user's own comes first
    assert here("sample", "starter", "red heart").status == 2


def test_prompts_in_four_languages_are_obeyed(tmp_path: Path) -> None:
    run_out(import_pictures("emoji", tmp_path / "data", held_out=0.0))
    data = Dataset.open(tmp_path / "data")
    rows = data.indices("train")
    picked = np.random.default_rng(1).choice(len(rows), 12, replace=False)
    languages = ("en", "de", "zh", "fr")
    captions = data.take(rows[picked], [f"caption_{language}" for language in languages])
    prompts = [captions[f"caption_{languages[k % 4]}"][k] for k in range(len(picked))]
    model = library.load(STARTER)
    assert isinstance(model, Model)
    made = generate(model, [{"caption": prompt} for prompt in prompts], Settings(seed=3, steps=12))
    nearest = nearest_picture(made, data.pictures(rows, model.size))
    right = np.mean([found == wanted for found, wanted in zip(nearest, picked, strict=True)])
    assert right >= 10 / 12, list(zip(prompts, nearest, picked, strict=True))
