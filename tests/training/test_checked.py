"""What would stop a training in the middle is said before it begins, also where it begins from a model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carrara.conditions import image, label, layout
from carrara.conditions.condition import Latent
from carrara.dataset.dataset import Dataset
from carrara.denoisers import unet
from carrara.errors import UserError
from carrara.generation.model import ModelConfig
from carrara.importing.importing import import_pictures
from carrara.training.condition_columns import TrainingRows, checked, learned, reads_of
from carrara.training.recipe import DiffusionRecipe, Pixels, TrainConfig, ValidationConfig
from carrara.training.stages import train_diffusion
from conftest import Here, Trained, run_out, write_pictures

MAPS = image.Config(shows="map", classes=3)


def latent() -> Latent:
    return Latent(3, 1, 3, 8, lambda picture: picture)


def table(root: Path, *, maps: dict[int, int] | None = None) -> Dataset:
    """Twelve pictures; the last two are held out, and alone have the class "bird". ``maps``: picture to class."""
    source = root / "source"
    source.mkdir(parents=True)
    lines = []
    for k in range(12):
        pixels = np.full((8, 8, 3), 20 * k, np.uint8)
        Image.fromarray(pixels).save(source / f"{k}.png")
        name = "bird" if k >= 10 else ("cat", "dog")[k % 2]
        boxes = [{"label": name, "box": [1, 1, 4, 4]}]
        (source / f"{k}.boxes.json").write_text(json.dumps(boxes))
        lines.append({"file_name": f"{k}.png", "label": name, "split": "held_out" if k >= 10 else "train"})
    for k, number in (maps or {}).items():
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(source / f"{k}.map.png")
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run_out(import_pictures(str(source), root / "data"))
    return Dataset.open(root / "data")


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return table(tmp_path_factory.mktemp("animals"))


def notes(data: Dataset, part: Any, config: Any = None) -> list[str]:
    reads = reads_of(ModelConfig(conditions={"it": config or part}), data)
    return list(checked({"it": part}, data, reads=reads))


def test_what_only_held_out_pictures_have_is_counted(animals: Dataset) -> None:
    (said,) = notes(animals, label.Config())
    assert said.startswith("it: 2 held-out pictures have a class that is not learned, 'bird' for example")
    (said,) = notes(animals, layout.Config())
    assert said.startswith("it: 2 boxes of held-out pictures have a label that is not learned, 'bird'")
    assert notes(animals, label.Config(classes=("bird", "cat", "dog"))) == []
    assert notes(animals, layout.Config(phrases=layout.Phrases(vocabulary=300))) == []


def test_a_class_that_only_held_out_pictures_have_is_none_to_validation(
    animals: Dataset, tmp_path: Path
) -> None:
    recipe = DiffusionRecipe(
        pixels=Pixels(size=8, flip=False),
        model=ModelConfig(
            denoiser=unet.Config(channels=8, multipliers=(1,), blocks=1, attention=(1,), head_width=8),
            conditions={"label": label.Config(width=8)},
        ),
        train=TrainConfig(budget="1steps", batch=2, warmup=1),
        validation=ValidationConfig(looks=1, pictures=2, samples=2, steps=1),
    )
    run_out(train_diffusion(recipe, animals, None, tmp_path / "run"))
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 1


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (label.Config(), "the data has a class 'cat', which is none of the classes; did you mean 'cot'"),
        (layout.Config(), "the data has boxes of 'cat', which the model does not know; did you mean 'cot'"),
    ],
    ids=["label", "layout"],
)
def test_a_model_to_begin_from_knows_its_classes_only(animals: Dataset, config: Any, says: str) -> None:
    encoder: Any = learned(ModelConfig(conditions={"it": config}), animals, latent(), 0)["it"]
    assert len(notes(animals, encoder, config)) == 1
    others = ["cot", "dog", "bird"]
    stranger = (
        label.LabelEncoder(config, others)
        if isinstance(config, label.Config)
        else layout.LayoutEncoder(config, latent(), others, None)
    )
    with pytest.raises(UserError, match=says):
        notes(animals, stranger, config)


def test_pictures_without_a_map_are_counted_and_a_class_beyond_is_named(tmp_path: Path) -> None:
    some = table(tmp_path / "some", maps=dict.fromkeys(range(9), 1))
    with pytest.raises(UserError, match="3 of 12 pictures have nothing in the column 'map'"):
        notes(some, MAPS)
    wrong = table(tmp_path / "wrong", maps={**dict.fromkeys(range(12), 2), 4: 255, 7: 99})
    with pytest.raises(
        UserError, match=r"the map of '7.png' has the class 99; with classes = 3 expected 0 to 2"
    ):
        notes(wrong, MAPS)
    assert notes(wrong, image.Config(shows="map", classes=100)) == []
    assert notes(wrong, image.Config()) == []
    assert [name for name, _ in TrainingRows(wrong).numbers("map", 3)] == ["0.png", "6.png", "11.png"]


def test_a_model_with_captions_does_not_go_on_without_them(
    here: Here, trained: Trained, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "mine", captions=False)
    run_out(import_pictures("mine", tmp_path / "data"))
    refusal = here(
        "train", trained.diffusion / "recipe.toml", "data", "--start", trained.diffusion, "--out", "run"
    ).refusal
    assert refusal == "the model to begin from needs caption, for which the data has no column"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", None, None], "2 of 3 pictures to train on have no class in the column 'label'"),
        (["cat", "dog"], ""),
    ],
)
def test_pictures_without_a_class_are_counted(labels: list[str | None], message: str) -> None:
    data: Any = SimpleNamespace(
        names=["label"], values=lambda column: iter(labels), held_out=lambda column: iter(())
    )
    notes = label.Config().check(data)
    assert "".join(notes).startswith(message)
    assert bool(notes) == bool(message)
    nothing: Any = SimpleNamespace(names=["label"], values=lambda column: iter([None]))
    with pytest.raises(UserError, match="put each class into a folder of its own"):
        label.Config().reads(nothing)
