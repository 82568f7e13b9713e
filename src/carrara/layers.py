"""Layers that autoencoders and denoisers share: group normalization and attention that are fast on every device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_own_kernels = True  # of this process, in bfloat16; by trial (`Placement`)


def use_own_kernels(wanted: bool) -> None:
    """Whether group normalization and attention in bfloat16 compute as written here, or as in PyTorch."""
    global _own_kernels
    _own_kernels = wanted


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
        precise = x.to(torch.float32, copy=True)
        return precise.sum(1), precise.square_().sum(1)
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
        if x.dtype == torch.bfloat16 and _own_kernels:
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


# Scores that are computed at once by each thread: in bfloat16 two megabytes, which stay in a processor's cache.
_AT_ONCE, _THREADS = 1 << 20, 8  # of more threads the caches are shared
# Keys come in so many: PyTorch's softmax takes three times as long on rows with a remainder.
_MULTIPLE = 32


class _CachedAttention(torch.autograd.Function):
    """Attention on a CPU in bfloat16, a part of the scores after another (Rabe & Staats 2021; Dao et al. 2022).

    PyTorch's fused kernel computes in float32 inside and takes one and a half to five times as long. The gradient
    computes the scores again, so that only query, key and value are kept. They are [b heads n d]; ``hidden``
    [b 1 1 l] is True where a key is none.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
        ctx.save_for_backward(query, key, value, hidden)
        scores = _Scores(query, key, hidden, 2)
        v = scores.rows(value)
        out = torch.empty_like(scores.q)
        for g, r in scores.parts():
            out[g, r] = torch.bmm(scores.shares(g, r), v[g])
        return out.view(query.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, hidden = ctx.saved_tensors
        scores = _Scores(query, key, hidden, 3)
        q, k, v = scores.q, scores.k, scores.rows(value)
        d = grads[0].reshape(q.shape)
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros(k.shape, dtype=torch.float32) for _ in range(2))
        for g, r in scores.parts():
            p = scores.shares(g, r)
            dp = torch.bmm(d[g, r], v[g].mT, out=scores.place(2, p))
            ds = torch.ops.aten._softmax_backward_data.out(dp, p, -1, p.dtype, grad_input=scores.place(0, p))
            dv[g] += torch.bmm(p.mT, d[g, r])
            dq[g, r] = torch.bmm(ds, k[g])
            dk[g] += torch.bmm(ds.mT, q[g, r])
        dk, dv = (x[:, : key.shape[2]].to(key.dtype).view(key.shape) for x in (dk, dv))
        return (dq * query.shape[-1] ** -0.5).view(query.shape), dk, dv, None


class _Scores:
    """The softmax of the scores of queries and keys [b heads n d], part by part, in places that are used again."""

    def __init__(self, query: Tensor, key: Tensor, hidden: Tensor | None, places: int) -> None:
        b, heads, n, d = query.shape
        self.length = key.shape[2]
        self.q, self.k = (query * d**-0.5).reshape(b * heads, n, d), self.rows(key)
        self.hidden = None
        if hidden is not None:
            self.hidden = hidden.expand(b, heads, 1, -1).reshape(b * heads, 1, -1)
        keys, at_once = self.k.shape[1], _AT_ONCE * min(torch.get_num_threads(), _THREADS)
        self.together = max(1, at_once // (n * keys))  # heads, or
        self.some = min(n, max(16, at_once // keys))  # so many queries of one
        self.places = query.new_empty(places, min(self.together, b * heads) * self.some * keys)

    def rows(self, x: Tensor) -> Tensor:
        """Keys or values of all heads in a row: [b heads, l, d], with zeros to a whole multiple."""
        return F.pad(x.flatten(0, 1), (0, 0, 0, -x.shape[2] % _MULTIPLE))

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """Which heads and which of their queries belong together."""
        for head in range(0, self.q.shape[0], self.together):
            for row in range(0, self.q.shape[1], self.some):
                yield slice(head, head + self.together), slice(row, row + self.some)

    def place(self, number: int, like: Tensor) -> Tensor:
        """One of the places, in the shape of another."""
        return self.places[number, : like.numel()].view(like.shape)

    def shares(self, heads: slice, queries: slice) -> Tensor:
        """[g n l], in place 1; place 0 is overwritten, too."""
        q, k = self.q[heads, queries], self.k[heads]
        shape = (q.shape[0], q.shape[1], k.shape[1])
        scores, shares = (self.places[i, : math.prod(shape)].view(shape) for i in range(2))
        torch.bmm(q, k.mT, out=scores)
        scores[..., self.length :] = float("-inf")
        if self.hidden is not None:
            scores[..., : self.length].masked_fill_(self.hidden[heads], float("-inf"))
        out: Tensor = torch.ops.aten._softmax.out(scores, -1, False, out=shares)  # whatever autocast says
        return out


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Multi-head attention over ``query [b n d]`` and ``key, value [b l d]``; ``mask [b l]`` True where real.

    ``causal``, without a mask: each place attends to those up to its own.
    """
    q, k, v = (
        x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key, value)
    )  # b heads n d/heads
    bias = None if mask is None else mask[:, None, None]
    own = _own_kernels and q.device.type == "cpu" and q.dtype == torch.bfloat16
    if own and not causal and not torch.compiler.is_compiling():
        out = _CachedAttention.apply(q, k, v, None if bias is None else ~bias)  # type: ignore[no-untyped-call]
    else:
        out = F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal)
    rows: Tensor = out.transpose(1, 2).flatten(2)
    return rows


def zero(module: nn.Module) -> nn.Module:
    """The module with its parameters at zero: a branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
