"""No autoencoder: the latent is the picture itself, so that diffusion happens in pixels (Ho et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from carrara.config import Config as Base


class Config(Base):
    """Pixels as they are; nothing to train."""

    kind: Literal["identity"] = "identity"
    image_channels: int = Field(3, ge=1, description="Channels of the pictures.")

    def build(self) -> Autoencoder:
        """The autoencoder; it has no weights."""
        return Autoencoder(self)


@dataclass(frozen=True)
class Encoding:
    """A single point, ``mean`` [b c h w]: the picture."""

    mean: Tensor

    @property
    def logvar(self) -> Tensor:
        """-inf everywhere: no spread."""
        return torch.full_like(self.mean, -torch.inf)

    def mode(self) -> Tensor:
        """The picture."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """The picture, whatever the noise."""
        return self.mean

    def penalty(self) -> Tensor:
        """Zero for every picture: [b]."""
        return self.mean.new_zeros(len(self.mean))


class Autoencoder(nn.Module):
    """encode(image [b c h w] in [-1, 1]) -> Encoding of the same; decode(latent) -> the same."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channels, self.factor = config.image_channels, 1
        # Pixels end at -1 and 1, so a sampler clips every estimate there, as the code of Ho et al. 2020 does:
        # without it small errors in pure noise, divided by alpha = 0.006, become flat, glaring colours.
        self.limit = 1.0

    def encode(self, image: Tensor) -> Encoding:
        """The image as its own latent."""
        return Encoding(image)

    def decode(self, latent: Tensor) -> Tensor:
        """The latent as an image, not clipped."""
        return latent
