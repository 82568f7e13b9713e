"""The trunk: a convolutional encoder and decoder that KL and VQ autoencoders share (Rombach et al. 2022, appendix
G)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from carrara.config import Config, check_memory
from carrara.layers import GroupNorm, attend


class TrunkConfig(Config):
    """The shape of encoder and decoder; with the published numbers it is the published network."""

    channels: int = Field(64, ge=8, multiple_of=8, description="Width of the first level.")
    multipliers: tuple[int, ...] = Field(
        (1, 2, 4), description="Width of each level as a multiple of channels."
    )
    blocks: int = Field(
        2, ge=1, description="Residual blocks a level in the encoder (one more in the decoder)."
    )
    patch: int = Field(
        1, ge=1, description="Space-to-depth at both ends: the first level works at size / patch."
    )
    attention: tuple[int, ...] = Field((), description="Down-sampling factors at which levels attend.")
    middle_attention: bool = Field(True, description="Attention between the two middle blocks.")
    latent_channels: int = Field(4, ge=1, le=4096, description="Channels of the latent.")
    projections: bool = Field(True, description="The 1x1 convolutions on both sides of the latent.")

    @field_validator("multipliers")
    @classmethod
    def _some_level(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("expected one multiple of at least 1 for each level, e.g. [1, 2, 4]")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_memory(9 * self.blocks * (self.channels * max(self.multipliers)) ** 2)
        return self

    @property
    def factor(self) -> int:
        """Pixels a side of the picture for one of the latent."""
        return self.patch * int(2 ** (len(self.multipliers) - 1))


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution, twice, around a skip."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inner), nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2, self.conv2 = _norm(outer), nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = self.skip(x) + h
        return out


class SpatialAttention(nn.Module):
    """One head over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x).flatten(2).transpose(1, 2)  # b n c
        rows = self.out(attend(self.query(rows), self.key(rows), self.value(rows), heads=1))
        out: Tensor = x + rows.transpose(1, 2).reshape(x.shape)
        return out


class Downsample(nn.Module):
    """Convolution of stride 2, padded below and right only (so that published weights fit)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class Encoder(nn.Module):
    """image [b c H W] -> moments [b out H/f W/f]."""

    def __init__(self, config: TrunkConfig, image_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(image_channels * config.patch**2, widths[0], 3, padding=1)
        levels: list[nn.Module] = []
        inner, factor = widths[0], config.patch
        for index, width in enumerate(widths):
            for _ in range(config.blocks):
                levels.append(ResidualBlock(inner, width))
                if factor in config.attention:
                    levels.append(SpatialAttention(width))
                inner = width
            if index < len(widths) - 1:
                levels.append(Downsample(width))
                factor *= 2
        self.levels = nn.Sequential(*levels)
        self.middle = _middle(inner, config.middle_attention)
        self.norm_out, self.conv_out = _norm(inner), nn.Conv2d(inner, out_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(image, self.patch) if self.patch > 1 else image)
        x = self.middle(self.levels(x))
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


class Decoder(nn.Module):
    """latent [b c h w] -> image [b c h*f w*f]."""

    def __init__(self, config: TrunkConfig, image_channels: int) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers][::-1]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = _middle(widths[0], config.middle_attention)
        levels: list[nn.Module] = []
        inner, factor = widths[0], config.factor
        for index, width in enumerate(widths):
            for _ in range(config.blocks + 1):
                levels.append(ResidualBlock(inner, width))
                if factor in config.attention:
                    levels.append(SpatialAttention(width))
                inner = width
            if index < len(widths) - 1:
                levels.append(Upsample(width))
                factor //= 2
        self.levels = nn.Sequential(*levels)
        self.norm_out = _norm(inner)
        self.conv_out = nn.Conv2d(inner, image_channels * config.patch**2, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.levels(self.middle(self.conv_in(latent)))
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(channels, groups=32 if channels % 32 == 0 else 8)


def _middle(channels: int, attention: bool) -> nn.Sequential:
    inside: Sequence[nn.Module] = [SpatialAttention(channels)] if attention else []
    return nn.Sequential(ResidualBlock(channels, channels), *inside, ResidualBlock(channels, channels))


def check_size(image: Tensor, factor: int) -> None:
    """ValueError where a side is no multiple of the factor."""
    h, w = image.shape[-2:]
    if h % factor or w % factor:
        raise ValueError(f"expected sides that are multiples of {factor}, got {w}x{h}")
