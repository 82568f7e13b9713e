"""Pictures of several ratios in buckets, one resolution after another, stopped anywhere: the same weights."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from carrara.conditions import label
from carrara.dataset.dataset import Dataset
from carrara.dataset.latents import encode, variants
from carrara.denoisers import dit, unet
from carrara.generation.model import ModelConfig, load_model
from carrara.generation.sample import Settings, generate
from carrara.importing.importing import import_pictures
from carrara.training import stages
from carrara.training.batches import Feed
from carrara.training.devices import Placement
from carrara.training.recipe import DiffusionRecipe, Pixels, Resolution, TrainConfig, ValidationConfig
from carrara.training.stages import train_autoencoder, train_diffusion
from conftest import Here, run_out, small_autoencoder

SIDES = [(32, 32), (44, 24), (24, 44), (60, 30)]  # width and height
NETWORKS: dict[str, Any] = {
    "unet": unet.Config(channels=8, multipliers=(1, 2), blocks=1, attention=(2,), head_width=8, dropout=0.2),
    "dit": dit.Config(patch=2, width=16, depth=2, heads=2, positions="rotary"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Thirty-two pictures of four ratios and two classes."""
    folder = tmp_path_factory.mktemp("ratios")
    lines = []
    for number in range(32):
        size, name = SIDES[number % 4], f"{number}.png"
        Image.new("RGB", size, (number * 7, 255 - number * 7, 128)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "label": "ab"[number % 2]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    path = tmp_path_factory.mktemp("ratios-data") / "data"
    run_out(import_pictures(str(folder), path, held_out=0.1))
    return Dataset.open(path)


def recipe(network: str, **changes: Any) -> DiffusionRecipe:
    return DiffusionRecipe(
        pixels=Pixels(size=32),
        ratio=2.0,
        resolutions=(Resolution(size=16, share=1), Resolution(size=32, share=2)),
        model=ModelConfig(denoiser=NETWORKS[network], conditions={"label": label.Config(width=8)}),
        train=TrainConfig(budget="6steps", batch=4, warmup=2, posthoc=(0.05, 0.1), **changes),
        validation=ValidationConfig(looks=2, pictures=2, samples=1, steps=1),
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_stopped_in_the_middle_the_weights_are_the_same(network: str, data: Dataset, tmp_path: Path) -> None:
    run_out(train_diffusion(recipe(network), data, None, tmp_path / "whole"))
    for stop in (1, 2, 4):
        reports = train_diffusion(recipe(network), data, None, tmp_path / "parts")
        for report in reports:
            if getattr(report, "step", 0) >= stop:
                reports.close()  # type: ignore[attr-defined]
                break
    run_out(train_diffusion(recipe(network), data, None, tmp_path / "parts"))
    whole, parts = (load_model(tmp_path / name / "model") for name in ("whole", "parts"))
    assert whole.hash == parts.hash
    assert whole.size == 32
    settings = Settings(steps=2, width=48, height=24)
    assert generate(parts, [{"label": "a"}], settings).shape == (1, 3, 24, 48)


def test_what_decides_the_first_batch_is_computed_once(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Counter[str]()

    def counted(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def once(*given: Any, **named: Any) -> Any:
            counts[name] += 1
            return plain(*given, **named)

        monkeypatch.setattr(owner, name, staticmethod(once) if owner is Placement else once)

    for owner, name in ((stages, "reads_of"), (Feed, "__init__"), (Placement, "choose")):
        counted(owner, name)
    reports = train_diffusion(recipe("unet"), data, None, tmp_path / "run")
    next(report for report in reports if getattr(report, "losses", None))
    reports.close()
    assert counts == {"reads_of": 1, "__init__": 1, "choose": 1}


def test_batches_are_of_one_size_and_the_sizes_grow(data: Dataset) -> None:
    chosen = recipe("unet")
    pixels = chosen.pixels
    assert pixels is not None
    feed = Feed(chosen, data, pixels.autoencoder())
    used = [0.0]
    batches = feed.batches(["image", "label"], lambda: used[0], 0)
    sizes = []
    for step in range(30):
        used[0] = step / 30
        batch = next(batches)
        assert batch.seen == 4 * step
        image = torch.as_tensor(batch.columns["image"])
        sizes.append(tuple(image.shape[2:]))
        shapes = data.take(batch.rows, ["width", "height"])
        for width, height in zip(shapes["width"], shapes["height"], strict=True):
            assert (width > height) == (image.shape[3] > image.shape[2])
    batches.close()
    early, late = {h * w for h, w in sizes[:10]}, {h * w for h, w in sizes[10:]}
    assert max(early) <= 16 * 16 * 1.3
    assert min(late) >= 32 * 32 * 0.7
    assert len(set(sizes[10:])) >= 3


def test_latents_in_buckets_are_encoded_once_and_trained_on(data: Dataset, tmp_path: Path) -> None:
    run_out(train_autoencoder(small_autoencoder("2steps"), data, tmp_path / "a"))
    from carrara.autoencoders.stored import load_autoencoder

    stored = load_autoencoder(tmp_path / "a" / "model")
    chosen = recipe("unet").model_copy(
        update={"pixels": None, "resolutions": (Resolution(size=16), Resolution(size=32)), "flip": True}
    )
    feed = Feed(chosen, data, stored)
    for needed in feed.needed():
        for variant in variants(True, 1):
            run_out(
                encode(data, stored, torch.device("cpu"), variant=variant, rows=needed.rows, size=needed.size)
            )
    scale = feed.scaled().scale
    assert scale is not None
    assert scale.std.min() > 0
    run_out(train_diffusion(chosen, data, stored, tmp_path / "d"))
    model = load_model(tmp_path / "d" / "model")
    assert model.size == 32, "it works at the last resolution, not at the autoencoder's"
    assert Feed(chosen, data, stored).latents().held_out.keys() == {"latent.0", "latent.1"}


def test_training_goes_on_from_a_model(here: Here, data: Dataset, tmp_path: Path) -> None:
    from conftest import recipe_file

    plain = recipe("unet").model_copy(update={"resolutions": (), "ratio": 1.0})
    file = recipe_file(plain, tmp_path / "r.toml")
    assert here("train", file, data.path, "--out", tmp_path / "first", "--budget", "2steps").status == 0
    more = ("train", file, data.path, "--start", tmp_path / "first", "--budget", "1steps")
    assert here(*more, "--out", tmp_path / "more", "--set", "train.lr=1e-9").status == 0
    first, then = (load_model(tmp_path / name / "model") for name in ("first", "more"))
    assert then.passport["start"] == first.hash
    worst = max(
        float((a - b).detach().abs().max())
        for a, b in zip(first.network.parameters(), then.network.parameters(), strict=True)
    )
    assert worst < 1e-6, "so small a step leaves the weights where they were"
    wrong = here(*more, "--out", tmp_path / "x", "--set", "model.parameterization=eps")
    assert wrong.status == 2
    assert "omit the changes of model" in wrong.refusal
    assert not (tmp_path / "x").exists()
