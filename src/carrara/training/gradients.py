"""The gradient of a batch: part after part to save memory, or parts at the same time, one thread each.

A batch computed in parts, so that a step needs the activations of one part only.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from carrara.threads import at_once
from carrara.training import dropout
from carrara.training.activation_memory import Saved

if TYPE_CHECKING:
    from carrara.dataset.loader import Loaded
    from carrara.training.devices import Placement
    from carrara.training.recipe import TrainConfig
    from carrara.training.task import Task


@dataclass
class Gradients:
    """The terms of all losses, means over the batch; the modules that learn from it, by name; bytes saved for them."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    learning: list[str] = field(default_factory=list)
    activations: int = 0


class _Part(NamedTuple):
    terms: dict[str, Tensor]
    slopes: tuple[Tensor | None, ...]
    activations: int


def gradients(
    task: Task,
    batch: Loaded,
    placement: Placement,
    config: TrainConfig,
    *,
    drops: bool = False,
    measure: bool = False,
) -> Gradients:
    """Adds each module's gradient to that of its parameters. Parts at once give their gradients in a fixed order,

    so the sum is a function of their number. Layers that drop features (``drops``) draw from one generator for all
    threads: then a batch is not divided. With ``measure`` activations are counted.
    """
    found = Gradients()
    for turn in parts(batch, config.accumulate):
        pieces = parts(turn, placement.parts) if task.divisible and not drops else [turn]
        for number, (name, module) in enumerate(task.modules.items()):
            if drops:
                dropout.seed(config.seed, turn.seen, number)
            weights = [p for p in module.parameters() if p.requires_grad]
            whole = weights if len(pieces) > 1 else None
            work = [
                partial(
                    _part, task, name, piece, placement, whole, len(piece.rows) / len(batch.rows), measure
                )
                for piece in pieces
            ]
            done = at_once(work)
            if not done[0].terms:
                continue
            for part in done:
                _add(weights, part.slopes)
                for key, value in part.terms.items():
                    found.terms[key] = value + found.terms.get(key, 0.0)
            found.activations = max(found.activations, sum(part.activations for part in done))
            if name not in found.learning:
                found.learning.append(name)
    return found


def _part(
    task: Task,
    name: str,
    piece: Loaded,
    placement: Placement,
    weights: list[nn.Parameter] | None,
    share: float,
    measure: bool,
) -> _Part:
    """One part's terms times its share of the batch, and its slopes; without ``weights`` these are added at once."""
    with placement.autocast(), Saved() if measure else contextlib.nullcontext() as saved:
        losses = task.losses(name, piece)
    slopes: tuple[Tensor | None, ...] = ()
    if losses:
        total = torch.stack(list(losses.values())).sum()
        total = total if share == 1 else total * share
        if weights is None:
            total.backward()  # type: ignore[no-untyped-call]
        else:
            slopes = torch.autograd.grad(total, weights, allow_unused=True)
    return _Part(
        {key: value.detach() * share for key, value in losses.items()}, slopes, saved.most if saved else 0
    )


@torch.no_grad()
def _add(weights: list[nn.Parameter], slopes: tuple[Tensor | None, ...]) -> None:
    for weight, slope in zip(weights, slopes, strict=bool(slopes)):
        if slope is None:
            continue
        if weight.grad is None:  # fused optimizers go by memory: a gradient lies as its parameter does
            same = slope.stride() == weight.stride()
            weight.grad = slope if same else torch.empty_like(weight).copy_(slope)
        else:
            weight.grad.add_(slope)


def parts(batch: Loaded, count: int) -> list[Loaded]:
    """``count`` consecutive parts, as equal as they can be; a batch of fewer pictures comes one by one.

    Each picture keeps its own seed, so what is random about it does not depend on the parts.
    """
    pictures = len(batch.rows)
    count = min(count, pictures)
    if count == 1:
        return [batch]
    edges = [pictures * k // count for k in range(count + 1)]
    return [
        replace(
            batch,
            rows=batch.rows[start:end],
            seen=batch.seen + start,
            seeds=batch.seeds[start:end],
            columns={name: values[start:end] for name, values in batch.columns.items()},
        )
        for start, end in pairwise(edges)
    ]
