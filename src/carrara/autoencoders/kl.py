"""KL autoencoder: a continuous latent held loosely to a unit Gaussian (Kingma & Welling 2014; Rombach et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from carrara.autoencoders.trunk import Decoder, Encoder, TrunkConfig, check_size


class Config(TrunkConfig):
    """An autoencoder with a Gaussian latent."""

    kind: Literal["kl"] = "kl"
    image_channels: int = Field(3, ge=1, description="Channels of the pictures.")

    def build(self) -> Autoencoder:
        """The network, freshly initialised from torch's global generator."""
        return Autoencoder(self)


@dataclass(frozen=True)
class Encoding:
    """A diagonal Gaussian over raw latents, ``mean`` and ``logvar`` both [b c h w]."""

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        """The most likely latent."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise, ``noise`` standard normal and of the latent's shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def penalty(self) -> Tensor:
        """KL divergence to N(0, 1), summed over all elements of a picture: [b], in nats."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


class Autoencoder(nn.Module):
    """encode(image [b c H W] in [-1, 1]) -> Encoding; decode(latent [b c H/f W/f]) -> image."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channels, self.factor = config.latent_channels, config.factor
        self.encoder = Encoder(config, config.image_channels, 2 * config.latent_channels)
        self.decoder = Decoder(config, config.image_channels)
        pair = 2 * config.latent_channels
        self.to_moments = nn.Conv2d(pair, pair, 1) if config.projections else nn.Identity()
        self.from_latent = (
            nn.Conv2d(config.latent_channels, config.latent_channels, 1)
            if config.projections
            else nn.Identity()
        )

    def encode(self, image: Tensor) -> Encoding:
        """The posterior over raw latents; ValueError where a side is no multiple of the factor."""
        check_size(image, self.factor)
        mean, logvar = self.to_moments(self.encoder(image)).float().chunk(2, 1)
        return Encoding(mean, logvar.clamp(-30, 20))

    def decode(self, latent: Tensor) -> Tensor:
        """Raw latents to an image, roughly in [-1, 1], not clipped."""
        out: Tensor = self.decoder(self.from_latent(latent)).float()
        return out
