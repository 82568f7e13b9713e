"""Checks of a recipe against its data and the model that it begins from, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from carrara.dataset.channels import check_channels
from carrara.errors import UserError
from carrara.metrics.pretrained_weights import VISIBLE_CHANNELS

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.dataset import Dataset
    from carrara.generation.model import Model
    from carrara.training.recipe import AutoencoderRecipe, DiffusionRecipe


def check_pictures(dataset: Dataset) -> None:
    """UserError where the data set has no picture to train on. Fewer than a batch repeat within one."""
    if len(dataset.indices("train")) == 0:
        raise UserError(f"{dataset.path} has no pictures to train on")


def check_autoencoder(
    recipe: AutoencoderRecipe, module: Any, dataset: Dataset, start: StoredAutoencoder | None
) -> None:
    """UserError where this network cannot be trained on these pictures by this recipe.

    Codes that exist already may be more than the data has vectors.
    """
    check_channels(dataset, recipe.network.image_channels, recipe.bits)
    pictures = len(dataset.indices("train"))
    kind = recipe.network.kind
    if recipe.size % module.factor:
        raise UserError(f"size is {recipe.size}; this autoencoder needs a multiple of {module.factor}")
    if not list(module.parameters()):
        raise UserError(
            f"the autoencoder {kind!r} has nothing to train; for diffusion in pixels see `carrara recipe ddpm`"
        )
    if pictures < recipe.train.batch:
        raise UserError(
            f"train.batch is {recipe.train.batch}, but {dataset.path} has {pictures} pictures to train on; "
            f"take --set train.batch={pictures} or fewer"
        )
    channels = recipe.network.image_channels
    if recipe.losses.lpips and channels not in VISIBLE_CHANNELS:
        raise UserError(
            f"losses.lpips looks at 1, 3 or 4 channels, these pictures have {channels}; leave it at 0"
        )
    vectors = pictures * (recipe.size // module.factor) ** 2
    if kind == "vq" and module.codes > vectors and not start:
        raise UserError(
            f"the codebook has {module.codes} codes for {vectors} vectors in all ({pictures} pictures of "
            f"{(recipe.size // module.factor) ** 2}); take --set autoencoder.codes={max(2, vectors // 16)} or fewer"
        )


def check_start(recipe: DiffusionRecipe, start: Model, autoencoder: StoredAutoencoder) -> None:
    """UserError where a model to begin from is not that of the recipe, or learned latents of another autoencoder."""
    if recipe.model != start.config:
        raise UserError("with --start the model is that one: omit the changes of model.…, or --start")
    if start.autoencoder.hash != autoencoder.hash:
        raise UserError(
            "the model to begin from was trained on the latents of another autoencoder; "
            "omit --autoencoder to use its own"
        )
