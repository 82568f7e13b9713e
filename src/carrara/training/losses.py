"""Reconstruction losses that need no weights of others, each a named term."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def absolute(picture: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error, for images in [-1, 1]."""
    return F.l1_loss(picture, target)


def square(picture: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(picture, target)


def edges(picture: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbours: what makes outlines crisp."""
    error = picture - target
    return (error[..., 1:] - error[..., :-1]).abs().mean() + (
        error[..., 1:, :] - error[..., :-1, :]
    ).abs().mean()


TERMS = {"l1": absolute, "l2": square, "edges": edges}
