"""U-Net with attention to a context (Ho et al. 2020; Dhariwal & Nichol 2021; Rombach et al. 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from carrara.config import Config as Base
from carrara.config import check_memory
from carrara.context import Context
from carrara.denoisers.time_features import time_features
from carrara.denoisers.unet_blocks import (
    Change,
    Resample,
    ResidualBlock,
    SelfAttention,
    SpatialTransformer,
    Stage,
    norm,
)
from carrara.errors import UserError
from carrara.layers import zero

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


def as_written(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration out of a model's file, where earlier versions let ``attention`` name no level at all:

    then the middle attended alone.
    """
    levels = len(values.get("multipliers", (1, 2)))
    attention = values.get("attention", ())
    if attention and not set(attention) & {2**level for level in range(levels)}:
        return {**values, "attention": [], "middle_attention": values.get("middle_attention", True)}
    return values


class Config(Base):
    """The shape of the U-Net; the published ones differ only in these numbers."""

    kind: Literal["unet"] = "unet"
    channels: int = Field(128, ge=2, multiple_of=2, description="Width of the first layer.")
    multipliers: tuple[int | float, ...] = Field(
        (1, 2), min_length=1, max_length=16, description="Width of each level / channels."
    )
    patch: int = Field(
        1, ge=1, description="Space-to-depth at both ends: the first level works at size / patch."
    )
    blocks: Positive | tuple[Positive, ...] = Field(
        2, description="Residual blocks a level going down (one more going up); one number or one a level."
    )
    attention: tuple[int, ...] = Field((1, 2), description="Down-sampling factors at which levels attend.")
    depth: Natural | tuple[Natural, ...] = Field(
        1,
        description="Transformer blocks at each place that attends, one number or one a level (the middle has the "
        "last, or one more number); 0 is self-attention by itself.",
    )
    heads: Positive | tuple[Positive, ...] | None = Field(
        None,
        description="Attention heads, as depth is given; without it head_width says how many.",
    )
    head_width: int = Field(64, ge=1, description="Channels an attention head, where heads is not given.")
    projections: Literal["linear", "convolution"] = Field(
        "linear", description="First and last layer of a transformer: how their weights are kept."
    )
    middle_blocks: Literal[0, 1, 2] = Field(2, description="Residual blocks between down and up.")
    middle_attention: bool | None = Field(
        None, description="Attend between the middle's two blocks; without it, if any level attends."
    )
    middle_groups: Natural | None = Field(
        None, description="Norm groups of the middle's self-attention of depth 0; 0 leaves the norm out."
    )
    scale_shift: bool = Field(True, description="Time and vector scale and shift the norm (else are added).")
    resample_blocks: bool | tuple[bool, ...] = Field(
        False,
        description="Change the size inside residual blocks, not by a convolution; for all or for each change, "
        "down first, then up.",
    )
    asymmetric: bool = Field(
        False,
        description="Convolutions that halve the size pad below and right only, as in DDPM's TensorFlow.",
    )
    vector_layers: Literal["mlp", "linear", "none"] = Field(
        "mlp", description="Layers between the context's vector and the time embedding that it is added to."
    )
    embedding: int | None = Field(
        None, ge=1, description="Width of the time embedding; without it 4 * channels."
    )
    frequency_shift: float = Field(
        0.0,
        ge=0,
        le=1,
        description="1 makes the slowest wave of the time 10000 steps long, 0 a little shorter.",
    )
    sines_first: bool = Field(
        False, description="Sines before cosines in the features of the time, as in DDPM."
    )
    first_step: Literal[0, 1] = Field(
        1, description="Number of the step t = 1/1000; 0 for networks trained with steps 0 to 999."
    )
    unit_input: bool = Field(
        False, description="The input counts as values in [0, 1] and is stretched to [-1, 1] first."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of features dropped in residual blocks.")
    groups: Positive | None = Field(
        None, description="Norm groups everywhere; without it 32 where that divides the width, else 8."
    )
    eps: float = Field(1e-5, gt=0, description="Smallest variance that group norms see.")
    transformer_eps: float = Field(1e-5, gt=0, description="The same at the entrance of transformers.")
    learnt_variance: bool = Field(
        False, description="Twice the output channels; the second half is a learned variance."
    )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(round(self.channels * multiplier) for multiplier in self.multipliers)

    @property
    def middle_attends(self) -> bool:
        """Whether there is attention between the middle's blocks."""
        wanted = bool(self.attention) if self.middle_attention is None else self.middle_attention
        return wanted and self.middle_blocks == 2

    @property
    def roles(self) -> frozenset[str]:
        """The roles of a context that this network can read."""
        transforms = any(self.attends(k) and self.depth_at(k) for k in range(len(self.multipliers)))
        transforms |= bool(self.middle_attends and self.depth_at(-1))
        return frozenset({"vector", "image"} | ({"tokens"} if transforms else set()))

    def attends(self, level: int) -> bool:
        """Whether this level does, going down and up."""
        return 2**level in self.attention

    def blocks_at(self, level: int) -> int:
        """Residual blocks of this level going down."""
        return self.blocks[level] if isinstance(self.blocks, tuple) else self.blocks

    def depth_at(self, level: int) -> int:
        """Transformer blocks at each of this level's places that attend."""
        return self.depth[level] if isinstance(self.depth, tuple) else self.depth

    def heads_at(self, level: int) -> int:
        """Attention heads of this level."""
        if self.heads is None:
            return self.widths[level] // self.head_width
        return self.heads[level] if isinstance(self.heads, tuple) else self.heads

    def change_at(self, index: int) -> bool:
        """Whether the change of size of this number, down first, then up, happens inside a residual block."""
        if isinstance(self.resample_blocks, tuple):
            return self.resample_blocks[index]
        return self.resample_blocks

    @model_validator(mode="after")
    def _lengths_fit(self) -> Config:
        levels = len(self.multipliers)
        blocks = self.blocks if isinstance(self.blocks, tuple) else (self.blocks,)
        check_memory(9 * max(blocks) * max(self.widths) ** 2)
        for name in ("blocks", "depth", "heads", "resample_blocks"):
            given = getattr(self, name)
            wanted, what = (
                (2 * levels - 2, "changes of size") if name == "resample_blocks" else (levels, "levels")
            )
            with_middle = name in ("depth", "heads") and isinstance(given, tuple) and len(given) == levels + 1
            if isinstance(given, tuple) and len(given) != wanted and not with_middle:
                raise ValueError(f"{name} has {len(given)} entries for {wanted} {what}")
        factors = [2**level for level in range(levels)]
        # Some may lie beyond a U-Net with few levels, as the default's 2 does beyond one; all of them are a mistake.
        if self.attention and not set(self.attention) & set(factors):
            near = min(factors, key=lambda factor: abs(factor - self.attention[0]))
            raise ValueError(
                f"attention {', '.join(map(str, self.attention))} is no level; the levels are "
                f"{', '.join(map(str, factors))} (factors of down-sampling, not resolutions), the nearest is {near}"
            )
        if self.middle_attention and self.middle_blocks < 2:
            raise ValueError(
                f"middle_attention stands between two blocks, but middle_blocks is {self.middle_blocks}"
            )
        return self

    @model_validator(mode="after")
    def _widths_divide(self) -> Config:
        for level, (width, multiplier) in enumerate(zip(self.widths, self.multipliers, strict=True)):
            where = f"level {level} has {width} channels"
            if multiplier <= 0 or abs(width - self.channels * multiplier) > 1e-6 * width:
                raise ValueError(f"{self.channels} channels times {multiplier} is no width of a level")
            if width % (groups := self.groups or 8):
                raise ValueError(f"{where}, no multiple of the {groups} norm groups")
            middle = level == len(self.widths) - 1 and self.middle_attends
            if self.heads is None and (self.attends(level) or middle) and width % self.head_width:
                raise ValueError(f"{where}, no multiple of head_width {self.head_width}")
            for place in [level] * self.attends(level) + [-1] * middle:
                if width % self.heads_at(place):
                    raise ValueError(f"{where}, no multiple of its {self.heads_at(place)} heads")
        if self.channels % (groups := self.groups or 8):
            raise ValueError(f"the first layer has {self.channels} channels, no multiple of {groups}")
        if self.middle_groups and self.widths[-1] % self.middle_groups:
            raise ValueError(
                f"the middle has {self.widths[-1]} channels, no multiple of {self.middle_groups}"
            )
        if self.frequency_shift and self.channels == 2:
            raise ValueError("two channels hold one wave, whose frequency cannot be shifted")
        return self

    def build(
        self, *, channels: int, tokens: int | None = None, vector: int | None = None, image: int | None = None
    ) -> UNet:
        """The network for a latent of ``channels`` and the context's roles by their widths."""
        embedding = self.embedding or 4 * self.channels
        if self.vector_layers == "none" and vector not in (None, embedding):
            raise UserError(
                f"vector_layers is 'none', which takes a vector as wide as the time embedding, {embedding}; "
                f"the conditions give {vector}"
            )
        return UNet(self, channels, tokens, vector, image)


class UNet(nn.Module):
    """(z [b c h w], t [b] in [0, 1], context) -> [b c h w]; sides are multiples of ``factor``."""

    def __init__(
        self, config: Config, channels: int, tokens: int | None, vector: int | None, image: int | None
    ) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        self.tokens, self.vector_width, self.image = tokens, vector, image
        width, embedding = config.channels, config.embedding or 4 * config.channels
        self.levels = len(config.multipliers)
        self.factor = config.patch * 2 ** (self.levels - 1)
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.vector = _vector(config.vector_layers, vector, embedding) if vector else None
        self.conv_in = nn.Conv2d((channels + (image or 0)) * config.patch**2, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, inner = [width], width
        for level, outer in enumerate(config.widths):
            for _ in range(config.blocks_at(level)):
                self.down.append(self._stage(inner, level))
                inner = outer
                skips.append(inner)
            if level < self.levels - 1:
                self.down.append(Stage([self._resample(inner, "down", level)]))
                skips.append(inner)
        self.middle = Stage()
        for index in range(config.middle_blocks):
            if index and config.middle_attends:
                self.middle.append(self._attention(-1))
            self.middle.append(self._block(inner, inner))
        for level, outer in reversed(list(enumerate(config.widths))):
            for index in range(config.blocks_at(level) + 1):
                parts = self._stage(inner + skips.pop(), level)
                inner = outer
                if level and index == config.blocks_at(level):
                    parts.append(self._resample(inner, "up", 2 * (self.levels - 1) - level))
                self.up.append(parts)
        self.norm_out = norm(inner, config.groups, config.eps)
        out = channels * (2 if config.learnt_variance else 1) * config.patch**2
        self.conv_out = zero(nn.Conv2d(inner, out, 3, padding=1))

    def _block(self, inner: int, outer: int, change: Change | None = None) -> ResidualBlock:
        config = self.config
        return ResidualBlock(
            inner,
            outer,
            config.embedding or 4 * config.channels,
            config.scale_shift,
            groups=config.groups,
            eps=config.eps,
            dropout=config.dropout,
            change=change,
        )

    def _attention(self, level: int) -> nn.Module:
        config = self.config
        width, heads = config.widths[level], config.heads_at(level)
        if depth := config.depth_at(level):
            eps, convolution = config.transformer_eps, config.projections == "convolution"
            return SpatialTransformer(
                width, heads, depth, self.tokens, groups=config.groups, eps=eps, convolution=convolution
            )
        groups, normed = config.groups, True
        if level < 0 and config.middle_groups is not None:
            groups, normed = config.middle_groups, config.middle_groups > 0
        return SelfAttention(width, heads, groups=groups, eps=config.eps, normed=normed)

    def _stage(self, inner: int, level: int) -> Stage:
        parts: list[nn.Module] = [self._block(inner, self.config.widths[level])]
        return Stage([*parts, self._attention(level)] if self.config.attends(level) else parts)

    def _resample(self, width: int, change: Change, index: int) -> nn.Module:
        """The change of size of this number, down first, then up."""
        if self.config.change_at(index):
            return self._block(width, width, change)
        return Resample(width, change == "up", self.config.asymmetric)

    def blocks(self) -> list[nn.Module]:
        """The layers between the ends in the order they run: units of checkpointing and compilation."""
        return list(self._parts())

    def _parts(self) -> Iterator[nn.Module]:
        for stages in (self.down, [self.middle], self.up):
            for stage in stages:
                yield from stage.children()

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        """float32; [b 2c h w] with a learned variance. ValueError where sides are no multiples of ``factor``."""
        embedding = self.embed(t, context)
        x = self.conv_in(self.prepare(z, context))
        skips = [x]
        for stage in self.down:
            x = stage(x, embedding, context)
            skips.append(x)
        x = self.middle(x, embedding, context)
        for stage in self.up:
            x = stage(torch.cat([x, skips.pop()], 1), embedding, context)
        out: Tensor = self.conv_out(self.norm_out(x, silu=True)).float()
        return F.pixel_shuffle(out, self.config.patch) if self.config.patch > 1 else out

    def embed(self, t: Tensor, context: Context) -> Tensor:
        """What the blocks are told of time and vector: [b e]."""
        config = self.config
        waves = time_features(
            t,
            config.channels,
            first_step=config.first_step,
            frequency_shift=config.frequency_shift,
            sines_first=config.sines_first,
        )
        embedding = self.time(waves.to(self.conv_in.weight.dtype))
        if self.vector is not None and context.vector is not None:
            embedding = embedding + self.vector(context.vector)
        return F.silu(embedding)

    def prepare(self, z: Tensor, context: Context) -> Tensor:
        """z beside the context's image, stretched and folded into patches where the configuration says so."""
        if any(side % self.factor for side in z.shape[2:]):
            raise ValueError(f"sides of {tuple(z.shape[2:])} are not multiples of {self.factor}")
        if self.image is not None:
            if context.image is None:
                raise ValueError(
                    f"this network reads an image of {self.image} channels beside z, and has none"
                )
            z = torch.cat([z, context.image.to(z.dtype)], 1)
        z = 2 * z - 1 if self.config.unit_input else z
        return F.pixel_unshuffle(z, self.config.patch) if self.config.patch > 1 else z


def _vector(layers: Literal["mlp", "linear", "none"], width: int, embedding: int) -> nn.Module:
    if layers == "none":
        return nn.Identity()
    if layers == "linear":
        return nn.Linear(width, embedding)
    return nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
