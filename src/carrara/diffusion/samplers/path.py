"""A sampler's path: what every sampler is written with: moments of a grid, steps towards an estimate, straight
coordinates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import pairwise
from typing import Any, NamedTuple, ParamSpec

import torch
from torch import Tensor

from carrara.diffusion.grids import check_times
from carrara.diffusion.schedules import NoiseSchedule, time_of_level
from carrara.errors import UserError
from carrara.registry import Table

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(z [b c ...], t []) -> clean estimate x0 [b c ...], the condition bound; t is one float64 on the CPU."""

Noise = Callable[[Tensor], Tensor]
"""Fresh Gaussian noise shaped as what it is given; it belongs to each picture (``tensors.PictureNoise``)."""


class Step(NamedTuple):
    """What a sampler yields after each step: where z arrived and the estimate that sent it there."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    z: Tensor
    x0: Tensor


Sampler = Callable[..., Iterator[Step]]
"""(denoise, z, times [steps + 1], schedule, *, noise, **own options) -> steps."""


class Moment(NamedTuple):
    """A time on a schedule, as float64 tensors without axes (log 0 is then -inf and no error)."""

    time: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def lam(self) -> Tensor:
        """log(alpha / sigma), half the log-SNR: the lambda of Lu et al. 2022."""
        return self.alpha.log() - self.sigma.log()


def moment(time: Tensor, schedule: NoiseSchedule) -> Moment:
    """The moment of one time."""
    time = time.to("cpu", torch.float64)
    return Moment(time, schedule.alpha(time), schedule.sigma(time))


def intervals(times: Tensor, schedule: NoiseSchedule) -> Iterator[tuple[int, tuple[Moment, Moment]]]:
    """(index, (t, s)) over a grid: each moment with the next."""
    return enumerate(pairwise(moment(time, schedule) for time in times))


def towards(z: Tensor, x0: Tensor, t: Moment, s: Moment) -> Tensor:
    """z carried from t to s as if x0 were the truth: what noise there is in z shrinks, the rest becomes x0.

    The exact flow for a constant estimate (Song et al. 2021a, eq. 12 with no noise; Lu et al. 2022b).
    """
    ratio = s.sigma / t.sigma
    return ratio * z + (s.alpha - ratio * t.alpha) * x0


def ancestral_split(t: Moment, s: Moment, eta: float) -> tuple[Moment, Tensor]:
    """(s with only the sigma that is carried over, the sigma of the noise to add): together the sigma of s.

    At eta = 1 the added part is the posterior deviation of z_s given z_t and x0, on any path (Ho et al. 2020,
    eq. 7; Song et al. 2021a, eq. 16); at 0 nothing is added.
    """
    up = (eta * s.sigma * (1 - fade(t, s) ** 2).sqrt()).clamp(max=s.sigma)
    return s._replace(sigma=(s.sigma**2 - up**2).sqrt()), up


def fade(t: Moment, s: Moment) -> Tensor:
    """exp(-h), h = lambda_s - lambda_t: the level sigma / alpha at s over that at t; 0 from pure noise on."""
    return (t.alpha * s.sigma) / (s.alpha * t.sigma)


def renoised(z: Tensor, t: Moment, s: Moment, noise: Noise) -> Tensor:
    """Back up from t to a noisier s: q(z_s | z_t)."""
    kept = s.alpha / t.alpha
    return kept * z + (s.sigma**2 - (kept * t.sigma) ** 2).sqrt() * noise(z)


class Straight:
    """Coordinates y = z / scale, u = sigma / scale in which the path is a line and dy/du = (y - x0) / u.

    scale = alpha is Karras' choice: u is the level, the slope the noise estimate. Where alpha(1) = 0 that
    begins at infinity; alpha + sigma then makes any path that of flow matching: the slope is noise - x0.
    Euler's rule is ``towards`` in both; any other rule is another method in each.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        self.bounded = not schedule.alpha(torch.ones((), dtype=torch.float64)) > 0

    def scale(self, m: Moment) -> Tensor:
        """What z is divided by."""
        return m.alpha + m.sigma if self.bounded else m.alpha

    def u(self, m: Moment) -> Tensor:
        """Where on the line a moment is: 0 for data."""
        return m.sigma / self.scale(m)

    def between(self, t: Moment, s: Moment) -> Moment:
        """The moment at the geometric mean of both u."""
        u = (self.u(t) * self.u(s)).sqrt()
        return moment(time_of_level(self.schedule, u / (1 - u) if self.bounded else u), self.schedule)

    def slope(self, z: Tensor, x0: Tensor, t: Moment) -> Tensor:
        """dy/du for an estimate x0 at t."""
        return (z / self.scale(t) - x0) / self.u(t)

    def resolves(self, s: Moment, t: Moment, dtype: torch.dtype) -> bool:
        """Whether a slope at ``s`` can be used for a step from ``t``: x0 is only known to the rounding of z.

        That rounding is divided by u(s) and multiplied by u(t); at the data nothing would be left of the slope.
        """
        return bool(self.u(s) > torch.finfo(dtype).eps ** 0.5 * self.u(t))

    def follow(self, z: Tensor, slope: Tensor, t: Moment, s: Moment) -> Tensor:
        """z carried from t to s along one slope."""
        return self.scale(s) * (z / self.scale(t) + (self.u(s) - self.u(t)) * slope)


def middle(t: Moment, s: Moment, schedule: NoiseSchedule) -> Moment:
    """The moment half-way in lambda."""
    return moment(schedule.time(t.lam + s.lam), schedule)


P = ParamSpec("P")
SAMPLERS: Table[Iterator[Step]] = Table("sampler")


def sampler(function: Callable[P, Iterator[Step]]) -> Callable[P, Iterator[Step]]:
    """Enters a sampler in the table; grid and options are checked when it is called, not at step 0."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Iterator[Step]:
        given: dict[str, Any] = inspect.signature(function).bind(*args, **kwargs).arguments
        check_times(given["times"])
        if not (eta := given.get("eta", 0)) >= 0:
            raise UserError(f"eta must be 0 (no fresh noise) or more, got {eta}")
        return function(*args, **kwargs)

    return SAMPLERS.add(checked)
