"""Editing: starting from a picture, keeping part of one, walking between two, finding a picture's noise.

All of it is arithmetic around a ``Denoise`` and a grid; any sampler does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from carrara.diffusion.grids import check_times
from carrara.diffusion.process import noised
from carrara.diffusion.samplers.path import (
    Denoise,
    Noise,
    Step,
    Straight,
    ancestral_split,
    intervals,
    moment,
    renoised,
    towards,
)
from carrara.diffusion.samplers.single_step import ddim
from carrara.diffusion.schedules import NoiseSchedule
from carrara.errors import UserError


class Start(NamedTuple):
    """Where a sampler begins: ``z`` at ``times[0]``. With strength 0 there is one time, and nothing to do."""

    z: Tensor
    times: Tensor


def image_to_image(
    latent: Tensor, noise: Tensor, times: Tensor, schedule: NoiseSchedule, *, strength: float
) -> Start:
    """The latent noised to where the last ``strength`` of the steps begin (Meng et al. 2022, SDEdit).

    1 is the whole grid, 0 the picture as it is; between, the nearest whole number of steps.
    """
    check_times(times)
    if not 0 <= strength <= 1:
        raise UserError(f"strength must be from 0 (the picture as it is) to 1 (a new one), got {strength}")
    first = len(times) - 1 - round(strength * (len(times) - 1))
    kept = times[first:]
    return Start(noised(schedule, latent, noise, kept[0]) if strength > 0 else latent, kept)


def keep(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Inpainting by exact replacement: where ``mask`` is 1 the estimate is x0, where it is 0 it is ``known``.

    ``known`` is a latent [b c h w], ``mask`` broadcasts to it and may be soft. Every sampler
    carries z towards what it is told, so the kept region follows its true path at every step and ends as
    ``known`` exactly.
    """
    mask = _fitting(mask, known)
    return lambda z, t: mask * denoise(z, t) + (1 - mask) * known


def repaint(
    denoise: Denoise,
    z: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    noise: Noise,
    known: Tensor,
    mask: Tensor,
    jump: int = 10,
    resamples: int = 10,
) -> Iterator[Step]:
    """RePaint (Lugmayr et al. 2022, Algorithm 1): DDPM steps that keep a region, gone over again and again.

    After every ``jump`` steps z is noised back by as many and they are taken anew, ``resamples`` times in
    all, so that the painted region can agree with the known one. ``known`` and ``mask`` are as in ``keep``;
    here the known region of z itself is replaced at every step.
    """
    check_times(times)
    mask = _fitting(mask, known)
    if jump < 1 or resamples < 1:
        raise UserError(f"RePaint needs jump and resamples of 1 or more, got {jump} and {resamples}")
    return _repaint(
        denoise, z, times, schedule, noise, known, mask, _there_and_back(len(times), jump, resamples)
    )


def _repaint(
    denoise: Denoise,
    z: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    noise: Noise,
    known: Tensor,
    mask: Tensor,
    order: list[int],
) -> Iterator[Step]:
    stops = [moment(time, schedule) for time in times]
    index = 0
    for t, s in pairwise(stops[place] for place in order):
        if s.sigma > t.sigma:
            z = renoised(z, t, s, noise)
            continue
        x0 = denoise(z, t.time)
        down, up = ancestral_split(t, s, 1.0)
        z = towards(z, x0, t, down)
        kept = s.alpha * known
        if s.sigma > 0:
            z = z + up * noise(z)
            kept = kept + s.sigma * noise(z)
        z = mask * z + (1 - mask) * kept
        yield Step(index, z, x0)
        index += 1


def _there_and_back(stops: int, jump: int, resamples: int) -> list[int]:
    """The places of a grid in the order of visit: 0 1 2, 0 1 2, 2 3 4, 2 3 4 ... for jump 2, resamples 2."""
    order = [0]
    for first in range(0, stops - 1, jump):
        leg = list(range(first, min(first + jump, stops - 1) + 1))
        again = leg[-1] < stops - 1  # from the data itself there is no way back
        order += leg[1:] + (leg * (resamples - 1) if again else [])
    return order


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """From a (0) to b (1) along the sphere, for each picture [b c ...] (Shoemake 1985).

    Keeps the length that Gaussian noise has; a straight line between two noises would pass through grey.
    """
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    lengths = (flat_a.norm(dim=1) * flat_b.norm(dim=1)).clamp(min=torch.finfo(a.dtype).tiny)
    cosine = ((flat_a * flat_b).sum(1) / lengths).clamp(-1, 1)
    angle = cosine.arccos().reshape(-1, *(1,) * (a.ndim - 1))
    straight = angle.sin() < 1e-4  # (nearly) parallel: the sphere is flat
    sine = torch.where(straight, 1, angle.sin())
    share_a = torch.where(straight, 1 - weight, ((1 - weight) * angle).sin() / sine)
    share_b = torch.where(straight, weight, (weight * angle).sin() / sine)
    return share_a * a + share_b * b


def invert(
    denoise: Denoise, latent: Tensor, times: Tensor, schedule: NoiseSchedule, *, iterations: int = 1
) -> Iterator[Step]:
    """DDIM backwards: the noise from which ``ddim`` on this grid draws this latent (Song et al. 2021a, 4.3).

    A step up to t has to know the estimate at t; it begins with that at the old place taken for the new one,
    and with more ``iterations`` it is solved as the fixed point that it is (Pan et al. 2023).
    """
    check_times(times)
    if iterations < 1:
        raise UserError(f"inversion needs 1 iteration or more, got {iterations}")
    return _invert(denoise, latent, times, schedule, iterations)


def _invert(
    denoise: Denoise, z: Tensor, times: Tensor, schedule: NoiseSchedule, iterations: int
) -> Iterator[Step]:
    line = Straight(schedule)
    for index, (s, t) in intervals(times.flip(0), schedule):  # upwards
        y, part = z / line.scale(s), line.u(s) / line.u(t)
        up = line.scale(t) * y
        for _ in range(iterations):
            x0 = denoise(up, t.time)
            # y_s = part * y_t + (1 - part) * x0, ddim's step; to avoid dividing by part: y_t = y_s + rest.
            up = line.scale(t) * (y + (1 - part) * (up / line.scale(t) - x0))
        z = up
        yield Step(index, z, x0)


def round_trip_error(
    denoise: Denoise, latent: Tensor, times: Tensor, schedule: NoiseSchedule, *, iterations: int = 1
) -> Tensor:
    """How far inversion and ``ddim`` bring a latent from itself: root mean square for each picture, [b]."""
    *_, up = invert(denoise, latent, times, schedule, iterations=iterations)
    *_, down = ddim(denoise, up.z, times, schedule, noise=torch.zeros_like)
    return (down.z - latent).square().flatten(1).mean(1).sqrt()


def _fitting(mask: Tensor, known: Tensor) -> Tensor:
    """The mask in the latent's dtype; UserError where it is of another size or holds other values."""
    sizes = zip(mask.shape[::-1], known.shape[::-1], strict=False)
    if mask.ndim > known.ndim or any(m not in (1, k) for m, k in sizes):
        raise UserError(f"a mask of {list(mask.shape)} does not fit a latent of {list(known.shape)}")
    if not ((mask >= 0) & (mask <= 1)).all():
        raise UserError("a mask must hold values from 0 (keep) to 1 (paint)")
    return mask.to(known)
