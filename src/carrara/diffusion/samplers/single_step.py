"""One estimate a step and nothing remembered: DDPM, DDIM (Euler's rule) and consistency sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from carrara.diffusion.samplers.path import (
    Denoise,
    Noise,
    Step,
    ancestral_split,
    fade,
    intervals,
    sampler,
    towards,
)
from carrara.diffusion.schedules import NoiseSchedule
from carrara.errors import UserError


@sampler
def ancestral(
    denoise: Denoise,
    z: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    noise: Noise,
    variance: float | Callable[[Tensor, Tensor], Tensor] = 0.0,
) -> Iterator[Step]:
    """DDPM (Ho et al. 2020, Algorithm 2), on any path and grid.

    ``variance`` v in [0, 1] lies between the posterior's (0) and the forward step's (1, "beta_t") on a log
    scale; where the network learned it, a function (z, t) -> v ``[b c ...]`` (Nichol & Dhariwal 2021, eq. 15).
    """
    if not callable(variance) and not 0 <= variance <= 1:
        raise UserError(f"variance must be from 0 (posterior) to 1 (forward step), got {variance}")
    for index, (t, s) in intervals(times, schedule):
        x0 = denoise(z, t.time)
        v = variance(z, t.time) if callable(variance) else variance
        kept = fade(t, s)
        z = towards(z, x0, t, s._replace(sigma=kept * s.sigma))  # the posterior mean, eq. 7
        if s.sigma > 0:
            z = z + (1 - kept**2).sqrt() * t.sigma**v * s.sigma ** (1 - v) * noise(z)
        yield Step(index, z, x0)


@sampler
def ddim(
    denoise: Denoise,
    z: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    noise: Noise,
    eta: float = 0.0,
) -> Iterator[Step]:
    """DDIM (Song et al. 2021a, eq. 12); eta = 0 is deterministic, eta = 1 is ``ancestral``."""
    for index, (t, s) in intervals(times, schedule):
        x0 = denoise(z, t.time)
        down, up = ancestral_split(t, s, eta)
        z = towards(z, x0, t, down)
        if up > 0:
            z = z + up * noise(z)
        yield Step(index, z, x0)


@sampler
def euler(
    denoise: Denoise, z: Tensor, times: Tensor, schedule: NoiseSchedule, *, noise: Noise
) -> Iterator[Step]:
    """Euler's rule for the probability flow, in any straight coordinates: DDIM under its other name."""
    return ddim(denoise, z, times, schedule, noise=noise)


@sampler
def euler_ancestral(
    denoise: Denoise,
    z: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    *,
    noise: Noise,
    eta: float = 1.0,
) -> Iterator[Step]:
    """k-diffusion's Euler step to a lower level and noise back up to the right one: DDIM with eta = 1."""
    return ddim(denoise, z, times, schedule, noise=noise, eta=eta)


@sampler
def consistency(
    denoise: Denoise, z: Tensor, times: Tensor, schedule: NoiseSchedule, *, noise: Noise
) -> Iterator[Step]:
    """A few times all the way to x0 and back up with new noise (Song et al. 2023, Algorithm 1).

    For networks whose estimate is a sample (consistency models, distilled ones), not a mean.
    """
    for index, (t, s) in intervals(times, schedule):
        x0 = denoise(z, t.time)
        z = s.alpha * x0 + s.sigma * noise(z) if s.sigma > 0 else s.alpha * x0
        yield Step(index, z, x0)
