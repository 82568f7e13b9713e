"""A class read off features by a linear layer: a judge that never saw the model (Alain & Bengio 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # of which the one is taken that serves pictures left out best


@dataclass(frozen=True)
class Probe:
    """Multinomial logistic regression on standardised features."""

    classes: tuple[str, ...]
    mean: Tensor  # [d]
    std: Tensor  # [d]
    weight: Tensor  # [d classes]
    bias: Tensor  # [classes]

    def __call__(self, features: Tensor) -> list[str]:
        """The class of each of ``[n d]``."""
        logits = ((features.double() - self.mean) / self.std) @ self.weight + self.bias
        return [self.classes[index] for index in logits.argmax(1).tolist()]


def fit_probe(features: Tensor, labels: Sequence[str]) -> Probe:
    """From pictures' features ``[n d]`` and classes; ValueError with fewer than two classes.

    The strength of the weight decay is chosen on every fifth picture, then all of them are used.
    """
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise ValueError(f"a probe tells classes apart; the labels hold {len(classes)}")
    number = {name: index for index, name in enumerate(classes)}
    wanted = torch.tensor([number[label] for label in labels])
    kept = torch.arange(len(labels)) % 5 != 4
    if kept.all():
        return _fit(features, wanted, classes, _DECAYS[-1])

    def served(decay: float) -> float:
        probe = _fit(features[kept], wanted[kept], classes, decay)
        left_out = [label for label, keep in zip(labels, kept.tolist(), strict=True) if not keep]
        return accuracy(probe(features[~kept]), left_out)

    return _fit(features, wanted, classes, max(_DECAYS, key=served))


def accuracy(found: Sequence[str], asked: Sequence[str]) -> float:
    """The share that is as it should be."""
    return sum(a == b for a, b in zip(found, asked, strict=True)) / len(asked)


def accuracy_by_class(found: Sequence[str], asked: Sequence[str]) -> Mapping[str, float]:
    """The same for the pictures of each class that was asked for."""
    return {
        name: accuracy([f for f, a in zip(found, asked, strict=True) if a == name], [name] * count)
        for name in sorted(set(asked))
        if (count := list(asked).count(name))
    }


def _fit(features: Tensor, wanted: Tensor, classes: tuple[str, ...], decay: float) -> Probe:
    features = features.double()
    std, mean = torch.std_mean(features, 0, correction=0)
    std = std + 1e-3 * std.mean() + 1e-12  # a feature that is always the same says nothing
    x = (features - mean) / std
    weight = torch.zeros(x.shape[1], len(classes), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        search.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, wanted) + decay / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(step)  # type: ignore[no-untyped-call]
    return Probe(classes, mean, std, weight.detach(), bias.detach())
