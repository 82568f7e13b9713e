"""Reconstruction losses, each a named term with a weight of its own; all but lpips need no weights of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from carrara.config import Config

Term = Callable[[Tensor, Tensor], Tensor]


class LossWeights(Config):
    """How much each term of the reconstruction counts; 0 leaves it out."""

    l1: float = Field(1.0, ge=0, description="Weight of the mean absolute error.")
    l2: float = Field(2.0, ge=0, description="Weight of the mean squared error.")
    edges: float = Field(0.5, ge=0, description="Weight of the error between neighbours.")
    multiscale: float = Field(
        0.0,
        ge=0,
        description="Weight of the mean absolute error at a half, a quarter and an eighth of the size.",
    )
    lpips: float = Field(
        0.0, ge=0, description="Weight of LPIPS (Zhang et al. 2018); needs a network's weights at hand."
    )
    lpips_net: Literal["vgg16", "alexnet"] = Field(
        "vgg16", description="The network that LPIPS looks through."
    )
    lpips_weights: str | None = Field(
        None, description="File with its weights; without it they are looked for in installed packages."
    )

    @model_validator(mode="after")
    def _some_term(self) -> LossWeights:
        if not any((self.l1, self.l2, self.edges, self.multiscale, self.lpips)):
            raise ValueError(
                "all weights are 0: nothing would be learned; give l1, l2 or another some weight"
            )
        return self


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


def multiscale(picture: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of 2, 4 and 8 times smaller pictures: what keeps broad colour and shape right."""
    error, terms = picture - target, list[Tensor]()
    while len(terms) < 3 and min(error.shape[-2:]) >= 2:
        error = F.avg_pool2d(error, 2)
        terms.append(error.abs().mean())
    return torch.stack(terms).mean() if terms else error.abs().mean()


TERMS: Mapping[str, Term] = {"l1": absolute, "l2": square, "edges": edges, "multiscale": multiscale}


def reconstruction_terms(weights: LossWeights, device: torch.device) -> dict[str, Term]:
    """The terms that count, each with its weight in it: (picture, target), both [b c h w] in [-1, 1], to a scalar.

    UserError where lpips is asked for and no weights are at hand.
    """
    known = {name: term for name, term in TERMS.items() if getattr(weights, name)}
    if weights.lpips:
        known["lpips"] = _lpips(weights, device)
    return {name: _weighted(term, getattr(weights, name)) for name, term in known.items()}


def _weighted(term: Term, weight: float) -> Term:
    return lambda picture, target: weight * term(picture, target)


def _lpips(weights: LossWeights, device: torch.device) -> Term:
    from pathlib import Path

    from carrara.metrics.lpips import load_lpips

    network = load_lpips(weights.lpips_net, Path(weights.lpips_weights) if weights.lpips_weights else None)
    network.to(device)
    return lambda picture, target: network(picture, target).mean()
