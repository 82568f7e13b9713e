"""Context: what a denoiser may look at besides z and t, by named role, whoever filled it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """The roles; each is None where nothing fills it.

    tokens [b l d]   a sequence to attend to (cross-attention)
    mask   [b l]     True where a token is real
    vector [b d]     one vector a picture, added to the time embedding
    image  [b c h w] a picture beside z, concatenated to its channels
    """

    tokens: Tensor | None = None
    mask: Tensor | None = None
    vector: Tensor | None = None
    image: Tensor | None = None
    memory: dict[int, Any] | None = field(default=None, init=False, compare=False, repr=False)

    def roles(self) -> dict[str, Tensor]:
        """The filled roles by name."""
        names = (f.name for f in fields(self) if f.name != "memory")
        return {name: v for name in names if (v := getattr(self, name)) is not None}

    def remembering(self) -> Context:
        """The same context for many steps of sampling: what `once` computes from it is computed once.

        Not for training, where a gradient has to reach the condition at every step.
        """
        same = replace(self)
        object.__setattr__(same, "memory", {})  # frozen for everyone else
        return same

    def once(self, owner: object, compute: Callable[[], T]) -> T:
        """What ``owner`` (a layer) makes of this context alone, such as keys and values of its tokens."""
        if self.memory is None:
            return compute()
        if id(owner) not in self.memory:
            self.memory[id(owner)] = compute()
        found: T = self.memory[id(owner)]
        return found

    def where(self, keep: Tensor, other: Context) -> Context:
        """This context for the pictures where ``keep [b]`` is True, ``other`` (the null one) elsewhere."""
        mine, theirs = self.roles(), other.roles()
        if mine.keys() != theirs.keys():
            raise ValueError(f"contexts fill different roles: {sorted(mine)} and {sorted(theirs)}")
        return Context(
            **{
                name: torch.where(keep.reshape(-1, *(1,) * (value.ndim - 1)), value, theirs[name])
                for name, value in mine.items()
            }
        )

    def join(self, other: Context) -> Context:
        """Both conditions at once: tokens one after another, vectors side by side, images as more channels."""
        joined = dict(self.roles())
        axes = {"tokens": 1, "mask": 1, "vector": 1, "image": 1}
        for name, value in other.roles().items():
            joined[name] = torch.cat([joined[name], value], axes[name]) if name in joined else value
        return Context(**joined)

    def split(self, count: int) -> list[Context]:
        """Parts of the batch one after another, as equal as they can be."""
        parts = {name: value.tensor_split(count) for name, value in self.roles().items()}
        return [Context(**{name: found[k] for name, found in parts.items()}) for k in range(count)]

    def to(self, device: torch.device | str) -> Context:
        """The same context on another device."""
        return Context(**{name: value.to(device) for name, value in self.roles().items()})

    @staticmethod
    def stack(contexts: Sequence[Context]) -> Context:
        """One batch from several, in order (both guidance branches in one call, for instance)."""
        names = contexts[0].roles().keys()
        return Context(**{n: torch.cat([c.roles()[n] for c in contexts]) for n in names})
