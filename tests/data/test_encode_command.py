"""`carrara data encode` as a user runs it, and a training that mixes what it stored."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import load_autoencoder
from carrara.config import parse
from carrara.dataset.dataset import Dataset
from carrara.dataset.latents import encoded, measured_scale, moments_of, variants
from carrara.dataset.loader import Loaded
from carrara.errors import UserError
from carrara.tensors import sample_noise
from carrara.training.batches import Feed, LatentColumns
from carrara.training.diffusion_task import DiffusionTask
from carrara.training.recipe import DiffusionRecipe
from conftest import Command, Trained, recipe_file, small_diffusion


@pytest.mark.slow
def test_variants_are_encoded_once(carrara: Command, trained: Trained) -> None:
    first = carrara("data", "encode", trained.dataset.path, "--with", trained.autoencoder, "--flip")
    assert first.status == 0, first.err
    assert "encoded: 24 pictures, centre in latent_" in first.out
    assert "centre+flip in latent_" in first.out
    again = carrara("data", "encode", trained.dataset.path, "--with", trained.autoencoder / "model", "--flip")
    assert again.status == 0
    assert "nothing to do: encoded already: 24 pictures" in again.out
    square = carrara("data", "encode", trained.dataset.path, "--with", trained.autoencoder, "--crops", 3)
    assert "all pictures are square" in square.out


@pytest.mark.slow
def test_mistakes_are_one_line(carrara: Command, trained: Trained, tmp_path: Path) -> None:
    data = trained.dataset.path
    assert "there is no data set at" in carrara("data", "encode", "nowhere", "--with", data).refusal
    assert "there is no model at" in carrara("data", "encode", data, "--with", "nowhere").refusal
    assert "is no autoencoder" in carrara("data", "encode", data, "--with", data).refusal
    assert "--with" in carrara("data", "encode", data).refusal
    crops = carrara("data", "encode", data, "--with", trained.autoencoder, "--crops", 2)
    assert "crops is 2; expected 1" in crops.refusal
    (tmp_path / "source").mkdir()
    for k in range(3):
        page = Image.fromarray(np.full((16, 16), k, np.uint16))
        page.save(tmp_path / "source" / f"{k}.tif", save_all=True, append_images=[page] * 4)
    assert carrara("data", "import", "source", "stacks").status == 0
    stacks = carrara("data", "encode", "stacks", "--with", trained.autoencoder)
    assert "3 of the 3 pictures in stacks cannot become the 3 channels" in stacks.refusal


class Nothing(nn.Module):
    """A denoiser that says zero."""

    def forward(self, z: torch.Tensor, t: torch.Tensor, context: Any) -> torch.Tensor:
        return torch.zeros_like(z)


def test_training_draws_a_variant_for_each_sample_by_its_seed() -> None:
    recipe = DiffusionRecipe(flip=True)
    scale = LatentScale(torch.zeros(2), torch.ones(2))
    task = DiffusionTask(
        recipe,
        Nothing(),
        nn.ModuleDict(),
        latents=LatentColumns(["a", "b"], (False, True)),
        scale=scale,
        words={},
        device=torch.device("cpu"),
    )
    assert task.columns == ("a", "b")
    seeds = np.arange(400, dtype=np.uint64)
    columns = {
        name: torch.cat([torch.full((400, 2, 1, 1), value), torch.zeros(400, 2, 1, 1)], 1).half()
        for name, value in (("a", 1.0), ("b", 2.0))
    }
    batch = Loaded(seeds.astype(np.int64), 0, seeds, columns)
    latents, mirrored = task.raw(batch, [int(s) for s in seeds])
    drawn = latents[:, 0, 0, 0]
    assert torch.equal(mirrored, drawn == 2)
    assert set(drawn.tolist()) == {1.0, 2.0}
    assert 160 < int((drawn == 1).sum()) < 240
    few = {name: values[100:110] for name, values in columns.items()}
    batch = Loaded(seeds[100:110].astype(np.int64), 0, seeds[100:110], few)
    assert torch.equal(task.raw(batch, list(range(100, 110)))[0][:, 0, 0, 0], drawn[100:110])


class Halves(TorchDispatchMode):
    """Counts the half floats that become floats."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float16:
            self.count += args[0].numel()
        return result


@pytest.mark.parametrize("number", [1, 6])
def test_only_the_variant_that_was_drawn_becomes_floats(number: int) -> None:
    names = [str(k) for k in range(number)]
    scale = LatentScale(torch.zeros(2), torch.ones(2))
    task = DiffusionTask(
        DiffusionRecipe(flip=True),
        Nothing(),
        nn.ModuleDict(),
        latents=LatentColumns(names, [False] * number),
        scale=scale,
        words={},
        device=torch.device("cpu"),
    )
    seeds = np.arange(50, dtype=np.uint64)
    columns = {name: torch.randn(50, 4, 3, 3).half() for name in names}
    with Halves() as halves:
        raw, _ = task.raw(Loaded(seeds.astype(np.int64), 0, seeds, columns), [int(s) for s in seeds])
    assert halves.count == 50 * 4 * 3 * 3
    noise = sample_noise([int(s) for s in seeds], (2, 3, 3), stream=1)
    possible = torch.stack([c[:, :2].float() + c[:, 2:].float() * noise for c in columns.values()])
    assert (possible == raw).flatten(2).all(2).any(0).all()  # bit for bit one of the variants


def test_the_scale_is_measured_over_all_variants(carrara: Command, trained: Trained) -> None:
    model = load_autoencoder(trained.autoencoder / "model")
    recipe = DiffusionRecipe(flip=True)
    assert (
        carrara("data", "encode", trained.dataset.path, "--with", trained.autoencoder, "--flip").status == 0
    )
    dataset = Dataset.open(trained.dataset.path)
    columns = encoded(dataset, model, variants(True, 1))
    assert columns is not None
    assert len(columns) == 2
    feed = Feed(recipe, dataset, model)
    assert list(feed.latents().held_out.values()) == columns
    both = torch.cat(
        [
            batch.double()
            for column in columns
            for batch in moments_of(dataset, column, dataset.indices("train"))
        ]
    )
    found = feed.scaled().scale
    assert found is not None
    assert torch.allclose(found.mean.double(), both[:, :4].mean((0, 2, 3)), atol=1e-5)
    alone = Feed(DiffusionRecipe(), dataset, model).measured()
    assert not torch.equal(alone.mean, found.mean)
    assert Feed(recipe, dataset, replace(model, scale=None)).scale_note() is None  # it came without one
    assert Feed(recipe, dataset, model.with_scale(found)).scale_note() is None
    far = LatentScale(found.mean, found.std * 3)
    assert "does not fit this data" in str(Feed(recipe, dataset, model.with_scale(far)).scale_note())
    with pytest.raises(
        UserError, match="is not encoded with this autoencoder yet; see `carrara data encode`"
    ):
        Feed(DiffusionRecipe(flip=True, crops=3), dataset, model).latents()


def test_the_first_scale_stays_with_the_autoencoder(
    carrara: Command, trained: Trained, tmp_path: Path
) -> None:
    fresh = replace(load_autoencoder(trained.autoencoder / "model"), scale=None)
    fresh.save(tmp_path / "m", {"recipe.toml": "x = 1\n"})
    assert load_autoencoder(tmp_path / "m").scale is None
    assert carrara("data", "encode", trained.dataset.path, "--with", "m").status == 0
    kept = load_autoencoder(tmp_path / "m")
    dataset = Dataset.open(trained.dataset.path)
    columns = encoded(dataset, kept, variants(False, 1))
    assert columns is not None
    found = measured_scale(dataset, columns)
    assert kept.scale is not None
    torch.testing.assert_close(kept.scale.std, found.std)
    assert kept.scale.std.min() > 0
    assert kept.hash == fresh.hash
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "hashes.json", "model.toml", "passport.json", "recipe.toml", "weights.safetensors",
    ]  # fmt: skip


def test_a_recipe_for_pixels_has_no_variants() -> None:
    for change in ({"flip": True}, {"crops": 3}):
        with pytest.raises(UserError, match=r"'flip' and 'crops' are for latents; .* 'pixels.flip'"):
            parse(DiffusionRecipe, {"pixels": {}, **change}, where="recipe")
    with pytest.raises(UserError, match="crops"):
        parse(DiffusionRecipe, {"crops": 2}, where="recipe")


@pytest.mark.slow
def test_training_encodes_what_it_lacks(
    carrara: Command, pictures: Path, trained: Trained, tmp_path: Path
) -> None:
    assert carrara("data", "import", pictures, "data").status == 0
    recipe = small_diffusion("3steps").model_copy(update={"flip": True})
    file = recipe_file(recipe, tmp_path / "mine.toml")
    done = carrara("train", file, "data", "--autoencoder", trained.autoencoder, "--out", "run")
    assert done.status == 0, done.err
    assert "latents centre+flip  100%  24 of 24 pictures" in done.out
    model = load_autoencoder(trained.autoencoder / "model")
    assert encoded(Dataset.open(tmp_path / "data"), model, variants(True, 1)) is not None
