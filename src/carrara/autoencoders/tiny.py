"""Tiny autoencoder: plain convolutions and ReLU, fast enough for live previews (TAESD, Ollin Boer Bohan 2023)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from carrara.autoencoders.point import PointEncoding
from carrara.autoencoders.reconstruction import Reconstruction
from carrara.autoencoders.trunk import check_size
from carrara.config import Config as Base
from carrara.config import check_memory


class Config(Base):
    """An autoencoder of about a million weights, with one point as its latent."""

    kind: Literal["tiny"] = "tiny"
    image_channels: int = Field(3, ge=1, le=4096, description="Channels of the pictures.")
    latent_channels: int = Field(4, ge=1, le=4096, description="Channels of the latent.")
    encoder_width: int = Field(64, ge=1, description="Width of every level of the encoder.")
    decoder_width: int = Field(64, ge=1, description="Width of every level of the decoder.")
    encoder_blocks: tuple[int, ...] = Field(
        (1, 3, 3, 3), description="Residual blocks of each level, from the picture to the latent."
    )
    decoder_blocks: tuple[int, ...] = Field(
        (3, 3, 3, 1), description="Residual blocks of each level, from the latent to the picture."
    )

    @field_validator("encoder_blocks", "decoder_blocks")
    @classmethod
    def _some_level(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 0:
            raise ValueError("expected a number of blocks for each level, e.g. [1, 3, 3, 3]")
        return value

    @model_validator(mode="after")
    def _as_many_levels(self) -> Self:
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise ValueError(
                f"encoder_blocks has {len(self.encoder_blocks)} levels and decoder_blocks "
                f"{len(self.decoder_blocks)}; expected as many of both"
            )
        for blocks, width in (
            (self.encoder_blocks, self.encoder_width),
            (self.decoder_blocks, self.decoder_width),
        ):
            check_memory(27 * sum(blocks) * width**2)
        return self

    @property
    def factor(self) -> int:
        """Pixels a side of the picture for one of the latent."""
        return int(2 ** (len(self.encoder_blocks) - 1))

    def build(self) -> Autoencoder:
        """The network, freshly initialised from torch's global generator."""
        return Autoencoder(self)


class Block(nn.Module):
    """Three convolutions around a skip, and a ReLU after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv3(self.conv2(self.conv1(x).relu()).relu())
        return torch.relu(x + h)


def _encoder(config: Config) -> nn.Sequential:
    width = config.encoder_width
    layers: list[nn.Module] = []
    for index, blocks in enumerate(config.encoder_blocks):
        layers.append(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
            if index
            else nn.Conv2d(config.image_channels, width, 3, padding=1)
        )
        layers += [Block(width) for _ in range(blocks)]
    return _with_ends([*layers, nn.Conv2d(width, config.latent_channels, 3, padding=1)])


def _decoder(config: Config) -> nn.Sequential:
    width = config.decoder_width
    layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
    for index, blocks in enumerate(config.decoder_blocks):
        if index:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        layers += [Block(width) for _ in range(blocks)]
    return _with_ends([*layers, nn.Conv2d(width, config.image_channels, 3, padding=1)])


def _with_ends(layers: list[nn.Module]) -> nn.Sequential:
    """In a row, the first and last by the names that optimizers know them by."""
    names = ["conv_in", *(str(n) for n in range(len(layers) - 2)), "conv_out"]
    return nn.Sequential(OrderedDict(zip(names, layers, strict=True)))


class Autoencoder(nn.Module):
    """encode(image [b c H W] in [-1, 1]) -> PointEncoding; decode(latent [b c H/f W/f]) -> image."""

    # Latents are held softly within this: those of the published weights have a spread of about one.
    reach = 3.0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channels, self.factor = config.latent_channels, config.factor
        self.encoder, self.decoder = _encoder(config), _decoder(config)

    def encode(self, image: Tensor) -> PointEncoding:
        """One latent a picture; ValueError where a side is no multiple of the factor."""
        check_size(image, self.factor)
        return PointEncoding(
            self.encoder((image + 1) / 2).float()
        )  # the published weights see pixels in [0, 1]

    def decode(self, latent: Tensor) -> Tensor:
        """Latents to an image, roughly in [-1, 1], not clipped."""
        inside = torch.tanh(latent / self.reach) * self.reach
        out: Tensor = self.decoder(inside).float() * 2 - 1
        return out

    def forward(self, image: Tensor, noise: Tensor) -> Reconstruction:
        """One training pass; ``noise`` is not used, and the latent has no loss term of its own."""
        latent = self.encode(image).mean
        return Reconstruction(self.decode(latent), latent, {})

    def measures(self) -> Mapping[str, float]:
        """Nothing of its own."""
        return {}

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The last weights of the encoder and of the decoder: where gradients of terms are compared."""
        first, last = self.encoder[-1], self.decoder[-1]
        assert isinstance(first, nn.Conv2d)
        assert isinstance(last, nn.Conv2d)
        return first.weight, last.weight
