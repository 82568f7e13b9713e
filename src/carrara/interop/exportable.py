"""What a recipe's model can be exported to, said before it is trained: by the exporters' own refusals."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from carrara.autoencoders import kl
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.config import Config
from carrara.errors import UserError
from carrara.generation.model import Model, ModelConfig, build_network
from carrara.interop.diffusers import autoencoder as diffusers_autoencoder
from carrara.interop.diffusers import pipeline_export
from carrara.training.recipe import AutoencoderRecipe, DiffusionRecipe


class LatentShape(Config):
    """The shape of a latent that stands for an autoencoder of factor 8."""

    channels: int = Field(ge=1, le=4096, description="Numbers at each position.")
    height: int = Field(ge=1, le=2048, description="Positions, 8 pixels each.")
    width: int = Field(ge=1, le=2048, description="Positions, 8 pixels each.")


def exportable(
    recipe: AutoencoderRecipe | DiffusionRecipe,
    autoencoder: StoredAutoencoder | None,
    data: Any,
    *,
    start: Model | None = None,
) -> str:
    """One line. ``data`` are the `Columns` that conditions learn from; nothing big is built.

    A latent scale that is measured only in training counts as another for each channel; that of ``start``, a model
    to begin from, stays.
    """
    try:
        if isinstance(recipe, AutoencoderRecipe):
            with torch.device("meta"):
                module: nn.Module = recipe.network.build()
            stored = StoredAutoencoder(module, recipe.network, recipe.size, None, "", {})
            return _as(type(diffusers_autoencoder.described(stored)).__name__)
        if start:
            return _as(pipeline_export.check(start))
        worked_on = recipe.pixels.autoencoder() if recipe.pixels else autoencoder
        assert worked_on is not None
        if not recipe.pixels:
            channels = int(worked_on.module.channels)  # type: ignore[arg-type]
            measured = LatentScale(torch.zeros(channels), 1 + torch.arange(channels).float())
            worked_on = worked_on.with_scale(measured)
        return _as(pipeline_export.check(_sketch(recipe.model, worked_on, data)))
    except UserError as error:
        return f"not to diffusers: {str(error).removeprefix('diffusers cannot express it: ')}"


def stand_in(channels: int, size: int) -> StoredAutoencoder:
    """For latents of so many channels and pictures of ``size`` pixels the plainest autoencoder, without a number."""
    config = kl.Config(channels=32, multipliers=(1, 2, 4, 4), latent_channels=channels)
    with torch.device("meta"):
        return StoredAutoencoder(config.build(), config, size, None, "", {})


def _as(name: str) -> str:
    return f"as {name} of diffusers: carrara export RUN DEST"


def _sketch(config: ModelConfig, autoencoder: StoredAutoencoder, data: Any) -> Model:
    """The model without a number in it. UserError of a condition that cannot be exported, before it learns."""
    encoders = nn.ModuleDict()
    for name, condition in config.conditions.items():
        pipeline_export.check_condition(name, condition)
        encoders[name] = (
            condition.opened() if condition.kind == "pretrained_text" else condition.learn(data, None)
        )
    channels = int(autoencoder.module.channels)  # type: ignore[arg-type]
    with torch.device("meta"):
        network = build_network(config, encoders, channels)
    return Model(config, network, encoders.to("meta"), autoencoder, {})
