"""Finite scalar quantization: each channel of the latent is rounded to a few values (Mentzer et al. 2024).

No codebook that could die, no extra loss. Latents are bounded by tanh alone, and values are spread evenly over
[-1, 1], ends included; the paper's bound is a hair wider and, for an even number of values, shifted so that 0 is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from carrara.autoencoders.point import PointEncoding
from carrara.autoencoders.reconstruction import Reconstruction
from carrara.autoencoders.trunk import Decoder, Encoder, TrunkConfig, check_size


class Config(TrunkConfig):
    """An autoencoder whose latent is rounded, channel by channel."""

    kind: Literal["fsq"] = "fsq"
    image_channels: int = Field(3, ge=1, le=4096, description="Channels of the pictures.")
    levels: tuple[int, ...] = Field(
        (8, 8, 8, 8), description="Values that each latent channel may take, one number a channel."
    )

    @field_validator("levels")
    @classmethod
    def _at_least_two(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 2:
            raise ValueError("expected at least 2 values a channel, e.g. [8, 5, 5, 5]")
        if math.prod(value) >= 2**63:
            raise ValueError(
                f"{len(value)} channels of up to {max(value)} values are more codes than can be numbered"
            )
        return value

    @model_validator(mode="after")
    def _a_number_a_channel(self) -> Config:
        if len(self.levels) != self.latent_channels:
            raise ValueError(
                f"levels has {len(self.levels)} numbers for {self.latent_channels} latent_channels; expected one each"
            )
        return self

    def build(self) -> Autoencoder:
        """The network, freshly initialised from torch's global generator."""
        return Autoencoder(self)


class Autoencoder(nn.Module):
    """encode(image [b c H W] in [-1, 1]) -> PointEncoding; decode(latent [b c H/f W/f]) rounds, then -> image."""

    steps: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channels, self.factor = config.latent_channels, config.factor
        self.codes = math.prod(config.levels)
        self.encoder = Encoder(config, config.image_channels, config.latent_channels)
        self.decoder = Decoder(config, config.image_channels)
        width = config.latent_channels
        self.to_latent = nn.Conv2d(width, width, 1) if config.projections else nn.Identity()
        self.from_latent = nn.Conv2d(width, width, 1) if config.projections else nn.Identity()
        self.register_buffer("steps", torch.tensor(config.levels) - 1.0, persistent=False)  # between the ends

    def encode(self, image: Tensor) -> PointEncoding:
        """The raw latent, not yet rounded; ValueError where a side is no multiple of the factor."""
        check_size(image, self.factor)
        return PointEncoding(torch.tanh(self.to_latent(self.encoder(image)).float()))

    def decode(self, latent: Tensor) -> Tensor:
        """Raw latents, rounded, to an image, roughly in [-1, 1], not clipped."""
        return self._picture(self._values(self._places(latent)))

    def indices(self, latent: Tensor) -> Tensor:
        """Raw latents to one number for each position, int64 [b h w]: the channels' places as digits."""
        places, number = self._places(latent).long(), torch.zeros((), dtype=torch.int64, device=latent.device)
        for channel, steps in enumerate(self.steps.long().tolist()):
            number = number * (steps + 1) + places[:, channel]
        return number

    def forward(self, image: Tensor, noise: Tensor) -> Reconstruction:
        """One training pass, straight through the rounding; ``noise`` is not used. There are no terms."""
        latent = self.encode(image).mean
        rounded = latent + (self._values(self._places(latent)) - latent).detach()
        return Reconstruction(self._picture(rounded), rounded, {})

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The last weights of the encoder and of the decoder: where gradients of terms are compared."""
        return self.encoder.conv_out.weight, self.decoder.conv_out.weight

    def measures(self) -> Mapping[str, float]:
        """Nothing of its own."""
        return {}

    def _places(self, latent: Tensor) -> Tensor:
        """Which value each number is nearest to, from 0."""
        steps = self.steps.view(-1, 1, 1)
        return ((latent.float().clamp(-1, 1) + 1) / 2 * steps).round()

    def _values(self, places: Tensor) -> Tensor:
        return places / self.steps.view(-1, 1, 1) * 2 - 1

    def _picture(self, latent: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.from_latent(latent)).float()
        return out
