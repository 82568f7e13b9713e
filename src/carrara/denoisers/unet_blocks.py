"""What a U-Net is made of: residual blocks, attention with and without a transformer, changes of size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.context import Context
from carrara.layers import GroupNorm, attend, zero

Change = Literal["down", "up"]


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution, twice; the time embedding enters at the second norm (Dhariwal & Nichol 2021).

    With ``change`` it halves or doubles the size between its first norm and convolution, and of its skip.
    """

    def __init__(
        self,
        inner: int,
        outer: int,
        embedding: int,
        scale_shift: bool,
        *,
        groups: int | None = None,
        eps: float = 1e-5,
        dropout: float = 0.0,
        change: Change | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift, self.change = scale_shift, change
        self.norm1, self.conv1 = norm(inner, groups, eps), nn.Conv2d(inner, outer, 3, padding=1)
        self.embed = nn.Linear(embedding, 2 * outer if scale_shift else outer)
        self.norm2, self.conv2 = norm(outer, groups, eps), zero(nn.Conv2d(outer, outer, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        """``x [b c h w]``, ``embedding [b e]`` after its last SiLU."""
        h = self.norm1(x, silu=True)
        if self.change is not None:
            x, h = (F.avg_pool2d(v, 2) if self.change == "down" else doubled(v) for v in (x, h))
        h, e = self.conv1(h), self.embed(embedding)
        h = (
            self.norm2(h, *e.chunk(2, 1), silu=True)
            if self.scale_shift
            else self.norm2(h + e[..., None, None], silu=True)
        )
        out: Tensor = self.skip(x) + self.conv2(self.dropout(h))
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
        """``x [b n c]``; the same shape back."""
        query, key, value = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out1(attend(query, key, value, self.heads))
        if self.norm2 is not None and context.tokens is not None:
            tokens = context.tokens
            key, value = context.once(self, lambda: self.key_value(tokens)).chunk(2, -1)
            x = x + self.out2(attend(self.query(self.norm2(x)), key, value, self.heads, context.mask))
        up, gate = self.gate(self.norm3(x)).chunk(2, -1)
        out: Tensor = x + self.out3(up * F.gelu(gate))
        return out


class SpatialTransformer(nn.Module):
    """Transformer blocks over all positions of a feature map, around a skip (Rombach et al. 2022, section 3.3).

    Its first and last layer are the same mathematics as linear layers and as convolutions of size one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        tokens: int | None,
        *,
        groups: int | None = None,
        eps: float = 1e-5,
        convolution: bool = False,
    ) -> None:
        super().__init__()
        self.norm, self.inward = norm(width, groups, eps), _projection(width, convolution)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, tokens) for _ in range(depth))
        self.outward = zero(_projection(width, convolution))

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        """``x [b c h w]``; the same shape back."""
        rows = _project(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2), self.inward)  # b n c
        for block in self.blocks:
            rows = block(rows, context)
        return x + _map(_project(rows, self.outward), x)


class SelfAttention(nn.Module):
    """norm, attention among all positions, around a skip: without a transformer's feed-forward (Ho et al. 2020)."""

    def __init__(
        self, width: int, heads: int, *, groups: int | None = None, eps: float = 1e-5, normed: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm(width, groups, eps) if normed else nn.Identity()
        self.qkv, self.out = nn.Linear(width, 3 * width), zero(nn.Linear(width, width))

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        """``x [b c h w]``; the same shape back."""
        # In float32 PyTorch's norm is more accurate on rows of positions than on rows of channels.
        h = self.norm(x.contiguous() if x.dtype == torch.float32 else x)
        rows = h.permute(0, 2, 3, 1).flatten(1, 2)  # b n c
        query, key, value = self.qkv(rows).chunk(3, -1)
        return _map(self.out(attend(query, key, value, self.heads)), x) + x


class Resample(nn.Module):
    """Half the size by a strided convolution, or double it by nearest neighbour and a convolution.

    ``asymmetric`` pads below and right only, as TensorFlow's convolutions do.
    """

    def __init__(self, channels: int, up: bool, asymmetric: bool = False) -> None:
        super().__init__()
        self.up, self.asymmetric = up, asymmetric and not up
        self.conv = nn.Conv2d(
            channels, channels, 3, stride=1 if up else 2, padding=0 if self.asymmetric else 1
        )

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        """``x [b c h w]``, half or twice as wide and high."""
        if self.up:
            x = doubled(x)
        elif self.asymmetric:
            x = F.pad(x, (0, 1, 0, 1))
        out: Tensor = self.conv(x)
        return out


class Stage(nn.ModuleList):
    """Layers one after another, given the same time embedding and context."""

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        """``x [b c h w]`` through all of them."""
        for part in self:
            x = part(x, embedding, context)
        return x


def doubled(x: Tensor) -> Tensor:
    """Each position of ``[b c h w]`` as a square of four."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def norm(channels: int, groups: int | None, eps: float) -> GroupNorm:
    """Of so many groups; None means 32 where the channels are a multiple of it, else 8."""
    return GroupNorm(channels, groups or (32 if channels % 32 == 0 else 8), eps)


def _map(rows: Tensor, like: Tensor) -> Tensor:
    """Rows [b n c] as the feature map [b c h w] that ``like`` is."""
    b, c, h, w = like.shape
    return rows.reshape(b, h, w, c).permute(0, 3, 1, 2)


def _projection(width: int, convolution: bool) -> nn.Linear | nn.Conv2d:
    return nn.Conv2d(width, width, 1) if convolution else nn.Linear(width, width)


def _project(rows: Tensor, layer: nn.Module) -> Tensor:
    return F.linear(rows, layer.weight.flatten(1), layer.bias)  # type: ignore[arg-type,operator]
