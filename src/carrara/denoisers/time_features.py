"""Sines and cosines of the time at geometric frequencies (Vaswani et al. 2017; Ho et al. 2020, appendix B)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LONGEST = 10000.0  # slowest wave, in steps


def time_features(
    t: Tensor, width: int, *, first_step: int = 1, frequency_shift: float = 0.0, sines_first: bool = False
) -> Tensor:
    """``t [b]`` in [0, 1] to float32 ``[b width]``: cosines, then sines of the step's number (or the reverse).

    t = 1/1000 has the number ``first_step``. ``frequency_shift`` 1 lets the slowest wave be ``LONGEST`` itself.
    """
    steps = 1000.0 * t.double()
    if t.dtype == torch.float32:
        # float32 holds n/1000 with an error of up to 3e-5 steps: enough to be seen in the sines of late steps.
        steps = steps + (steps.mul(1e4).round().div(1e4) - steps).detach()
    steps = (steps + (first_step - 1)).float()
    angles = steps[:, None] * frequencies(width, frequency_shift, t.device)
    waves = [angles.sin(), angles.cos()] if sines_first else [angles.cos(), angles.sin()]
    return torch.cat(waves, 1)


def frequencies(width: int, shift: float = 0.0, device: torch.device | None = None) -> Tensor:
    """Angles that one step adds to each wave: float32 ``[width / 2]``, from 1 to about 1 / ``LONGEST``."""
    half = width // 2
    # In float32, product before quotient: the very numbers that published networks were trained with.
    exponent = -math.log(LONGEST) * torch.arange(half, dtype=torch.float32, device=device)
    return (exponent / (half - shift)).exp()
