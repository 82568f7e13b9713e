"""DDPM as the lecture and the paper write it: steps numbered 1 ... T, betas, two algorithms (Ho et al. 2020).

Nothing here is used by the rest of the house, which says the same with schedules and times t = n/T; the tests
hold the two against each other. ``network(z, n)`` predicts the noise, n is a number from 1 to T for each
picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from carrara.diffusion.samplers.path import Noise, Step
from carrara.tensors import expand_like

NoisePredictor = Callable[[Tensor, Tensor], Tensor]
"""(x [b c ...], n [b] in 1 ... T) -> the noise in x, [b c ...]."""


@dataclass(frozen=True, eq=False)
class DDPM:
    """The process of a table ``betas [T]``; entry n - 1 belongs to step n."""

    betas: Tensor

    @classmethod
    def linear(cls, steps: int = 1000) -> DDPM:
        """The paper's betas, from 1e-4 to 0.02."""
        return cls(torch.linspace(1e-4, 0.02, steps, dtype=torch.float64))

    @property
    def steps(self) -> int:
        """T."""
        return len(self.betas)

    @property
    def alpha_bars(self) -> Tensor:
        """The products of 1 - beta up to each step, [T]."""
        return (1 - self.betas).cumprod(0)

    def forward_step(self, x: Tensor, n: int, noise: Tensor) -> Tensor:
        """q(x_n | x_(n-1)), eq. 2: a little of the picture goes, a little noise comes."""
        beta = self.betas[n - 1]
        return (1 - beta).sqrt() * x + beta.sqrt() * noise

    def forward(self, x: Tensor, noise: Noise) -> Iterator[Tensor]:
        """x_1, x_2, ..., x_T, each made from the one before."""
        for n in range(1, self.steps + 1):
            x = self.forward_step(x, n, noise(x))
            yield x

    def forward_at_once(self, x_0: Tensor, n: Tensor, noise: Tensor) -> Tensor:
        """q(x_n | x_0), eq. 4: the same distribution without the way there; n is [b] or one for all."""
        alpha_bar = expand_like(self.alpha_bars[n - 1], x_0).to(x_0.dtype)
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise

    def training_loss(self, network: NoisePredictor, x_0: Tensor, n: Tensor, noise: Tensor) -> Tensor:
        """Algorithm 1, line 5, for n and noise drawn by lines 3 and 4: ``[b]``, a mean over elements."""
        x_n = self.forward_at_once(x_0, n, noise)
        return (noise - network(x_n, n)).square().flatten(1).mean(1)

    def sample(self, network: NoisePredictor, x: Tensor, noise: Noise) -> Iterator[Step]:
        """Algorithm 2 from x = x_T, sigma_n^2 = beta_n: ``Step(n, x_(n-1), x0)`` for n = T, ..., 1."""
        for n in range(self.steps, 0, -1):
            beta, alpha_bar = self.betas[n - 1], self.alpha_bars[n - 1]
            eps = network(x, torch.full((len(x),), n, device=x.device))
            x0 = (x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
            mean = (x - beta / (1 - alpha_bar).sqrt() * eps) / (1 - beta).sqrt()
            x = mean + beta.sqrt() * noise(x) if n > 1 else mean
            yield Step(n, x, x0)
