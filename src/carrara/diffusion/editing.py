"""Editing: starting from a picture, and keeping part of one.

Both are arithmetic around a ``Denoise`` and a grid; any sampler does the rest.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from carrara.diffusion.grids import check_times
from carrara.diffusion.process import noised
from carrara.diffusion.samplers.path import Denoise
from carrara.diffusion.schedules import NoiseSchedule
from carrara.errors import UserError


class Start(NamedTuple):
    """Where a sampler begins: ``z`` at ``times[0]``."""

    z: Tensor
    times: Tensor


def image_to_image(
    latent: Tensor, noise: Tensor, times: Tensor, schedule: NoiseSchedule, *, strength: float
) -> Start:
    """The latent noised to the time from which ``strength`` of the steps are left (Meng et al. 2022, SDEdit).

    Between two stops of the grid that time is read off in proportion, and the nearest whole number of steps, at least
    one, leads from there. 1 is a new picture, from noise alone on any schedule; towards 0 it is the picture as it was.
    """
    check_times(times)
    if not 0 < strength <= 1:
        raise UserError(
            f"strength must be above 0 (the picture as it is) and at most 1 (a new one), got {strength}"
        )
    if strength == 1:
        return Start(schedule.sigma(times[0]).to(noise) * noise, times)
    steps = len(times) - 1
    place = (1 - strength) * steps
    above = min(math.floor(place), steps - 1)
    first = torch.lerp(times[above], times[above + 1], place - above)
    kept = torch.cat([first[None], times[steps - max(1, round(strength * steps)) + 1 :]])
    return Start(noised(schedule, latent, noise, first), kept)


def keep(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Inpainting by exact replacement: where ``mask`` is 1 the estimate is x0, where it is 0 it is ``known``.

    ``known`` is a latent [b c h w], ``mask`` broadcasts to it and may be soft. Every sampler
    carries z towards what it is told, so the kept region follows its true path at every step and ends as
    ``known`` exactly.
    """
    mask = _fitting(mask, known)
    return lambda z, t: mask * denoise(z, t) + (1 - mask) * known


def _fitting(mask: Tensor, known: Tensor) -> Tensor:
    """The mask in the latent's dtype; UserError where it is of another size or holds other values."""
    sizes = zip(mask.shape[::-1], known.shape[::-1], strict=False)
    if mask.ndim > known.ndim or any(m not in (1, k) for m, k in sizes):
        raise UserError(f"a mask of {list(mask.shape)} does not fit a latent of {list(known.shape)}")
    if not ((mask >= 0) & (mask <= 1)).all():
        raise UserError("a mask must hold values from 0 (keep) to 1 (paint)")
    return mask.to(known)
