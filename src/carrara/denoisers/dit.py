"""Transformer over patches whose norms are steered by time and vector, adaLN-zero (Peebles & Xie 2023, "DiT")."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from carrara.config import Config as Base
from carrara.config import check_memory
from carrara.context import Context
from carrara.denoisers.positions import fixed, rotary, rotate
from carrara.denoisers.time_features import time_features
from carrara.errors import UserError
from carrara.layers import attend, zero

_TIME_FEATURES = 256
_EPS = 1e-6


class Config(Base):
    """The shape of the transformer: the published ones, and what later work has put in their places."""

    kind: Literal["dit"] = "dit"
    patch: int = Field(2, ge=1, description="Side of the squares of z that become one row each.")
    width: int = Field(384, ge=8, description="Numbers a row.")
    depth: int = Field(12, ge=1, description="Blocks.")
    heads: int = Field(6, ge=1, description="Attention heads; they divide the width.")
    ratio: float = Field(
        4.0, gt=0, description="Hidden width of the feed-forward / width; with a gate 2/3 of it, for as many weights."
    )  # fmt: skip
    feed_forward: Literal["gelu", "gelu_exact", "gelu_sigmoid", "silu", "swiglu", "geglu"] = Field(
        "gelu", description="Its activation: plain (gelu is the tanh form), or gated (swiglu, geglu)."
    )
    norm: Literal["layer", "rms"] = Field("layer", description="Norm before each part of a block.")
    feed_forward_eps: float = Field(_EPS, gt=0, description="Added to the variance before the feed-forward.")
    qk_norm: bool = Field(False, description="Queries and keys are normalized a head, with a learned scale.")
    qkv_bias: bool = Field(True, description="Queries, keys and values have a bias.")
    positions: Literal["fixed", "rotary", "both"] = Field(
        "fixed", description="Sines added to the rows, or turned into queries and keys, or both."
    )
    spread: int | None = Field(
        None, ge=1, description="Patches along a side that positions run over at every size; else they count patches."
    )  # fmt: skip
    tokens: Literal["cross", "joint"] = Field(
        "cross",
        description="How tokens are read: by attention of their own, or as rows beside the picture's in the same one.",
    )
    bottleneck: int | None = Field(
        None, ge=1, description="Rank of the first layer, for large patches of pixels; none for a full one."
    )
    adaln: Literal["own", "shared"] = Field(
        "own", description="A layer in each block that steers it, or one for all and an offset in each block."
    )
    vector_layers: Literal["mlp", "none"] = Field(
        "mlp", description="What the vector goes through before it is added to the time's embedding."
    )
    own_embeddings: bool = Field(
        False,
        description="Each block embeds the time by itself and takes its own part of a vector of depth x width.",
    )
    learnt_variance: bool = Field(False, description="As many channels again for the variance of a step.")
    frequency_shift: float = Field(
        0.0, ge=0, le=1, description="1 where the slowest time sine has a period of 2 pi 10000 steps, 0 just below."
    )  # fmt: skip
    first_step: int = Field(
        1, ge=0, le=1, description="Number of the step t = 1/1000: 0 for networks that count steps from zero."
    )

    @model_validator(mode="after")
    def _divides(self) -> Config:
        check_memory(4 * self.depth * self.width**2)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if self.positions != "rotary" and self.width % 4:
            raise ValueError(f"width {self.width} is no multiple of 4, which fixed positions need")
        if self.positions != "fixed" and self.width // self.heads % 4:
            raise ValueError(
                f"heads of width {self.width // self.heads} are no multiple of 4, which rotary positions need"
            )
        if self.own_embeddings and (self.adaln, self.vector_layers) != ("own", "none"):
            raise ValueError("own_embeddings go with adaln = 'own' and vector_layers = 'none'")
        return self

    @property
    def roles(self) -> frozenset[str]:
        """The roles of a context that it can read."""
        return frozenset({"tokens", "vector", "image"})

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a gate."""
        return self.feed_forward in ("swiglu", "geglu")

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward; of a gated one a multiple of 8, since 2/3 rarely comes out even."""
        if not self.gated:
            return max(1, round(self.width * self.ratio))
        return 8 * max(1, round(self.width * self.ratio * 2 / 3 / 8))

    def build(
        self, *, channels: int, tokens: int | None = None, vector: int | None = None, image: int | None = None
    ) -> DiT:
        """The network for a latent of ``channels`` and the context's roles by their widths.

        UserError where ``vector_layers`` is "none" and the vector has not the width of what it is added to.
        """
        expected = self.width * (self.depth if self.own_embeddings else 1)
        if vector and self.vector_layers == "none" and vector != expected:
            raise UserError(
                f"with vector_layers = 'none' the conditions that fill the vector must give {expected} numbers "
                f"together; they give {vector}"
            )
        return DiT(self, channels, tokens, vector, image)


class DiT(nn.Module):
    """(z [b c h w], t [b] in [0, 1], context) -> [b c h w]; sides are multiples of ``factor``."""

    def __init__(
        self, config: Config, channels: int, tokens: int | None, vector: int | None, image: int | None
    ) -> None:
        super().__init__()
        self.config, self.factor = config, config.patch
        self.tokens, self.image = tokens, image
        width, inner = config.width, (channels + (image or 0)) * config.patch**2
        first = nn.Linear(inner, config.bottleneck, bias=False) if config.bottleneck else nn.Identity()
        self.conv_in = nn.Sequential(first, nn.Linear(config.bottleneck or inner, width))
        self.time = nn.ModuleList(
            _mlp(_TIME_FEATURES, width) for _ in range(config.depth if config.own_embeddings else 1)
        )
        self.vector: nn.Module | None = None
        if vector:
            self.vector = nn.Identity() if config.vector_layers == "none" else _mlp(vector, width)
        self.joint: nn.Module | None = None
        if tokens and config.tokens == "joint":
            # Text encoders differ in scale by orders of magnitude: their tokens are brought to that of the rows.
            self.joint = nn.Sequential(nn.RMSNorm(tokens, eps=_EPS), nn.Linear(tokens, width))
        self.modulation = nn.Linear(width, 6 * width) if config.adaln == "shared" else None
        self.trunk = nn.ModuleList(
            Block(config, tokens if config.tokens == "cross" else None) for _ in range(config.depth)
        )
        self.modulation_out = nn.Linear(width, 2 * width)
        outer = channels * config.patch**2 * (2 if config.learnt_variance else 1)
        self.conv_out = nn.Linear(width, outer)
        self._start()

    def blocks(self) -> list[nn.Module]:
        """The units that gradient checkpointing and compilation work on, in order."""
        return list(self.trunk)

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        """float32; [b 2c h w] with a learned variance. ValueError where sides are no multiples of ``factor``."""
        config, patch = self.config, self.config.patch
        if any(side % patch for side in z.shape[2:]):
            raise ValueError(f"sides of {tuple(z.shape[2:])} are not multiples of {patch}")
        if self.image is not None:
            if context.image is None:
                raise ValueError(
                    f"this network reads an image of {self.image} channels beside z, and has none"
                )
            z = torch.cat([z, context.image.to(z.dtype)], 1)
        height, width = z.shape[2] // patch, z.shape[3] // patch
        x = self.conv_in(F.pixel_unshuffle(z, patch).flatten(2).mT)  # b n width
        if config.positions != "rotary":
            x = x + _table(fixed, x, height, width, config.width, config.spread)
        embeddings = self._embeddings(t, context, z.dtype)
        mask, beside = None, 0
        if self.joint is not None and context.tokens is not None:
            tokens: Tensor = context.once(self.joint, lambda: self.joint(context.tokens))  # type: ignore[misc]
            beside = tokens.shape[1]
            if context.mask is not None:
                mask = F.pad(context.mask, (0, x.shape[1]), value=True)
            x = torch.cat([tokens.to(x.dtype), x], 1)
        rotation = None
        if config.positions != "fixed":  # tokens lie nowhere: what they know of their order they have brought
            head = config.width // config.heads
            rotation = _table(rotary, x, height, width, head, config.spread, beside)
        for number, block in enumerate(self.trunk):
            steer = embeddings[number % len(embeddings)]
            x = block(
                x, steer if self.modulation is None else self.modulation(steer), rotation, context, mask
            )
        shift, scale = self.modulation_out(embeddings[0]).chunk(2, 1)
        x = self.conv_out(_steered(x[:, beside:], config.norm, _EPS, scale, shift)).float()
        return F.pixel_shuffle(x.mT.unflatten(2, (height, width)), patch)

    def _embeddings(self, t: Tensor, context: Context, dtype: torch.dtype) -> list[Tensor]:
        """Of time and vector together, after SiLU: [b width], one for all blocks or one each."""
        features = time_features(
            t,
            _TIME_FEATURES,
            first_step=self.config.first_step,
            frequency_shift=self.config.frequency_shift,
        ).to(dtype)
        embeddings = [layers(features) for layers in self.time]
        if self.vector is not None and context.vector is not None:
            parts = self.vector(context.vector).chunk(len(embeddings), 1)
            embeddings = [own + part for own, part in zip(embeddings, parts, strict=True)]
        return [F.silu(embedding) for embedding in embeddings]

    def _start(self) -> None:
        """As the paper: sensible products, and every block the identity, the output zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layers in self.time:
            for linear in layers.children():
                if isinstance(linear, nn.Linear):
                    nn.init.normal_(linear.weight, std=0.02)
        for layer in (self.modulation, self.modulation_out, self.conv_out):
            if layer is not None:
                zero(layer)
        for block in self.trunk:
            assert isinstance(block, Block)
            if block.modulation is not None:
                zero(block.modulation)
            if block.cross is not None:
                zero(block.cross.out)


class Block(nn.Module):
    """Self-attention, attention to the context's tokens, feed-forward: each on a steered norm, around a skip.

    One stream for picture and tokens where they are joint: the norm's steering and the projections are the same
    for both. Two streams (Esser et al. 2024, "MM-DiT") take twice the weights for the same width, which pays
    where captions are long and weights are many; here both are few.
    """

    def __init__(self, config: Config, tokens: int | None) -> None:
        super().__init__()
        width = config.width
        self.norm, self.eps = config.norm, config.feed_forward_eps
        self.modulation = nn.Linear(width, 6 * width) if config.adaln == "own" else None
        self.offset = nn.Parameter(torch.zeros(6 * width)) if config.adaln == "shared" else None
        self.attention = SelfAttention(config)
        self.cross = CrossAttention(config, tokens) if tokens else None
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: Tensor, steer: Tensor, rotation: Tensor | None, context: Context, mask: Tensor | None
    ) -> Tensor:
        """``x [b n w]``, ``steer``: the embedding, or with one steering layer for all what that makes of it."""
        six = steer + self.offset if self.offset is not None else self.modulation(steer)  # type: ignore[misc]
        shift1, scale1, gate1, shift2, scale2, gate2 = six.chunk(6, 1)
        h = self.attention(_steered(x, self.norm, _EPS, scale1, shift1), rotation, mask)
        x = torch.addcmul(x, gate1[:, None].to(x.dtype), h)
        if self.cross is not None and context.tokens is not None:
            x = x + self.cross(_normed(x, self.norm, _EPS), context)
        h = self.feed_forward(_steered(x, self.norm, self.eps, scale2, shift2))
        return torch.addcmul(x, gate2[:, None].to(x.dtype), h)


class SelfAttention(nn.Module):
    """Every row to every other."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.scale = nn.Parameter(torch.ones(2, 1, config.width // config.heads)) if config.qk_norm else None
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, rotation: Tensor | None, mask: Tensor | None) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # b n 3 heads d
        both, value = qkv[:, :, :2], qkv[:, :, 2].flatten(2)
        if self.scale is not None:
            both = _normed_heads(both, self.scale)
        if rotation is not None:
            both = rotate(both, rotation)
        query, key = both.flatten(3).unbind(2)
        out: Tensor = self.out(attend(query, key, value, self.heads, mask))
        return out


class CrossAttention(nn.Module):
    """Every row to the context's tokens, whose keys and values are computed once a prompt."""

    def __init__(self, config: Config, tokens: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width, bias=config.qkv_bias)
        self.key_value = nn.Linear(tokens, 2 * config.width, bias=config.qkv_bias)
        self.scale = nn.Parameter(torch.ones(2, 1, config.width // config.heads)) if config.qk_norm else None
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        query = self.query(x)
        if self.scale is not None:
            query = _normed_heads(query.unflatten(2, (self.heads, -1)), self.scale[0]).flatten(2)
        key, value = context.once(self, lambda: self._key_value(context.tokens))
        out: Tensor = self.out(attend(query, key, value, self.heads, context.mask))
        return out

    def _key_value(self, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        key, value = self.key_value(tokens).chunk(2, 2)
        if self.scale is not None:
            key = _normed_heads(key.unflatten(2, (self.heads, -1)), self.scale[1]).flatten(2)
        return key, value


class FeedForward(nn.Module):
    """Two layers with an activation between, or with one half the gate of the other (Shazeer 2020)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.activation = config.feed_forward
        self.inward = nn.Linear(config.width, config.hidden * (2 if config.gated else 1))
        self.outward = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inward(x)
        match self.activation:
            case "gelu":
                h = F.gelu(h, approximate="tanh")
            case "gelu_exact":
                h = F.gelu(h)
            case "gelu_sigmoid":
                h = h * torch.sigmoid(1.702 * h)
            case "silu":
                h = F.silu(h)
            case gated:
                up, gate = h.chunk(2, -1)
                h = up * (F.silu(gate) if gated == "swiglu" else F.gelu(gate))
        out: Tensor = self.outward(h)
        return out


def _table(made: Any, x: Tensor, *shape: int | None) -> Tensor:
    """The table of positions for ``x``. Kept for the next, unless x is one of a plan's tensors without values."""
    table: Tensor = (made if type(x) is Tensor else made.__wrapped__)(*shape, device=x.device, dtype=x.dtype)
    return table


def _mlp(inner: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, width), nn.SiLU(), nn.Linear(width, width))


def _normed(x: Tensor, norm: str, eps: float) -> Tensor:
    shape = x.shape[-1:]
    # Back to x's precision, in which statistics were not: autocast on CUDA would go on in float32 from here.
    return (F.layer_norm(x, shape, eps=eps) if norm == "layer" else F.rms_norm(x, shape, eps=eps)).to(x.dtype)


def _steered(x: Tensor, norm: str, eps: float, scale: Tensor, shift: Tensor) -> Tensor:
    """norm(x [b n w]) * (1 + scale [b w]) + shift [b w]."""
    scale, shift = (1 + scale[:, None]).to(x.dtype), shift[:, None].to(x.dtype)
    return torch.addcmul(shift, _normed(x, norm, eps), scale)


def _normed_heads(vectors: Tensor, scale: Tensor) -> Tensor:
    """RMS norm over each head [.. heads d] with a learned scale for all heads."""
    return _normed(vectors, "rms", _EPS) * scale.to(vectors.dtype)
