"""Stage one: an autoencoder learns to give its pictures back (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from carrara.config import Component, Config
from carrara.tensors import from_pixels, sample_noise, sample_uniform
from carrara.training.loop import TrainConfig
from carrara.training.losses import TERMS

if TYPE_CHECKING:
    from carrara.data.loader import Loaded

_NOISE, _FLIP = 1, 2  # streams of a sample's randomness


class AutoencoderRecipe(Config):
    """Everything that makes an autoencoder from a data set."""

    task: Literal["autoencoder"] = "autoencoder"
    size: int = Field(
        64, ge=8, description="Side of the pictures in pixels; they are scaled and cropped to it."
    )
    flip: bool = Field(True, description="Mirror half of the pictures.")
    autoencoder: Component("autoencoders") = Field(description="The network.")  # type: ignore[valid-type]
    l1: float = Field(1.0, ge=0, description="Weight of the mean absolute error.")
    l2: float = Field(2.0, ge=0, description="Weight of the mean squared error.")
    edges: float = Field(0.5, ge=0, description="Weight of the error between neighbours.")
    penalty: float = Field(
        1e-6, ge=0, description="Weight of the KL divergence, summed over a picture's latent."
    )
    train: TrainConfig = TrainConfig()


class AutoencoderTask:
    """Reconstruction plus the latent's penalty."""

    columns = ("image",)

    def __init__(self, recipe: AutoencoderRecipe, autoencoder: Any, device: torch.device) -> None:
        self.recipe, self.autoencoder, self.device = recipe, autoencoder, device
        self.modules: Mapping[str, nn.Module] = {"autoencoder": autoencoder}

    def losses(self, update: str, batch: Loaded) -> Mapping[str, Tensor]:
        """The recipe's terms, each times its weight."""
        pixels = batch.columns["image"]
        assert isinstance(pixels, Tensor)
        seeds = [int(s) for s in batch.seeds]
        image = from_pixels(pixels)
        if self.recipe.flip:
            mirrored = sample_uniform(seeds, stream=_FLIP) < 0.5
            image[mirrored] = image[mirrored].flip(-1)
        image = image.to(self.device).contiguous(memory_format=torch.channels_last)
        encoding = self.autoencoder.encode(image)
        noise = sample_noise(seeds, encoding.mode().shape[1:], stream=_NOISE).to(self.device)
        again = self.autoencoder.decode(encoding.sample(noise))
        terms = {
            name: getattr(self.recipe, name) * term(again, image)
            for name, term in TERMS.items()
            if getattr(self.recipe, name)
        }
        return terms | {"penalty": self.recipe.penalty * encoding.penalty().mean()}
