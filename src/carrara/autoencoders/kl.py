"""KL autoencoder: a continuous latent held loosely to a unit Gaussian (Kingma & Welling 2014; Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from carrara.autoencoders.reconstruction import Reconstruction
from carrara.autoencoders.trunk import Decoder, Encoder, TrunkConfig, check_size


class Config(TrunkConfig):
    """An autoencoder with a Gaussian latent."""

    LEARNING: ClassVar = frozenset({"kl"})
    kind: Literal["kl"] = "kl"
    image_channels: int = Field(3, ge=1, le=4096, description="Channels of the pictures.")
    kl: float = Field(
        1e-6, ge=0, description="Weight of the KL divergence: nats of a picture over the numbers it has."
    )

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
        self.channels, self.factor, self.kl = config.latent_channels, config.factor, config.kl
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

    def forward(self, image: Tensor, noise: Tensor) -> Reconstruction:
        """One training pass; ``noise`` [b c h w] draws the latent. Its term is kl.

        The divergence is divided by the numbers in a picture (C H W), as a reconstruction loss that is a mean over
        them is: so the published weight of 1e-6, which stood against a sum, keeps its meaning at every size.
        """
        encoding = self.encode(image)
        latent = encoding.sample(noise)
        divergence = encoding.penalty().mean() / image[0].numel()
        return Reconstruction(self.decode(latent), latent, {"kl": self.kl * divergence})

    def measures(self) -> Mapping[str, float]:
        """Nothing of its own."""
        return {}

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The last weights of the encoder and of the decoder: where gradients of terms are compared."""
        return self.encoder.conv_out.weight, self.decoder.conv_out.weight
