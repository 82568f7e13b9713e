"""Parameterizations: what a network is trained towards: two numbers, ``a * latent + b * noise``.

Solved together with z = alpha * latent + sigma * noise, its output gives the clean estimate back:
x0 = (b * z - sigma * out) / (alpha * b - sigma * a).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from carrara.registry import Table

Parameterization = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(alpha, sigma) -> (a, b), each of the same shape."""

PARAMETERIZATIONS: Table[tuple[Tensor, Tensor]] = Table("parameterization")


@PARAMETERIZATIONS.add
def eps(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The noise (Ho et al. 2020, eq. 11); says nothing about the latent where alpha = 0."""
    return torch.zeros_like(alpha), torch.ones_like(sigma)


@PARAMETERIZATIONS.add
def x0(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The latent itself (the lecture's direct predictor; Ho et al. 2020, section 3.2)."""
    return torch.ones_like(alpha), torch.zeros_like(sigma)


@PARAMETERIZATIONS.add
def v(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """alpha * noise - sigma * latent (Salimans & Ho 2022, appendix D)."""
    return -sigma, alpha


@PARAMETERIZATIONS.add
def flow(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """noise - latent, the velocity of the straight path (Liu et al. 2022, eq. 1)."""
    return -torch.ones_like(alpha), torch.ones_like(sigma)


@PARAMETERIZATIONS.add
def edm(alpha: Tensor, sigma: Tensor, *, data_std: float = 1.0) -> tuple[Tensor, Tensor]:
    """F in x0 = c_skip * z + c_out * F (Karras et al. 2022, table 1), at any alpha; -v at ``data_std`` 1.

    c_skip = alpha d^2 / V and c_out = sigma d / sqrt(V), with V = alpha^2 d^2 + sigma^2.
    """
    root = torch.hypot(alpha * data_std, sigma)  # sqrt(V)
    return sigma / (data_std * root), -alpha * data_std / root
