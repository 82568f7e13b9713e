"""What a run keeps: decoded pictures in memory, and files on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.conditions.condition import Latent
from carrara.dataset.loader import IN_MEMORY
from carrara.embedders.embed_dataset import embedded
from carrara.errors import UserError
from carrara.generation.model import latent_of
from carrara.training.batches import check_size, multiple_of
from carrara.training.contrastive_task import Pairs
from carrara.training.recipe import AutoencoderRecipe, ContrastiveRecipe, DiffusionRecipe

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.training.memory_estimate import Imagined


_CHECKPOINTS = 3  # besides those kept: the best, that before the learning rate fell, the one being written


def kept_in_memory(subject: Subject) -> int:
    """Bytes of decoded pictures that the loader keeps in RAM, where it feeds pictures; or of vectors."""
    recipe, dataset = subject.recipe, subject.dataset
    if dataset is None or (isinstance(recipe, DiffusionRecipe) and not recipe.pixels):
        return 0
    if isinstance(recipe, ContrastiveRecipe):
        pairs = Pairs(recipe, dataset)
        numbers = sum(embedder.width for embedder, _ in pairs.needed())
        size = len(pairs.rows("train")) * numbers * 2
        return size if size <= IN_MEMORY else 0
    channels = (
        recipe.network.image_channels
        if isinstance(recipe, AutoencoderRecipe)
        else recipe.pixels.channels
        if recipe.pixels
        else 3
    )
    size = len(dataset.indices("train")) * int(channels) * subject.size**2
    return size if size <= IN_MEMORY else 0


def on_disk(subject: Subject, step: Imagined) -> dict[str, int]:
    """Bytes that the run will write, by what for."""
    recipe, config = subject.recipe, subject.recipe.train
    one = step.weights + step.averages + step.optimizer
    found = {"checkpoints": one * (config.keep + _CHECKPOINTS), "model": step.weights}
    if config.posthoc:
        found["snapshots"] = step.weights // 2 * len(config.posthoc) * config.snapshots
    if isinstance(recipe, DiffusionRecipe) and not recipe.pixels and subject.dataset and subject.latent:
        found["latents"] = _latents(recipe, subject.dataset, subject)
    if isinstance(recipe, ContrastiveRecipe) and subject.dataset:
        needed = Pairs(recipe, subject.dataset).needed()
        lacking = [embedder for embedder, of in needed if embedded(subject.dataset, embedder, of) is None]
        found["vectors"] = len(subject.dataset) * sum(embedder.width for embedder in lacking) * 2
    return found


def _latents(recipe: DiffusionRecipe, dataset: Dataset, subject: Subject) -> int:
    """Bytes of latents that are not there yet: a mean and a spread in 16 bits for each number and variant."""
    from carrara.dataset.latents import encoded, variants

    assert subject.latent is not None
    wanted = variants(recipe.flip, recipe.crops)
    if subject.autoencoder and encoded(dataset, subject.autoencoder, wanted) is not None:
        return 0
    side = subject.size // subject.latent.factor
    return len(dataset) * len(wanted) * 2 * subject.latent.channels * side**2 * 2


Recipe = AutoencoderRecipe | ContrastiveRecipe | DiffusionRecipe


@dataclass(frozen=True)
class Subject:
    """What is planned: a recipe with all that its networks are fitted to."""

    recipe: Recipe
    latent: Latent | None
    size: int
    dataset: Dataset | None = None
    autoencoder: StoredAutoencoder | None = None

    @staticmethod
    def of(
        recipe: Recipe,
        dataset: Dataset | None,
        autoencoder: StoredAutoencoder | None,
        latent: tuple[int, int, int] | None,
    ) -> Subject:
        """``latent`` [c h w] stands for an autoencoder of factor 8; UserError where neither is there but needed."""
        if isinstance(recipe, AutoencoderRecipe):
            return Subject(recipe, None, recipe.size, dataset)
        if isinstance(recipe, ContrastiveRecipe):
            return Subject(recipe, None, 0, dataset)
        if recipe.pixels:
            autoencoder = recipe.pixels.autoencoder()
        if autoencoder:
            size = recipe.resolutions[-1].size if recipe.resolutions else autoencoder.size
            check_size(size, multiple_of(recipe, autoencoder.module))
            channels = int(autoencoder.module.channels)  # type: ignore[arg-type]
            scale = autoencoder.scale or LatentScale(torch.zeros(channels), torch.ones(channels))
            autoencoder = replace(autoencoder, size=size, scale=scale)  # none is measured before training
            return Subject(recipe, latent_of(autoencoder), size, dataset, autoencoder)
        if latent is None:
            raise UserError(
                "this recipe works on latents: give its --autoencoder, or their shape as --latent, e.g. 4x64x64"
            )
        channels, height, width = latent
        if height != width:
            raise UserError(f"--latent is {channels}x{height}x{width}; expected a square one")

        def encode(image: Tensor) -> Tensor:
            return image.new_zeros(len(image), channels, image.shape[2] // 8, image.shape[3] // 8)

        made_up = Latent(channels, 8, 3, 8, encode)
        check_size(8 * height, multiple_of(recipe, made_up))
        return Subject(recipe, made_up, 8 * height, dataset)
