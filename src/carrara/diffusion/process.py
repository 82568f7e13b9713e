"""A diffusion process: a network, a schedule and a parameterization; everything a task or a sampler asks of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from carrara.context import Context
from carrara.diffusion.parameterizations import Parameterization
from carrara.diffusion.schedules import NoiseSchedule
from carrara.tensors import expand_like


class Network(Protocol):
    """What is trained: ``z [b c ...]``, ``t [b]`` in [0, 1], a context -> ``[b c ...]``.

    With 2c channels the second half is a learned variance (``learnt_variance``).
    """

    def __call__(self, z: Tensor, t: Tensor, context: Context, /) -> Tensor: ...


def noised(schedule: NoiseSchedule, latent: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z = alpha(t) * latent + sigma(t) * noise, ``t`` of shape [b] or []; in the latent's dtype."""
    t = t.to(latent.device, torch.float64)
    alpha, sigma = (expand_like(f(t), latent).to(latent.dtype) for f in (schedule.alpha, schedule.sigma))
    return alpha * latent + sigma * noise


class Solved(NamedTuple):
    """x0 = skip * z + gain * output, of the shape of t."""

    skip: Tensor
    gain: Tensor


def solved(schedule: NoiseSchedule, parameterization: Parameterization, t: Tensor) -> Solved:
    """How the clean estimate follows from z and the output at ``t``, in float64.

    Where the output says nothing about x0 (eps at alpha = 0), the estimate is 0, the mean of scaled latents.
    """
    t = t.to(torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b = parameterization(alpha, sigma)
    denominator = alpha * b - sigma * a
    blind = denominator == 0
    # In the first, alpha is 0 in pure noise and 1 where z is the latent.
    return Solved(torch.where(blind, alpha, b / denominator), torch.where(blind, 0, -sigma / denominator))


@dataclass(frozen=True)
class Diffusion:
    """The process that a network was trained for.

    The network sees z divided by max(1, sqrt(alpha^2 + sigma^2)): z itself on every path but the variance
    exploding one, where this is Karras' c_in for latents of unit variance.
    """

    network: Network
    schedule: NoiseSchedule
    parameterization: Parameterization

    def denoise(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        """The clean estimate x0 ``[b c ...]`` of ``z [b c ...]`` at ``t`` ([b] or one for all, []); see `solved`."""
        t = t.to(z.device, torch.float64).expand(z.shape[0])
        skip, gain = solved(self.schedule, self.parameterization, t)
        out = self.output(z, t, context)[:, : z.shape[1]]  # more channels: a learned variance
        return expand_like(skip, z).to(z.dtype) * z + expand_like(gain, z).to(z.dtype) * out

    def loss(self, latent: Tensor, noise: Tensor, t: Tensor, context: Context) -> Tensor:
        """The squared error of the output for each sample, averaged over its elements: ``[b]``, unweighted.

        ``latent`` and ``noise`` are [b c ...], ``t`` is [b].
        """
        t64 = t.double()
        a, b = self.parameterization(self.schedule.alpha(t64), self.schedule.sigma(t64))
        target = (
            expand_like(a, latent).to(latent.dtype) * latent + expand_like(b, latent).to(latent.dtype) * noise
        )
        z = noised(self.schedule, latent, noise, t)
        error = self.output(z, t64, context)[:, : z.shape[1]] - target
        return error.to(torch.promote_types(error.dtype, torch.float32)).square().flatten(1).mean(1)

    def output(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        """What the network says of ``z`` at ``t [b]``, all its channels."""
        size = torch.hypot(self.schedule.alpha(t), self.schedule.sigma(t)).clamp(min=1)
        precise = torch.promote_types(z.dtype, torch.float32)  # bfloat16 cannot tell 1000 times apart
        return self.network(z / expand_like(size, z).to(z.dtype), t.to(precise), context)
