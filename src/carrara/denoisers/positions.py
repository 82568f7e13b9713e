"""Positions: where a patch lies, as sines: added to it (Vaswani et al. 2017) or turned into its products (Su et al.
2021)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_FIXED = 10000.0  # the longest wave / 2 pi, in patches
# Language models take 10,000 for texts of that length; a side has a few hundred patches at most, and
# longer waves than that would be constants to every pair of them.
_ROTARY = 100.0


def waves(values: Tensor, count: int, longest: float) -> Tensor:
    """Angles of ``values [n]`` at ``count`` geometric frequencies from 1 to just above 1 / longest: float64 [n c]."""
    exponents = torch.arange(count, device=values.device, dtype=torch.float64) / count
    return values.double()[:, None] * torch.exp(exponents * -math.log(longest))


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # what sampling asked for first may serve training next
def fixed(
    height: int,
    width: int,
    channels: int,
    spread: int | None,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """What is added to patches, row by row: [height * width, channels], of which the first half tells the column.

    Computed once for a size, a device and a precision: not to be changed in place.
    """
    sines = []
    for count in (width, height):
        angles = waves(_places(count, spread, device), channels // 4, _FIXED)
        sines.append(torch.cat([angles.sin(), angles.cos()], 1).float())
    x, y = sines
    return torch.cat([x.expand(height, -1, -1), y[:, None].expand(-1, width, -1)], 2).flatten(0, 1).to(dtype)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def rotary(
    height: int,
    width: int,
    head: int,
    spread: int | None,
    before: int = 0,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Cosines and signed sines that ``rotate`` turns heads of width ``head`` by: [2, height * width, head].

    Half of the pairs turn with the row, half with the column (axial), so the product of two patches' vectors
    depends on how far apart they lie and not on where. As many rows as ``before`` says come first and do not turn.
    Computed once as ``fixed`` is.
    """
    y, x = (waves(_places(count, spread, device), head // 4, _ROTARY) for count in (height, width))
    angles = torch.cat([y[:, None].expand(-1, width, -1), x.expand(height, -1, -1)], 2).flatten(0, 1)
    cos, sin = angles.cos(), angles.sin()
    table = torch.stack([torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)]).float().to(dtype)
    still = table.new_zeros(2, before, head)
    still[0].fill_(1)
    return torch.cat([still, table], 1)


def rotate(vectors: Tensor, rotation: Tensor) -> Tensor:
    """``vectors [b n ... head]`` turned by ``rotation [2 n head]``: element i with element i + head/2.

    In the vectors' own precision, in which products of mixed ones are ten times slower on a CPU.
    """
    shape = vectors.shape[1], *(1,) * (vectors.ndim - 3), vectors.shape[-1]
    cos, sin = rotation.to(vectors.dtype).view(2, *shape)
    return torch.addcmul(vectors * cos, vectors.roll(vectors.shape[-1] // 2, -1), sin)


def _places(count: int, spread: int | None, device: torch.device) -> Tensor:
    """Numbers of the patches along a side; with ``spread`` they run over that many, however many there are."""
    places = torch.arange(count, device=device, dtype=torch.float32)
    return places if spread is None else places / (count / spread)
