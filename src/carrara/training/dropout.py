"""Dropout inside layers as a function of (seed, pictures seen): a resumed training drops what it would have."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from carrara.tensors import mix

_STREAM = 0xD209


def active(modules: Iterable[nn.Module]) -> bool:
    """Whether any layer of these modules draws from torch's global generator when it is trained."""
    return any(_draws(part) for module in modules for part in module.modules())


def seed(seed: int, seen: int, update: int) -> None:
    """Before the forward pass of one part of a batch: the layers draw what belongs to this moment.

    They can only draw from the global generators, of the CPU and of the device; ``update`` is the number of the
    module that learns.
    """
    torch.manual_seed(mix(seed, seen, update, _STREAM) >> 1)


def _draws(part: nn.Module) -> bool:
    if isinstance(part, _DropoutNd):
        return part.training and part.p > 0
    # Attention and recurrent layers of torch carry theirs as a number; so may ours.
    share = getattr(part, "dropout", 0.0)
    return part.training and isinstance(share, float) and share > 0
