"""Layers that autoencoders and denoisers share: group normalization that is fast on every device, attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _ChannelsLastGroupNorm(torch.autograd.Function):
    """Group normalization over [b n c] rows with statistics in float32 and the arithmetic in x's own dtype.

    PyTorch's own CPU kernel takes two to five times as long in bfloat16, more than the convolution it follows
    where channels are few; under CUDA's autocast it computes and leaves float32. ``scale`` and ``shift`` are
    [1 c] or [b c] (one pair a picture: adaptive norm). With ``silu`` the activation after it is part of it, so
    that only x is kept for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        b, n, c = x.shape
        size = n * (c // groups)
        total, squares = _sums(x)  # b c
        mean = total.view(b, groups, -1).sum(2) / size  # b g
        square = squares.view(b, groups, -1).sum(2) / size
        inverse = (square - mean * mean).clamp_min(0).add(eps).rsqrt()
        ctx.save_for_backward(x, scale, shift, mean, inverse)
        ctx.groups, ctx.silu = groups, silu
        out = _normalized(x, scale, shift, mean, inverse)
        return F.silu(out, inplace=True) if silu else out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, mean, inverse = ctx.saved_tensors
        (d,) = grads
        b, n, c = x.shape
        groups, width = ctx.groups, c // ctx.groups
        size = n * width
        d = d.contiguous()
        if ctx.silu:
            d = torch.ops.aten.silu_backward(d, _normalized(x, scale, shift, mean, inverse))
        mean_c, inverse_c = mean.repeat_interleave(width, 1), inverse.repeat_interleave(width, 1)
        d_shift = _sum(d)  # b c
        d_scale = (_sum(d * x) - mean_c * d_shift) * inverse_c
        # dx = inverse * (g - mean(g) - xhat * mean(g * xhat)) with g = scale * d, gathered as d*k + x*k1 + k0
        weight = scale.float().expand(b, c)
        about = (d_shift * weight).view(b, groups, -1).sum(2) / size * inverse
        along = (d_scale * weight).view(b, groups, -1).sum(2) / size * inverse
        k1 = -along.repeat_interleave(width, 1) * inverse_c
        k0 = -about.repeat_interleave(width, 1) - k1 * mean_c
        k = weight * inverse_c
        dx = torch.addcmul(k0.to(x.dtype)[:, None], x, k1.to(x.dtype)[:, None])
        dx = dx.addcmul_(d, k.to(x.dtype)[:, None])
        if scale.shape[0] == 1:
            d_scale, d_shift = d_scale.sum(0, keepdim=True), d_shift.sum(0, keepdim=True)
        return dx, d_scale.to(scale.dtype), d_shift.to(shift.dtype), None, None, None


def _normalized(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """``(x - mean) * inverse * scale + shift`` of rows [b n c] with moments [b g]."""
    width = x.shape[2] // mean.shape[1]
    gain = scale.float() * inverse.repeat_interleave(width, 1)  # b c
    offset = shift.float() - mean.repeat_interleave(width, 1) * gain
    return torch.addcmul(offset.to(x.dtype)[:, None], x, gain.to(x.dtype)[:, None])


def _sum(x: Tensor) -> Tensor:
    """Sums [b c] of rows [b n c] in float32; on a CPU a copy in float32 is faster than to convert within."""
    return x.float().sum(1) if x.device.type == "cpu" else x.sum(1, dtype=torch.float32)


def _sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and sums of squares [b c] of rows [b n c], in float32."""
    if x.device.type == "cpu":
        precise = x.float()
        return precise.sum(1), precise.square().sum(1)
    return x.sum(1, dtype=torch.float32), torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).square()


class GroupNorm(nn.Module):
    """Group normalization with optional scale and shift per picture (AdaGN): norm(x) * (1 + scale) + shift."""

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups")
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, silu: bool = False
    ) -> Tensor:
        """``x [b c h w]``, ``scale [b c]``, ``shift [b c]``; the same shape back, after SiLU if asked."""
        b, c, h, w = x.shape
        if x.dtype == torch.bfloat16:
            gain, offset = self.weight[None], self.bias[None]
            if scale is not None and shift is not None:
                gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
            rows = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
            out: Tensor = _ChannelsLastGroupNorm.apply(  # type: ignore[no-untyped-call]
                rows, gain, offset, self.groups, self.eps, silu
            )
            return out.view(b, h, w, c).permute(0, 3, 1, 2)
        out = torch.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        if scale is not None and shift is not None:
            out = out * (1 + scale[..., None, None]).to(x.dtype) + shift[..., None, None].to(x.dtype)
        return F.silu(out) if silu else out


# In bfloat16, up to this many scores a head the plain products are faster on a CPU than the fused kernel (two to five
# times in its backward pass), and their memory does not matter. In float32 the fused kernel is always faster.
_FEW_SCORES = 128 * 128


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention over ``query [b n d]`` and ``key, value [b l d]``; ``mask [b l]`` True where real."""
    q, k, v = (
        x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key, value)
    )  # b heads n d/heads
    bias = None if mask is None else mask[:, None, None]
    few = query.shape[1] * key.shape[1] <= _FEW_SCORES
    if few and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        scores = (q * q.shape[-1] ** -0.5) @ k.mT  # b heads n l
        if bias is not None:
            scores = scores.masked_fill(~bias, float("-inf"))
        out = scores.softmax(-1).to(v.dtype) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, bias)
    rows: Tensor = out.transpose(1, 2).flatten(2)
    return rows


def zero(module: nn.Module) -> nn.Module:
    """The module with its parameters at zero: a branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
