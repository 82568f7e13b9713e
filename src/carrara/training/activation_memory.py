"""How much memory a training step needs for activations: the bytes that autograd saves for its backward pass.

Counted through autograd's hooks for saved tensors, so also where tensors have no memory, for networks that fit
nowhere.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor


class Saved:
    """While it is entered, whatever autograd saves is counted: each storage once, parameters not at all.

    ``most`` is the count in bytes; of several times, the highest. Weights that were cast to another precision
    count: they are kept for the backward pass. With gradient checkpointing only what enters a block is
    saved; what one block computes again comes on top.
    """

    def __init__(self) -> None:
        self.most = 0
        self._count = 0
        self._met: dict[int, Any] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._see, lambda saved: saved)

    def _see(self, saved: Tensor) -> Tensor:
        owner = saved._base if saved._base is not None else saved  # a view of a parameter is no activation
        if not (owner.is_leaf and owner.requires_grad):
            storage = saved.untyped_storage()
            if storage._cdata not in self._met:
                self._count += storage.nbytes()
                self._met[storage._cdata] = (
                    storage  # so that no other one is given the same address meanwhile
                )
        return saved

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self._met.clear()
        self.most, self._count = max(self.most, self._count), 0
