"""Multistep samplers: one estimate a step, earlier ones remembered: DPM++ 2M and 3M, UniPC, LMS, PLMS and DEIS.

Every one begins with lower order until it has something to remember, and ends with Euler's rule where its own
would look at the infinite lambda of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from carrara.diffusion.samplers.path import (
    Denoise,
    Moment,
    Noise,
    Step,
    Straight,
    fade,
    intervals,
    sampler,
    towards,
)
from carrara.diffusion.schedules import NoiseSchedule
from carrara.errors import UserError


@sampler
def dpmpp_2m(
    denoise: Denoise, z: Tensor, times: Tensor, schedule: NoiseSchedule, *, noise: Noise
) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2)."""
    return dpmpp_2m_sde(denoise, z, times, schedule, noise=noise, eta=0.0)


@sampler
def dpmpp_2m_sde(
    denoise: Denoise,
    z: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    noise: Noise,
    eta: float = 1.0,
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M), the midpoint form (Lu et al. 2022b); eta = 0 is ``dpmpp_2m``."""
    past: list[tuple[Tensor, Tensor]] = []  # (lambda, x0), the newest last
    for index, (t, s) in intervals(times, schedule):
        x0 = aim = denoise(z, t.time)
        if past and s.sigma > 0:
            lam, before = past[-1]
            aim = x0 + (s.lam - t.lam) / (2 * (t.lam - lam)) * (x0 - before)
        z = _with_noise(z, aim, t, s, eta, noise)
        yield Step(index, z, x0)
        past = [(t.lam, x0)]


@sampler
def dpmpp_3m_sde(
    denoise: Denoise,
    z: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    noise: Noise,
    eta: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver++(3M) with noise: first and second differences of three estimates (k-diffusion).

    As there (and in diffusers), ``curve`` is h^2 x0'' / 2 but weighted as if it were h^2 x0'', so that the order is 2
    and not 3.
    """
    past: list[tuple[Tensor, Tensor]] = []
    for index, (t, s) in intervals(times, schedule):
        x0 = aim = denoise(z, t.time)
        if past and s.sigma > 0:
            h = s.lam - t.lam
            decay = (1 + eta) * h
            phi_1 = -torch.expm1(-decay)
            phi_2 = 1 - phi_1 / decay
            phi_3 = phi_2 / decay - 0.5
            (lam_1, x0_1), (lam_2, x0_2) = past[-1], past[0]
            rate, curve = h * (x0 - x0_1) / (t.lam - lam_1), 0 * x0
            if len(past) == 2:
                rate_before = h * (x0_1 - x0_2) / (lam_1 - lam_2)
                curve = h * (rate - rate_before) / (t.lam - lam_2)
                rate = rate + (t.lam - lam_1) / h * curve
            aim = x0 + (phi_2 * rate - phi_3 * curve) / phi_1
        z = _with_noise(z, aim, t, s, eta, noise)
        yield Step(index, z, x0)
        past = [*past[-1:], (t.lam, x0)]


def _with_noise(z: Tensor, x0: Tensor, t: Moment, s: Moment, eta: float, noise: Noise) -> Tensor:
    """The noisy equation solved for a constant estimate; the same as ``ancestral_split`` at eta 0 and 1."""
    kept = fade(t, s) ** eta
    z = towards(z, x0, t, s._replace(sigma=kept * s.sigma))
    up = s.sigma * (1 - kept**2).sqrt()
    return z + up * noise(z) if up > 0 else z


@sampler
def unipc(
    denoise: Denoise, z: Tensor, times: Tensor, schedule: NoiseSchedule, *, noise: Noise, order: int = 2
) -> Iterator[Step]:
    """UniPC with B(h) = exp(h) - 1 (Zhao et al. 2023, Algorithms 1 and 2, on estimates of x0).

    A step's end is corrected by the estimate made there for the next step, which costs nothing; the steps
    yielded are the predictions. Towards the data the order falls by one a step, to 1 in the last (their code).
    """
    _check_order(order, 3)
    falling = float(schedule.sigma(times[-1])) == 0
    past: list[tuple[Moment, Tensor]] = []  # the newest last
    start = z
    for index, (t, s) in intervals(times, schedule):
        x0 = denoise(z, t.time)
        if past:
            z = towards(start, _unified(past, t, at_end=x0), past[-1][0], t)
        left = len(times) - 1 - index if falling else order
        past = [*past, (t, x0)][-min(order, left) :]
        start, z = z, towards(z, _unified(past, s), t, s)
        yield Step(index, z, x0)


def _unified(past: list[tuple[Moment, Tensor]], s: Moment, at_end: Tensor | None = None) -> Tensor:
    """What to aim at from the newest of ``past`` to s: x0 + sum_k rho_k D_k."""
    t, x0 = past[-1]
    if s.sigma == 0:
        return x0
    h = s.lam - t.lam
    # A point in pure noise lies infinitely far back: its difference quotient is 0 and it is left out.
    points = [((m.lam - t.lam) / h, x) for m, x in past[-2::-1] if m.alpha > 0]
    if at_end is not None:
        points.append((torch.ones_like(h), at_end))
    if not points:
        return x0
    rho = _unified_weights(torch.tensor([r for r, _ in points], dtype=torch.float64), h)
    return sum((w / r * (x - x0) for w, (r, x) in zip(rho, points, strict=True)), start=x0)


def _unified_weights(r: Tensor, h: Tensor) -> Tensor:
    """rho with sum_k rho_k r_k^(j-1) = j! phi_(j+1)(-h) / phi_1(-h) for j = 1 ... K; 1/2 where K is 1."""
    if len(r) == 1:
        return torch.full_like(r, 0.5)
    term, right = torch.expm1(-h), []
    for j in range(1, len(r) + 1):
        term = term / -h - 1 / math.factorial(j)
        right.append(math.factorial(j) * term / torch.expm1(-h))
    powers = torch.stack([r**j for j in range(len(r))])
    rho: Tensor = torch.linalg.solve(powers, torch.tensor(right, dtype=torch.float64))
    return rho


@sampler
def lms(
    denoise: Denoise, z: Tensor, times: Tensor, schedule: NoiseSchedule, *, noise: Noise, order: int = 4
) -> Iterator[Step]:
    """Adams-Bashforth on an uneven grid: a polynomial in u through ``order`` slopes (k-diffusion)."""
    _check_order(order, 4)
    line = Straight(schedule)
    past: list[tuple[Tensor, Tensor]] = []  # (u, slope), the newest last
    for index, (t, s) in intervals(times, schedule):
        x0 = denoise(z, t.time)
        past = [*past, (line.u(t), line.slope(z, x0, t))][-order:]
        z = line.follow(z, _mean_slope(past, line.u(s), torch.ones_like), t, s)
        yield Step(index, z, x0)


@sampler
def deis(
    denoise: Denoise, z: Tensor, times: Tensor, schedule: NoiseSchedule, *, noise: Noise, order: int = 2
) -> Iterator[Step]:
    """DEIS with a polynomial in log u through ``order`` slopes (Zhang & Chen 2023)."""
    _check_order(order, 4)
    line = Straight(schedule)
    past: list[tuple[Tensor, Tensor]] = []  # (log u, slope), the newest last
    for index, (t, s) in intervals(times, schedule):
        x0 = denoise(z, t.time)
        past = [*past, (line.u(t).log(), line.slope(z, x0, t))][-order if s.sigma > 0 else -1 :]
        z = line.follow(z, _mean_slope(past, line.u(s).log(), torch.exp), t, s)
        yield Step(index, z, x0)


def _mean_slope(
    past: list[tuple[Tensor, Tensor]], end: Tensor, density: Callable[[Tensor], Tensor]
) -> Tensor:
    """The polynomial through (place, slope) pairs, averaged over u from the newest place to ``end``.

    du = density(place) dplace. Quadrature with 32 nodes: exact for a polynomial, 1e-15 for an exponential.
    """
    places = [place for place, _ in past]
    if len(past) == 1:
        return past[0][1]
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(32))
    nodes = places[-1] + (end - places[-1]) * (nodes + 1) / 2
    weights = weights * density(nodes)
    mean = torch.zeros_like(past[0][1])
    for place, slope in past:
        others = [(nodes - other) / (place - other) for other in places if other is not place]
        mean = mean + (weights * torch.stack(others).prod(0)).sum() / weights.sum() * slope
    return mean


@sampler
def plms(
    denoise: Denoise, z: Tensor, times: Tensor, schedule: NoiseSchedule, *, noise: Noise
) -> Iterator[Step]:
    """Adams-Bashforth as if the grid were even (Liu et al. 2022, PNDM), its first step by Heun's rule.

    That is latent diffusion's PLMS. One estimate more than steps; the true coefficients are those of ``lms``.
    """
    line = Straight(schedule)
    past: list[Tensor] = []  # slopes, the newest first
    for index, (t, s) in intervals(times, schedule):
        x0 = denoise(z, t.time)
        past = [line.slope(z, x0, t), *past[:3]]
        slope = sum((c * old for c, old in zip(_ADAMS[len(past)], past, strict=True)), start=0 * z)
        if index == 0 and line.resolves(s, t, z.dtype):
            there = line.follow(z, slope, t, s)
            slope = (slope + line.slope(there, denoise(there, s.time), s)) / 2
        z = line.follow(z, slope, t, s)
        yield Step(index, z, x0)


_ADAMS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def _check_order(order: int, highest: int) -> None:
    if not 1 <= order <= highest:
        raise UserError(f"order must be from 1 to {highest}, got {order}")
