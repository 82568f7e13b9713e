"""The encoding of autoencoders without a spread: a latent that is one point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PointEncoding:
    """``mean`` [b c h w] and nothing around it; for quantized latents, before they are quantized."""

    mean: Tensor

    @property
    def logvar(self) -> Tensor:
        """-inf everywhere: no spread."""
        return torch.full_like(self.mean, -torch.inf)

    def mode(self) -> Tensor:
        """The point."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """The point, whatever the noise."""
        return self.mean

    def penalty(self) -> Tensor:
        """Zero for every picture: [b]."""
        return self.mean.new_zeros(len(self.mean))
