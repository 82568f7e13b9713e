"""Loss weightings: how much the error of a time counts, said in one currency, the squared error of the noise.

Papers state them for whatever their network predicts. Here every weighting is the weight of the eps error,
and ``output_weight`` changes the currency into that of a parameterization: an output error of 1 is an eps
error of alpha / (alpha * b - sigma * a). So one weighting means the same objective for any network. Weighting
nothing at all is a choice too: the plain mean square of the output.

At the ends of a path, where alpha or sigma is 0, a weight is its limit there. Where the limit is infinite, the
output says nothing about the latent (eps in pure noise, x0 where z is the latent) and counts 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from carrara.diffusion.parameterizations import Parameterization
from carrara.diffusion.schedules import NoiseSchedule
from carrara.registry import Table

WEIGHTINGS: Table[Tensor] = Table("weighting")
"""``WEIGHTINGS[name](t, schedule, **options) -> weight of the eps error``, both [b]."""


def output_weight(
    weight: Tensor, t: Tensor, schedule: NoiseSchedule, parameterization: Parameterization
) -> Tensor:
    """What to multiply ``Diffusion.loss`` by, [b], for a weight of the eps error at ``t``; always finite."""
    alpha, sigma = _inside(schedule, t)
    a, b = parameterization(alpha, sigma)
    found = weight.double() * (alpha / (alpha * b - sigma * a)) ** 2
    at_an_end = (alpha <= _END * sigma) | (sigma <= _END * alpha)
    return found.masked_fill(at_an_end & (found > 1 / _END), 0).to(weight.dtype)


_END = 1e-18  # alpha over sigma, or sigma over alpha, that stands for 0: its square still fits float32


def _inside(schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) at ``t``, float64 and both above 0: an end is replaced by a point as good as it."""
    alpha, sigma = schedule.alpha(t.double()), schedule.sigma(t.double())
    return torch.maximum(alpha, _END * sigma), torch.maximum(sigma, _END * alpha)


def _logsnr(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """log(alpha^2 / sigma^2) at ``t``, finite at the ends too."""
    alpha, sigma = _inside(schedule, t)
    return (2 * (alpha.log() - sigma.log())).to(t.dtype)


@WEIGHTINGS.add
def eps(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """L_simple: every error of the noise alike (Ho et al. 2020, eq. 14)."""
    return torch.ones_like(t)


@WEIGHTINGS.add
def x0(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Every error of the latent alike."""
    return (-_logsnr(schedule, t)).exp()


@WEIGHTINGS.add
def velocity(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Every error of noise - latent alike: the loss of flow matching (Lipman et al. 2022)."""
    return (1 + (-_logsnr(schedule, t) / 2).exp()) ** 2


@WEIGHTINGS.add
def min_snr(t: Tensor, schedule: NoiseSchedule, *, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) on the latent's error (Hang et al. 2023)."""
    return (gamma * (-_logsnr(schedule, t)).exp()).clamp(max=1)


@WEIGHTINGS.add
def soft_min_snr(t: Tensor, schedule: NoiseSchedule, *, gamma: float = 5.0) -> Tensor:
    """SNR gamma / (SNR + gamma) on the latent's error (Crowson et al. 2024, hourglass transformers)."""
    return gamma / (_logsnr(schedule, t).exp() + gamma)


@WEIGHTINGS.add
def p2(t: Tensor, schedule: NoiseSchedule, *, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """1 / (k + SNR)^gamma on the noise's error (Choi et al. 2022)."""
    return (k + _logsnr(schedule, t).exp()) ** -gamma


@WEIGHTINGS.add
def edm(t: Tensor, schedule: NoiseSchedule, *, data_std: float = 1.0) -> Tensor:
    """(l^2 + d^2) / (l d)^2 on the latent's error, l = sigma / alpha (Karras et al. 2022, table 1).

    With the ``edm`` parameterization that is every error of the output alike.
    """
    return 1 + (-_logsnr(schedule, t)).exp() / data_std**2


@WEIGHTINGS.add
def sigmoid(t: Tensor, schedule: NoiseSchedule, *, bias: float = -1.0) -> Tensor:
    """sigmoid(bias - log-SNR) on the noise's error (Kingma & Gao 2023; Hoogeboom et al. 2024)."""
    return (bias - _logsnr(schedule, t)).sigmoid()


@WEIGHTINGS.add
def variational_bound(t: Tensor, schedule: NoiseSchedule, *, steps: int = 1000) -> Tensor:
    """The bound's own weight of step t: (SNR(s) / SNR(t) - 1) / 2, s = t - 1/steps (Kingma et al. 2021).

    At t = n / steps this is L_(n-1) of Ho et al. 2020, eq. 12, with the posterior's variance. The first step,
    where s = 0 but for rounding, belongs to the decoder and gets the weight 1/2.
    """
    s = (t - 1 / steps).clamp(min=0)
    return torch.where(s > 0.5 / steps, torch.expm1(_logsnr(schedule, s) - _logsnr(schedule, t)) / 2, 0.5)
