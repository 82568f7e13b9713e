"""The identity, which is no autoencoder: the latent is the picture itself, so that diffusion happens in pixels (Ho
et al. 2020)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from carrara.autoencoders.point import PointEncoding
from carrara.config import Config as Base


class Config(Base):
    """Pixels as they are; nothing to train."""

    kind: Literal["identity"] = "identity"
    image_channels: int = Field(3, ge=1, le=4096, description="Channels of the pictures.")

    def build(self) -> Autoencoder:
        """The autoencoder; it has no weights."""
        return Autoencoder(self)


class Autoencoder(nn.Module):
    """encode(image [b c h w] in [-1, 1]) -> PointEncoding of the same; decode(latent) -> the same."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channels, self.factor = config.image_channels, 1
        # Pixels end at -1 and 1, so a sampler clips every estimate there, as the code of Ho et al. 2020 does:
        # without it small errors in pure noise, divided by alpha = 0.006, become flat, glaring colours.
        self.limit = 1.0

    def encode(self, image: Tensor) -> PointEncoding:
        """The image as its own latent."""
        return PointEncoding(image)

    def decode(self, latent: Tensor) -> Tensor:
        """The latent as an image, not clipped."""
        return latent
