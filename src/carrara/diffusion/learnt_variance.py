"""The variance of a reverse step, learned by a second half of the network's channels (Nichol & Dhariwal 2021).

These hold v in [0, 1] as 2v - 1: the log variance lies between the posterior's (v = 0) and the forward step's
(v = 1), their eq. 15. The estimate of x0 is learned by ``Diffusion.loss`` as ever, v by ``variance_loss``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from carrara.context import Context
from carrara.diffusion.process import Diffusion, noised
from carrara.diffusion.samplers.path import Denoise
from carrara.diffusion.schedules import logsnr
from carrara.tensors import expand_like


class WithVariance(NamedTuple):
    """Two callables for one network: ``ancestral(denoise, ..., variance=variance)`` calls it once a step."""

    denoise: Denoise
    variance: Callable[[Tensor, Tensor], Tensor]


def with_variance(diffusion: Diffusion, context: Context) -> WithVariance:
    """The estimate and v ``[b c ...]`` of the same z and t; ``variance`` answers for the last ``denoise``."""
    last: Tensor | None = None

    def listening(z: Tensor, t: Tensor, context: Context, /) -> Tensor:
        nonlocal last
        out = diffusion.network(z, t, context)
        last = _v(out, z.shape[1])
        return out

    heard = Diffusion(listening, diffusion.schedule, diffusion.parameterization)

    def variance(z: Tensor, t: Tensor) -> Tensor:
        if last is None:
            raise RuntimeError("the variance of a step was asked for before its estimate")
        return last

    return WithVariance(lambda z, t: heard.denoise(z, t, context), variance)


def variance_loss(
    diffusion: Diffusion, latent: Tensor, noise: Tensor, t: Tensor, context: Context, *, steps: int = 1000
) -> Tensor:
    """KL of the true reverse step from t to t - 1/steps to the model's, per element, in nats: ``[b]``.

    Only v gets a gradient; the mean's goes by ``Diffusion.loss`` (L_hybrid, eq. 16, is that plus 0.001 *
    steps times this). The last step, to t = 0, is a decoder's likelihood and no KL: it counts 0 here.
    """
    t = t.double().clamp(min=1 / steps)
    s = (t - 1 / steps).clamp(min=0)
    z = noised(diffusion.schedule, latent, noise, t)
    v = _v(diffusion.output(z, t, context), z.shape[1])
    with torch.no_grad():
        x0 = diffusion.denoise(z, t, context)
    reverse = s > 0.5 / steps
    s = torch.where(reverse, s, t)
    schedule = diffusion.schedule
    renewed = -torch.expm1(logsnr(schedule, t) - logsnr(schedule, s))  # 1 - fade^2
    # Means differ by alpha(s) * renewed * (latent - x0); the posterior's variance is sigma(s)^2 * renewed.
    pull = (schedule.alpha(s) / schedule.sigma(s)) ** 2 * renewed
    wider = 2 * (schedule.sigma(t).log() - schedule.sigma(s).log())
    wider, pull = (expand_like(number, latent).to(latent.dtype) for number in (wider, pull))
    ratio = (-v * wider).exp()  # the posterior's variance over the model's
    kl = (v * wider + ratio * (1 + pull * (latent - x0) ** 2) - 1) / 2
    return kl.flatten(1).mean(1) * reverse


def _v(out: Tensor, channels: int) -> Tensor:
    if out.shape[1] != 2 * channels:
        raise ValueError(
            f"a learned variance takes {2 * channels} channels, the network gives {out.shape[1]}"
        )
    return (out[:, channels:] + 1) / 2
