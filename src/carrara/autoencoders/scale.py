"""The latent scale: per-channel mean and standard deviation, measured over the data, never a magic number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentScale:
    """``mean`` and ``std`` [c]: raw latents are stored, scaled ones (mean 0, std 1) are what a denoiser sees."""

    mean: Tensor
    std: Tensor

    def scale(self, raw: Tensor) -> Tensor:
        """``raw [b c h w]`` to unit statistics."""
        return (raw - self._wide(self.mean, raw)) / self._wide(self.std, raw)

    def unscale(self, latent: Tensor) -> Tensor:
        """Back to raw latents."""
        return latent * self._wide(self.std, latent) + self._wide(self.mean, latent)

    @staticmethod
    def _wide(value: Tensor, like: Tensor) -> Tensor:
        return value.to(like.device, like.dtype)[:, None, None]

    @staticmethod
    def measure(moments: Iterable[Tensor]) -> LatentScale:
        """From batches of posteriors ``[b 2c h w]`` (means, then standard deviations), in float64.

        The variance is that of samples: spread of the means plus the mean of the posterior variances.
        """
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        for batch in moments:
            mean, std = batch.double().chunk(2, 1)
            count += mean.numel() // mean.shape[1]
            total = total + mean.sum((0, 2, 3))
            square = square + (mean.square() + std.square()).sum((0, 2, 3))
        if count == 0:
            raise ValueError("no latents to measure the scale of")
        average = total / count
        spread = (square / count - average.square()).clamp_min(1e-12).sqrt()
        return LatentScale(average.float(), spread.float())
