"""U-Net with attention to a context (Ho et al. 2020; Dhariwal & Nichol 2021; Rombach et al. 2022, section 3.3)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from carrara.config import Config as Base
from carrara.context import Context
from carrara.layers import GroupNorm, attend, zero


class Config(Base):
    """The shape of the U-Net; the published ones differ only in these numbers."""

    kind: Literal["unet"] = "unet"
    channels: int = Field(128, ge=8, multiple_of=8, description="Width of the first level.")
    multipliers: tuple[int, ...] = Field((1, 2), min_length=1, description="Width of each level / channels.")
    patch: int = Field(
        1, ge=1, description="Space-to-depth at both ends: the first level works at size / patch."
    )
    blocks: int = Field(2, ge=1, description="Residual blocks a level going down (one more going up).")
    attention: tuple[int, ...] = Field((1, 2), description="Down-sampling factors at which levels attend.")
    depth: int = Field(1, ge=1, description="Transformer blocks at each place that attends.")
    head_width: int = Field(64, ge=1, description="Channels an attention head.")
    scale_shift: bool = Field(True, description="Time and vector scale and shift the norm (else are added).")

    @model_validator(mode="after")
    def _heads_divide(self) -> Config:
        last = len(self.multipliers) - 1
        for level, multiple in enumerate(self.multipliers):
            width = self.channels * multiple
            attends = 2**level in self.attention or (level == last and self.attention)  # the middle does too
            if attends and width % self.head_width:
                raise ValueError(
                    f"level {level} has {width} channels, no multiple of head_width {self.head_width}"
                )
        return self

    def build(self, *, channels: int, tokens: int | None = None, vector: int | None = None) -> UNet:
        """The network for a latent of ``channels`` and the context's roles by their widths."""
        return UNet(self, channels, tokens, vector)


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution, twice; the time embedding enters at the second norm."""

    def __init__(self, inner: int, outer: int, embedding: int, scale_shift: bool) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1, self.conv1 = _norm(inner), nn.Conv2d(inner, outer, 3, padding=1)
        self.embed = nn.Linear(embedding, 2 * outer if scale_shift else outer)
        self.norm2, self.conv2 = _norm(outer), zero(nn.Conv2d(outer, outer, 3, padding=1))
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        e = self.embed(embedding)
        h = self.norm2(h, *e.chunk(2, 1)) if self.scale_shift else self.norm2(h + e[..., None, None])
        out: Tensor = self.skip(x) + self.conv2(F.silu(h))
        return out


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context's tokens, gated feed-forward, each around a skip."""

    def __init__(self, width: int, heads: int, tokens: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out1 = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width) if tokens else None
        if tokens:
            self.query, self.out2 = nn.Linear(width, width, bias=False), nn.Linear(width, width)
            self.key_value = nn.Linear(tokens, 2 * width, bias=False)
        self.gate, self.out3 = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out1(attend(query, key, value, self.heads))
        if self.norm2 is not None and context.tokens is not None:
            key, value = self.key_value(context.tokens).chunk(2, -1)
            x = x + self.out2(attend(self.query(self.norm2(x)), key, value, self.heads, context.mask))
        up, gate = self.gate(self.norm3(x)).chunk(2, -1)
        out: Tensor = x + self.out3(up * F.gelu(gate))
        return out


class SpatialTransformer(nn.Module):
    """Transformer blocks over all positions of a feature map, around a skip."""

    def __init__(self, width: int, head_width: int, depth: int, tokens: int | None) -> None:
        super().__init__()
        self.norm, self.inward = _norm(width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, width // head_width, tokens) for _ in range(depth)
        )
        self.outward = zero(nn.Linear(width, width))

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        rows = self.inward(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))  # b n c
        for block in self.blocks:
            rows = block(rows, context)
        out: Tensor = x + self.outward(rows).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return out


class Resample(nn.Module):
    """Half the size by a strided convolution, or double it by nearest neighbour and a convolution."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest") if self.up else x)
        return out


class UNet(nn.Module):
    """(z [b c h w], t [b] in [0, 1], context) -> [b c h w]; sides are multiples of ``factor``."""

    def __init__(self, config: Config, channels: int, tokens: int | None, vector: int | None) -> None:
        super().__init__()
        width, embedding = config.channels, 4 * config.channels
        channels *= config.patch**2
        self.patch, self.width, self.levels = config.patch, width, len(config.multipliers)
        self.factor = config.patch * 2 ** (self.levels - 1)
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.vector = (
            nn.Sequential(nn.Linear(vector, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
            if vector
            else None
        )

        def stage(inner: int, outer: int, factor: int) -> nn.ModuleList:
            parts: list[nn.Module] = [ResidualBlock(inner, outer, embedding, config.scale_shift)]
            if factor in config.attention:
                parts.append(SpatialTransformer(outer, config.head_width, config.depth, tokens))
            return nn.ModuleList(parts)

        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, inner = [width], width
        for level, multiple in enumerate(config.multipliers):
            for _ in range(config.blocks):
                self.down.append(stage(inner, width * multiple, 2**level))
                inner = width * multiple
                skips.append(inner)
            if level < self.levels - 1:
                self.down.append(nn.ModuleList([Resample(inner, up=False)]))
                skips.append(inner)
        self.middle = nn.ModuleList(
            [
                *stage(inner, inner, max(config.attention, default=0)),
                ResidualBlock(inner, inner, embedding, config.scale_shift),
            ]
        )
        for level, multiple in reversed(list(enumerate(config.multipliers))):
            for block in range(config.blocks + 1):
                parts = stage(inner + skips.pop(), width * multiple, 2**level)
                inner = width * multiple
                if level and block == config.blocks:
                    parts.append(Resample(inner, up=True))
                self.up.append(parts)
        self.norm_out = _norm(inner)
        self.conv_out = zero(nn.Conv2d(inner, channels, 3, padding=1))

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        embedding = self.time(time_features(t, self.width).to(z.dtype))
        if self.vector is not None and context.vector is not None:
            embedding = embedding + self.vector(context.vector)
        embedding = F.silu(embedding)
        x = self.conv_in(F.pixel_unshuffle(z, self.patch) if self.patch > 1 else z)
        skips = [x]
        for parts in self.down:
            x = _through(parts, x, embedding, context)
            skips.append(x)
        x = _through(self.middle, x, embedding, context)
        for parts in self.up:
            x = _through(parts, torch.cat([x, skips.pop()], 1), embedding, context)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x))).float()
        return F.pixel_shuffle(out, self.patch) if self.patch > 1 else out


def time_features(t: Tensor, width: int, longest: float = 10000.0) -> Tensor:
    """Sines and cosines of 1000 t [b] at geometric frequencies: [b width]."""
    frequencies = torch.exp(torch.arange(width // 2, device=t.device) * (-math.log(longest) / (width // 2)))
    angles = 1000.0 * t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def _through(parts: nn.Module, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
    for part in parts.children():
        x = part(x, embedding, context)
    return x


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(channels, groups=32 if channels % 32 == 0 else 8, eps=1e-5)
