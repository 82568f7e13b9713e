"""EMA: the average of the weights over training whose length is a share of it (Karras et al. 2024, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def power_of(width: float) -> float:
    """gamma of the power-function average whose relative standard deviation is ``width`` (their eq. 126)."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        relative = ((middle + 1) / ((middle + 2) ** 2 * (middle + 3))) ** 0.5
        low, high = (middle, high) if relative > width else (low, middle)
    return (low + high) / 2


class Ema:
    """Averages a module's parameters; the older the step, the less it counts, whatever the run's length.

    It needs no warm-up: the first step's weights are the whole average after it, so what the module was
    initialised with never counts. Parameters that are frozen stay as they are and have no average.
    """

    def __init__(self, module: nn.Module, width: float = 0.05) -> None:
        self.gamma = power_of(width)
        self.average = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """After step number ``step`` (from 1): weight (1 - 1/step)^(gamma + 1) stays with the past (their eq. 127)."""
        keep = (1 - 1 / step) ** (self.gamma + 1)
        now = [p.detach() for n, p in module.named_parameters() if n in self.average]
        torch._foreach_lerp_(list(self.average.values()), now, 1 - keep)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Puts the average into a module of the same shape."""
        parameters: dict[str, Tensor] = dict(module.named_parameters())
        for name, value in self.average.items():
            parameters[name].copy_(value)

    @contextmanager
    def put_into(self, module: nn.Module) -> Iterator[None]:
        """The module with its average, in evaluation; afterwards as it was, to the bit and in every part."""
        kept = {name: p.detach().clone() for name, p in module.named_parameters()}
        modes = {part: part.training for part in module.modules()}
        self.copy_to(module)
        module.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(kept[name])
            for part, training in modes.items():
                part.training = training
