"""Noise schedules: Gaussian paths z_t = alpha(t) * latent + sigma(t) * noise, data at t = 0, noise at t = 1.

A schedule knows nothing of steps, solvers or what a network predicts. Everything is computed in float64 and
returned in the dtype of what was given; ``t`` may have any shape. Published tables with T = 1000 steps are
schedules too: their step n is the time t = n/T (elsewhere it is often counted from zero, as index n - 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from carrara.errors import UserError
from carrara.registry import Table


class NoiseSchedule(Protocol):
    """A Gaussian path; ``alpha`` falls, ``sigma`` rises from 0, and their ratio never turns back."""

    def alpha(self, t: Tensor) -> Tensor:
        """How much of the latent is left at time t in [0, 1]."""

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise at time t in [0, 1]."""

    def time(self, logsnr: Tensor) -> Tensor:
        """The time at which log(alpha^2 / sigma^2) is ``logsnr``, kept within [0, 1]."""


def logsnr(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """log(alpha^2 / sigma^2) at time t: +inf where there is no noise, -inf where there is nothing else."""
    t64 = t.double()
    return (2 * (schedule.alpha(t64).log() - schedule.sigma(t64).log())).to(t.dtype)


def time_of_level(schedule: NoiseSchedule, level: Tensor) -> Tensor:
    """The time of a noise level sigma / alpha, the "sigma" of Karras et al. 2022 (0 gives 0, inf gives 1)."""
    return schedule.time(-2 * level.log())


SCHEDULES: Table[NoiseSchedule] = Table("schedule")


# --- tables: alpha_bar_n = prod(1 - beta_i), alpha = sqrt(alpha_bar) ---


@dataclass(frozen=True, eq=False)
class Discrete:
    """A path through a table: ``alphas [T + 1]``, from 1 at n = 0, straight lines between the steps t = n/T.

    Straight in alpha, because that also reaches alpha = 0 (zero terminal SNR), and near t = 0 it is the
    square-root start of sigma that a constant beta gives.
    """

    alphas: Tensor

    @property
    def steps(self) -> int:
        """T, the number of steps in the table."""
        return len(self.alphas) - 1

    def alpha(self, t: Tensor) -> Tensor:
        """See NoiseSchedule."""
        table, place = self.alphas.to(t.device), t.double() * self.steps
        below = place.floor().clamp(0, self.steps - 1).long()
        part = place - below
        return (table[below] * (1 - part) + table[below + 1] * part).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """See NoiseSchedule."""
        alpha = self.alpha(t.double())
        return ((1 - alpha) * (1 + alpha)).sqrt().to(t.dtype)

    def time(self, logsnr: Tensor) -> Tensor:
        """See NoiseSchedule."""
        rising, alpha = self.alphas.flip(0).to(logsnr.device), logsnr.double().sigmoid().sqrt()
        above = torch.searchsorted(rising, alpha).clamp(1, self.steps)
        part = (alpha - rising[above - 1]) / (rising[above] - rising[above - 1])
        return (1 - (above - 1 + part) / self.steps).clamp(0, 1).to(logsnr.dtype)


def from_betas(betas: Tensor, *, zero_terminal: bool = False) -> Discrete:
    """The path of a beta table ``[T]`` (Ho et al. 2020, eq. 4).

    ``zero_terminal`` moves and stretches alpha so that the last step is pure noise (Lin et al. 2023,
    Algorithm 1); the first step stays what it was.
    """
    alphas = (1 - betas.double()).cumprod(0).sqrt()  # [T]
    if zero_terminal:
        alphas = (alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))
    return Discrete(torch.cat([torch.ones(1, dtype=torch.float64), alphas]))


@SCHEDULES.add
def linear(
    *, steps: int = 1000, start: float = 1e-4, end: float = 0.02, zero_terminal: bool = False
) -> Discrete:
    """Betas on a straight line: DDPM (Ho et al. 2020, section 4)."""
    _positive(steps=steps, start=start, end=end)
    return from_betas(torch.linspace(start, end, steps, dtype=torch.float64), zero_terminal=zero_terminal)


@SCHEDULES.add
def scaled_linear(
    *, steps: int = 1000, start: float = 0.00085, end: float = 0.012, zero_terminal: bool = False
) -> Discrete:
    """Square roots of beta on a straight line: latent diffusion (Rombach et al. 2022, code).

    The default ends are those of Stable Diffusion 1, 2 and XL; the paper's own models have 0.0015 and 0.0195.
    """
    _positive(steps=steps, start=start, end=end)
    roots = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64)
    return from_betas(roots**2, zero_terminal=zero_terminal)


@SCHEDULES.add
def cosine(
    *, steps: int = 1000, offset: float = 0.008, cap: float = 0.999, zero_terminal: bool = False
) -> Discrete:
    """alpha_bar a squared cosine, every beta at most ``cap`` (Nichol & Dhariwal 2021, eq. 17)."""
    _positive(steps=steps, cap=cap)
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    bars = ((t + offset) / (1 + offset) * (math.pi / 2)).cos() ** 2
    return from_betas((1 - bars[1:] / bars[:-1]).clamp(max=cap), zero_terminal=zero_terminal)


# --- formulas ---


@dataclass(frozen=True)
class ShiftedCosine:
    """tan(pi t / 2) = sigma / (shift * alpha), alpha^2 + sigma^2 = 1."""

    shift: float

    def alpha(self, t: Tensor) -> Tensor:
        """See NoiseSchedule."""
        # sin(pi/2 (1 - t)) rather than cos(pi/2 t): it is exactly 0 at t = 1.
        a, s = (math.pi / 2 * (1 - t.double())).sin(), self.shift * (math.pi / 2 * t.double()).sin()
        return (a / torch.hypot(a, s)).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """See NoiseSchedule."""
        a, s = (math.pi / 2 * (1 - t.double())).sin(), self.shift * (math.pi / 2 * t.double()).sin()
        return (s / torch.hypot(a, s)).to(t.dtype)

    def time(self, logsnr: Tensor) -> Tensor:
        """See NoiseSchedule."""
        return ((-logsnr.double() / 2).exp().div(self.shift).atan() * (2 / math.pi)).to(logsnr.dtype)


@SCHEDULES.add
def shifted_cosine(*, shift: float = 1.0) -> ShiftedCosine:
    """The cosine path without a table; alpha(1) = 0 (Hoogeboom et al. 2023, simple diffusion).

    ``shift`` multiplies every noise level sigma / alpha: width / 64 for larger pictures.
    """
    _positive(shift=shift)
    return ShiftedCosine(shift)


@dataclass(frozen=True)
class Sigmoid:
    """alpha^2 a falling sigmoid between ``start`` and ``end``, stretched to go from 1 to 0."""

    start: float
    end: float
    temperature: float

    def _noise(self, t: Tensor) -> Tensor:
        """sigma^2, in float64."""
        low, high = self._ends()
        place = (t.double() * (self.end - self.start) + self.start) / self.temperature
        return ((place.sigmoid() - low) / (high - low)).clamp(0, 1)

    def _ends(self) -> tuple[float, float]:
        low, high = (torch.tensor([self.start, self.end]).double() / self.temperature).sigmoid().tolist()
        return low, high

    def alpha(self, t: Tensor) -> Tensor:
        """See NoiseSchedule."""
        return (1 - self._noise(t)).sqrt().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """See NoiseSchedule."""
        return self._noise(t).sqrt().to(t.dtype)

    def time(self, logsnr: Tensor) -> Tensor:
        """See NoiseSchedule."""
        low, high = self._ends()
        place = (low + (high - low) * (-logsnr.double()).sigmoid()).logit() * self.temperature
        return ((place - self.start) / (self.end - self.start)).clamp(0, 1).to(logsnr.dtype)


@SCHEDULES.add
def sigmoid(*, start: float = -3.0, end: float = 3.0, temperature: float = 1.0) -> Sigmoid:
    """alpha^2 a sigmoid of t; alpha(1) = 0 (Jabri et al. 2022; Chen 2023)."""
    _positive(temperature=temperature, **{"end - start": end - start})
    return Sigmoid(start, end, temperature)


@dataclass(frozen=True)
class Laplace:
    """log-SNR with a Laplace density when t is uniform, alpha^2 + sigma^2 = 1."""

    mean: float
    width: float

    def _logsnr(self, t: Tensor) -> Tensor:
        t = t.double()  # mean - width * sign(1/2 - t) * log(1 - 2 |t - 1/2|), exact near both ends:
        return self.mean + self.width * torch.where(t < 0.5, -(2 * t).log(), (2 * (1 - t)).log())

    def alpha(self, t: Tensor) -> Tensor:
        """See NoiseSchedule."""
        return self._logsnr(t).sigmoid().sqrt().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """See NoiseSchedule."""
        return (-self._logsnr(t)).sigmoid().sqrt().to(t.dtype)

    def time(self, logsnr: Tensor) -> Tensor:
        """See NoiseSchedule."""
        place = (logsnr.double() - self.mean) / self.width
        return torch.where(place > 0, (-place).exp() / 2, 1 - place.exp() / 2).to(logsnr.dtype)


@SCHEDULES.add
def laplace(*, mean: float = 0.0, width: float = 0.5) -> Laplace:
    """Most of the time spent near log-SNR = ``mean``; alpha(1) = 0 (Hang et al. 2024)."""
    _positive(width=width)
    return Laplace(mean, width)


@dataclass(frozen=True)
class EDM:
    """Variance exploding: alpha = 1, sigma = sigma_max * t^rho."""

    sigma_max: float
    rho: float

    def alpha(self, t: Tensor) -> Tensor:
        """See NoiseSchedule."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """See NoiseSchedule."""
        return (self.sigma_max * t.double() ** self.rho).to(t.dtype)

    def time(self, logsnr: Tensor) -> Tensor:
        """See NoiseSchedule."""
        level = (-logsnr.double() / 2).exp()
        return ((level / self.sigma_max) ** (1 / self.rho)).clamp(0, 1).to(logsnr.dtype)


@SCHEDULES.add
def edm(*, sigma_max: float = 80.0, rho: float = 7.0) -> EDM:
    """Noise added to an unscaled latent (Karras et al. 2022).

    Time is their eq. 5 with sigma_min = 0: what a network gets as t is spread over [0, 1] as their sampling
    steps are, and sigma(0) = 0 exactly (0.002 of 80 is at t = 0.22).
    """
    _positive(sigma_max=sigma_max, rho=rho)
    return EDM(sigma_max, rho)


@dataclass(frozen=True)
class Flow:
    """A straight line: alpha = 1 - sigma, sigma = shift * t / (1 + (shift - 1) t)."""

    shift: float

    def alpha(self, t: Tensor) -> Tensor:
        """See NoiseSchedule."""
        t64 = t.double()
        return ((1 - t64) / (1 + (self.shift - 1) * t64)).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """See NoiseSchedule."""
        t64 = t.double()
        return (self.shift * t64 / (1 + (self.shift - 1) * t64)).to(t.dtype)

    def time(self, logsnr: Tensor) -> Tensor:
        """See NoiseSchedule."""
        sigma = (-logsnr.double() / 2).sigmoid()
        return (sigma / (self.shift - (self.shift - 1) * sigma)).to(logsnr.dtype)


@SCHEDULES.add
def flow(*, shift: float = 1.0) -> Flow:
    """The straight path of flow matching (Lipman et al. 2022; Liu et al. 2022); alpha(1) = 0.

    ``shift`` multiplies every noise level sigma / alpha: sqrt(m / n) when going from n to m latent pixels
    (Esser et al. 2024, eq. 23).
    """
    _positive(shift=shift)
    return Flow(shift)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"a schedule's {name} must be greater than 0, got {value}")
