"""Several estimates a step (or several times a step), nothing remembered: Heun, DPM-Solver-2, DPM++ 2S and SDE;
Restart around Heun, RePaint around DDPM."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from carrara.diffusion.samplers.path import (
    Denoise,
    Moment,
    Noise,
    Step,
    Straight,
    ancestral_split,
    fade,
    intervals,
    middle,
    moment,
    renoised,
    sampler,
    towards,
)
from carrara.diffusion.schedules import NoiseSchedule
from carrara.errors import UserError


@sampler
def heun(
    denoise: Denoise, z: Tensor, times: Tensor, schedule: NoiseSchedule, *, noise: Noise
) -> Iterator[Step]:
    """The mean of the slopes at both ends of the step (Karras et al. 2022, Algorithm 1); second order."""
    line = Straight(schedule)
    for index, (t, s) in intervals(times, schedule):
        z, x0 = _heun_step(denoise, z, t, s, line)
        yield Step(index, z, x0)


def _heun_step(denoise: Denoise, z: Tensor, t: Moment, s: Moment, line: Straight) -> tuple[Tensor, Tensor]:
    """(z at s, the estimate at t)."""
    x0 = denoise(z, t.time)
    if not line.resolves(s, t, z.dtype):  # at the data, or as good as there: Euler's rule
        return towards(z, x0, t, s), x0
    there = denoise(towards(z, x0, t, s), s.time)
    aim = x0 + line.u(t) / (2 * line.u(s)) * (there - x0)
    return towards(z, aim, t, s), x0


@sampler
def dpm2(
    denoise: Denoise, z: Tensor, times: Tensor, schedule: NoiseSchedule, *, noise: Noise
) -> Iterator[Step]:
    """The slope at the geometric middle of the step (DPM-Solver-2, Lu et al. 2022a, Algorithm 1)."""
    line = Straight(schedule)
    for index, (t, s) in intervals(times, schedule):
        x0 = denoise(z, t.time)
        aim = x0
        m = line.between(t, s)
        if line.resolves(m, t, z.dtype):
            aim = x0 + line.u(t) / line.u(m) * (denoise(towards(z, x0, t, m), m.time) - x0)
        z = towards(z, aim, t, s)
        yield Step(index, z, x0)


@sampler
def dpmpp_2s_ancestral(
    denoise: Denoise,
    z: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    noise: Noise,
    eta: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver++(2S), the middle half-way in lambda, then noise (k-diffusion).

    eta = 0 is the deterministic solver of Lu et al. 2022b, Algorithm 1 with r = 1/2.
    """
    for index, (t, s) in intervals(times, schedule):
        x0 = aim = denoise(z, t.time)
        down, up = ancestral_split(t, s, eta)
        if t.alpha > 0 and down.sigma > 0:  # a step of infinite lambda has no middle
            m = middle(t, down, schedule)
            aim = denoise(towards(z, x0, t, m), m.time)
        z = towards(z, aim, t, down)
        if up > 0:
            z = z + up * noise(z)
        yield Step(index, z, x0)


@sampler
def dpmpp_sde(
    denoise: Denoise,
    z: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    noise: Noise,
    eta: float = 1.0,
) -> Iterator[Step]:
    """The middle estimate made with noise too, from the same Brownian motion as the step's (k-diffusion)."""
    for index, (t, s) in intervals(times, schedule):
        x0 = aim = denoise(z, t.time)
        down, up = ancestral_split(t, s, eta)
        motion = noise(z) if up > 0 else None
        if t.alpha > 0 and s.sigma > 0:
            m = middle(t, s, schedule)
            halfway, up_halfway = ancestral_split(t, m, eta)
            middle_z = towards(z, x0, t, halfway)
            if motion is not None:
                middle_z = middle_z + up_halfway * motion
                # Brownian motion runs in the level: what is shared is the part of the way to the middle.
                shared = (1 - fade(t, m)) / (1 - fade(t, s))
                motion = shared.sqrt() * motion + (1 - shared).sqrt() * noise(z)
            aim = denoise(middle_z, m.time)
        z = towards(z, aim, t, down)
        if motion is not None:
            z = z + up * motion
        yield Step(index, z, x0)


@sampler
def restart(
    denoise: Denoise,
    z: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    noise: Noise,
    low: float = 0.1,
    high: float = 2.0,
    repeats: int = 1,
) -> Iterator[Step]:
    """Heun, thrown back ``repeats`` times from level ``low`` to ``high`` by new noise (Xu et al. 2023).

    Levels are sigma / alpha and are met at the nearest stops of the grid; more steps are yielded than it has.
    """
    if not 0 < low < high or repeats < 0:
        raise UserError(
            f"restart needs 0 < low < high and repeats of 0 or more; got {low}, {high}, {repeats}"
        )
    line, stops = Straight(schedule), [moment(time, schedule) for time in times]
    levels = [(stop.sigma / stop.alpha).item() for stop in stops[:-1]]
    top, bottom = (min(sum(level > edge for level in levels), len(levels) - 1) for edge in (high, low))
    again = list(range(top, bottom + 1)) * (repeats if top < bottom else 0)
    order = [*range(bottom + 1), *again, *range(bottom + 1, len(stops))]
    index = 0
    for t, s in pairwise(stops[place] for place in order):
        if s.sigma > t.sigma:
            z = renoised(z, t, s, noise)
            continue
        z, x0 = _heun_step(denoise, z, t, s, line)
        yield Step(index, z, x0)
        index += 1


@sampler
def repaint(
    denoise: Denoise,
    z: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    noise: Noise,
    jump: int = 10,
    resamples: int = 10,
) -> Iterator[Step]:
    """DDPM gone over again and again, so that what fills a hole agrees with what is around it (Lugmayr et al. 2022).

    After every ``jump`` steps z is noised back by as many and they are taken anew, ``resamples`` times in all
    (RePaint, Algorithm 1). What is known is held by ``editing.keep``, which gives z there the distribution that line 5
    draws it from.
    """
    if jump < 1 or resamples < 1:
        raise UserError(f"RePaint needs jump and resamples of 1 or more, got {jump} and {resamples}")
    stops, index = [moment(time, schedule) for time in times], 0
    for t, s in pairwise(stops[place] for place in _there_and_back(len(times), jump, resamples)):
        if s.sigma > t.sigma:
            z = renoised(z, t, s, noise)
            continue
        x0 = denoise(z, t.time)
        down, up = ancestral_split(t, s, 1.0)
        z = towards(z, x0, t, down)
        if up > 0:
            z = z + up * noise(z)
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
