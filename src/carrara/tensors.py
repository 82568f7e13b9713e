"""Tensors: shapes, noise that belongs to a picture rather than to a batch, and the way from bytes to [-1, 1] and
back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Index = npt.NDArray[np.int64]

T = TypeVar("T")
_MASK = (1 << 64) - 1


def under(prefix: str, values: Mapping[str, T]) -> dict[str, T]:
    """Those whose names begin so, by the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def misfit(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The first tensor that is missing, surplus or of another shape than the one ``wanted``, in words; "" for none."""
    for name in sorted(given.keys() | wanted.keys()):
        have = tuple(given[name].shape) if name in given else "nothing"
        want = tuple(wanted[name].shape) if name in wanted else "nothing"
        if have != want:
            return f"{name} is {have}, expected {want}"
    return ""


def expand_like(value: Tensor, like: Tensor) -> Tensor:
    """Gives ``value [b]`` (or a scalar) trailing axes of length one, so that it broadcasts over ``like [b ...]``."""
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def mix(*numbers: int) -> int:
    """One 64-bit seed from several integers (splitmix64 over each in turn): near inputs give unrelated seeds."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + (number & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator seeded by all the numbers together, e.g. ``generator(seed, seen, rank)``."""
    return torch.Generator().manual_seed(mix(*numbers) >> 1)


class PictureNoise:
    """Gaussian noise for pictures by index: draw k for picture i is the same alone and in any batch.

    Always drawn on the CPU in float32, so that devices agree; ``draw`` returns ``[len(indices), *shape]``.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self._generators = [generator(seed, index) for index in indices]

    def draw(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
        """The next noise for every picture, ``[b, *shape]``, float32."""
        return torch.stack([torch.randn(*shape, generator=g) for g in self._generators]).to(device)

    def __call__(self, like: Tensor) -> Tensor:
        """The next noise shaped as ``like [b ...]``, on its device and in its dtype."""
        if like.shape[0] != len(self._generators):
            raise ValueError(f"noise for {len(self._generators)} pictures was asked for {like.shape[0]}")
        return self.draw(like.shape[1:], device=like.device).to(like.dtype)


def from_pixels(pixels: Tensor) -> Tensor:
    """Whole numbers in 0..255 (uint8, …) or, as ``uint16``, in 0..65535, any shape, to float32 in [-1, 1]."""
    return pixels.to(torch.float32).div_(32767.5 if pixels.dtype == torch.uint16 else 127.5).sub_(1.0)


def to_pixels(image: Tensor, bits: int = 8) -> Tensor:
    """An image in [-1, 1] (clipped) to ``uint8`` in 0..255, or with 16 ``bits`` to ``uint16``; rounded."""
    top = 2**bits - 1
    whole = image.float().add(1.0).mul(top / 2).round().clamp(0, top)
    return whole.to(torch.uint8 if bits == 8 else torch.uint16)


def sample_noise(seeds: Sequence[int], shape: Sequence[int], *, stream: int = 0) -> Tensor:
    """Standard normal ``[b, *shape]``, picture i's a function of (seeds[i], stream) alone."""
    return torch.stack([torch.randn(*shape, generator=generator(int(seed), stream)) for seed in seeds])


def sample_uniform(seeds: Sequence[int], *, stream: int) -> Tensor:
    """``float64 [b]`` in (0, 1), picture i's a function of (seeds[i], stream) alone."""
    return torch.tensor([(mix(int(seed), stream) + 0.5) / 2**64 for seed in seeds], dtype=torch.float64)
