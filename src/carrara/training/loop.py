"""One loop for every objective: it asks a task for its losses and yields a report after each step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from carrara.errors import UserError
from carrara.progress import Progress
from carrara.threads import alone
from carrara.training import dropout
from carrara.training.gradients import gradients, parts
from carrara.training.optim import lr_share

if TYPE_CHECKING:
    from carrara.dataset.loader import Loaded
    from carrara.training.checkpoint import TrainingState
    from carrara.training.task import Task


BEST = "held_out"  # the measure of a task by which the best checkpoint is kept; lower is better


@dataclass(frozen=True)
class Report(Progress):
    """One step: pictures seen after it, the terms of each loss, the share of the budget used.

    ``measures`` are further numbers of the task for the log, ``note`` is something that the user should read;
    a report without losses is about no step and brings only the note, or ``best``: that the state as it is now
    has done better on held-out pictures than any before. ``last`` is what the task measured after the last step.
    ``next`` is a word for what comes now and takes a while, such as "validating".
    """

    seen: int
    step: int
    losses: Mapping[str, float]
    gradient: float
    lr: float
    spent: float
    measures: Mapping[str, float] = field(default_factory=dict)
    best: bool = False
    last: bool = False
    next: str = ""

    @staticmethod
    def remark(state: TrainingState, note: str = "", **more: Any) -> Report:
        """A report about no step."""
        about = {"fraction": state.fraction, "note": note, **more}
        return Report(state.seen, state.step, {}, 0.0, 0.0, state.spent, **about)


def train(task: Task, batches: Iterable[Loaded], state: TrainingState) -> Iterator[Report]:
    """Steps until the budget is used. ``batches`` begin at ``state.seen``; the state is whole at every yield.

    All time counts until the last step, also what the task does between steps and the caller with a report.
    UserError where a loss or a gradient is no longer finite: the weights are then those before that step.
    """
    waiting, clock, notes = iter(batches), _Clock(state), list[str]()
    drops = dropout.active(state.modules.values())
    while state.fraction < 1:
        with alone(state.placement.parts > 1):
            notes = [task.between(state)]
        yield from _best(task, state)
        clock.count()
        if reason := task.finished(state):
            yield Report.remark(state, "; ".join(note for note in (*notes, f"stopped: {reason}") if note))
            return
        if (used := state.fraction) >= 1:  # what it did took all that was left, and was the last
            break
        if (batch := next(waiting, None)) is None:
            return
        with alone(state.placement.parts > 1):
            terms, norms = _gradients(task, batch, state, drops)
            lr = lr_share(state.config, used=used, step=state.step)
            for name in norms:
                for group in state.optimizers[name].param_groups:
                    group["lr"] = state.own.get(name, state.config).lr * lr
                state.optimizers[name].step()
                state.optimizers[name].zero_grad()
            state.step += 1
            state.seen += len(batch.rows)
            state.average()
        clock.count()
        yield Report(
            state.seen,
            state.step,
            terms,
            next(iter(norms.values()), 0.0),
            state.config.lr * lr,
            state.spent,
            task.measures(),
            fraction=state.fraction,
            words=f"loss {sum(terms.values()):.4f} · {state.seen} seen",
            note="; ".join(note for note in notes if note),
            next=task.pending(state),
        )
        notes = []
    with alone(state.placement.parts > 1):
        notes.append(task.last(state))
    if note := "; ".join(note for note in notes if note):
        yield from _best(task, state)
        yield Report.remark(state, note, measures=task.measures(), last=True)


class _Clock:
    """Adds the time that passes to what the state has spent."""

    def __init__(self, state: TrainingState) -> None:
        self._state, self._since = state, time.perf_counter()

    def count(self) -> None:
        """The seconds since the last time."""
        now = time.perf_counter()
        self._state.spent += now - self._since
        self._since = now


def _best(task: Task, state: TrainingState) -> Iterator[Report]:
    """Says so where the task has measured less than ever before."""
    held_out = task.measures().get(BEST)
    if held_out is not None and held_out < (math.inf if state.best is None else state.best):
        state.best = held_out
        yield Report.remark(state, best=True)


def _gradients(
    task: Task, batch: Loaded, state: TrainingState, drops: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Leaves each module's clipped gradient in place; the terms, and the norm of each module that learns now.

    Only one transfer from the device waits for it to finish: all numbers of the step together.
    """
    found = gradients(task, batch, state.placement, state.config, drops=drops, measure=not state.measured)
    if found.activations:
        state.measured["activation_mb"] = round(found.activations / 1e6, 3)
    terms, learning = found.terms, found.learning
    norms = [nn.utils.clip_grad_norm_(state.modules[n].parameters(), state.config.clip) for n in learning]
    numbers = (
        torch.stack([value.detach().double() for value in (*terms.values(), *norms)]).tolist()
        if terms
        else []
    )
    values = dict(zip(terms, numbers, strict=False))
    lengths = dict(zip(learning, numbers[len(terms) :], strict=True))
    if bad := [key for key, value in values.items() if not math.isfinite(value)]:
        raise UserError(f"the loss {', '.join(bad)} is no longer finite at {state.seen} pictures seen")
    for name, length in lengths.items():
        if not math.isfinite(length):
            raise UserError(_exploded(task, name, batch, state, drops))
    return values, lengths


def _exploded(task: Task, name: str, batch: Loaded, state: TrainingState, drops: bool) -> str:
    """What to say of a gradient that is not finite: the term whose own gradient is not, or is the largest."""
    module = state.modules[name]
    weights = [p for p in module.parameters() if p.requires_grad]
    norms: dict[str, float] = {}
    values: dict[str, float] = {}
    for part in parts(batch, state.config.accumulate):
        module.zero_grad()
        if drops:
            dropout.seed(state.config.seed, part.seen, list(state.modules).index(name))
        with state.placement.autocast():
            losses = task.losses(name, part)
        for key, value in losses.items():
            values[key] = value.item()
            if value.requires_grad:
                slopes = torch.autograd.grad(value, weights, retain_graph=len(losses) > 1, allow_unused=True)
                norm = sum(float(s.double().square().sum()) for s in slopes if s is not None) ** 0.5
                norms[key] = norm if math.isfinite(norm) else math.inf
        if math.inf in norms.values():
            break
    words = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
    return (
        f"the gradient of {name} is no longer finite at {state.seen} pictures seen, that of the loss "
        f"{max(norms, key=lambda key: norms[key])} first; the losses themselves are ({words})"
    )
