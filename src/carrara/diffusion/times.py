"""Which times to train on, made from uniform numbers in (0, 1): the randomness is the caller's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from carrara.diffusion.schedules import NoiseSchedule, time_of_level
from carrara.registry import Table

TIMES: Table[Tensor] = Table("time distribution")
"""``TIMES[name](u, schedule, **options) -> t``; ``u`` and ``t`` are [b], float32 or float64, in [0, 1]."""


@TIMES.add
def uniform(u: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Every time alike."""
    return u


@TIMES.add
def discrete(u: Tensor, schedule: NoiseSchedule, *, steps: int = 1000) -> Tensor:
    """One of the steps 1 ... T alike, t = n/T (Ho et al. 2020, Algorithm 1, line 3)."""
    return (u * steps).ceil().clamp(min=1) / steps


@TIMES.add
def logit_normal(u: Tensor, schedule: NoiseSchedule, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """logit(t) normal: the middle of the path most often (Esser et al. 2024, eq. 19)."""
    return (mean + std * _normal(u)).sigmoid()


@TIMES.add
def lognormal(u: Tensor, schedule: NoiseSchedule, *, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """log(sigma / alpha) normal (Karras et al. 2022, table 1), on any schedule."""
    return time_of_level(schedule, (mean + std * _normal(u.double())).exp()).to(u.dtype)


@TIMES.add
def mode(u: Tensor, schedule: NoiseSchedule, *, scale: float = 1.29) -> Tensor:
    """Heavier in the middle, yet never thin at the ends (Esser et al. 2024, eq. 20)."""
    return 1 - u - scale * ((math.pi / 2 * u).cos() ** 2 - 1 + u)


@TIMES.add
def cosmap(u: Tensor, schedule: NoiseSchedule) -> Tensor:
    """On the straight path, a cosine path's levels at uniform times (Esser et al. 2024, eq. 21)."""
    return 1 - 1 / ((math.pi / 2 * u).tan() + 1)


def _normal(u: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones."""
    normal: Tensor = torch.special.ndtri(u)
    return normal
