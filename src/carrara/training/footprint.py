"""What a run keeps: decoded pictures in memory, and files on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from carrara.data.loader import IN_MEMORY
from carrara.evaluation.embedders.encode import embedded
from carrara.training.autoencoding import AutoencoderRecipe
from carrara.training.contrasting import ContrastiveRecipe, Pairs
from carrara.training.diffusing import DiffusionRecipe

if TYPE_CHECKING:
    from carrara.data.table import Dataset
    from carrara.training.imagined import Imagined
    from carrara.training.preflight import Subject

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
    from carrara.data.latents import encoded, variants

    assert subject.latent is not None
    wanted = variants(recipe.flip, recipe.crops)
    if subject.autoencoder and encoded(dataset, subject.autoencoder, wanted) is not None:
        return 0
    side = subject.size // subject.latent.factor
    return len(dataset) * len(wanted) * 2 * subject.latent.channels * side**2 * 2
