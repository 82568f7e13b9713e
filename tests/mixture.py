"""A target whose denoiser is known exactly: every element drawn from a mixture of Gaussians on a line.

What samplers, grids and guidance are measured with; no network is needed to see what they do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from carrara.diffusion.samplers.path import Denoise
from carrara.diffusion.schedules import NoiseSchedule
from carrara.tensors import expand_like


@dataclass(frozen=True)
class Mixture:
    """Weights (of sum 1), means and standard deviations of the components."""

    weights: tuple[float, ...] = (0.3, 0.5, 0.2)
    means: tuple[float, ...] = (-1.2, 0.4, 1.6)
    stds: tuple[float, ...] = (0.35, 0.25, 0.15)

    def denoiser(self, schedule: NoiseSchedule) -> Denoise:
        """E[latent | z] for each element: the components' posterior means, each by how likely it is."""

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (
                expand_like(f(t.double()), z).to(z.dtype) for f in (schedule.alpha, schedule.sigma)
            )
            logits, estimates = [], []
            for weight, mean, std in zip(self.weights, self.means, self.stds, strict=True):
                variance = (alpha * std) ** 2 + sigma**2
                away = z - alpha * mean
                logits.append(torch.as_tensor(weight).log() - away**2 / (2 * variance) - variance.log() / 2)
                estimates.append(mean + alpha * std**2 / variance * away)
            # Not torch's softmax: on the CPU it rounds an element by where in the batch it stands.
            likely = (torch.stack(logits) - torch.stack(logits).amax(0)).exp()
            return (likely * torch.stack(estimates)).sum(0) / likely.sum(0)

        return denoise

    def sample(self, u: Tensor, noise: Tensor) -> Tensor:
        """Latents from uniform numbers (which component) and Gaussian noise of the same shape."""
        edges = torch.tensor(self.weights, dtype=torch.float64).cumsum(0)[:-1]
        chosen = torch.bucketize(u.double(), edges)
        means, stds = (torch.tensor(values, dtype=noise.dtype)[chosen] for values in (self.means, self.stds))
        return means + stds * noise
