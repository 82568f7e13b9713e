"""A trial before a training: real steps of the real loop on random data, for the pictures per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from carrara.dataset.loader import Loaded
from carrara.training.checkpoint import TrainingState
from carrara.training.devices import Placement, resident
from carrara.training.fastest import fastest_training
from carrara.training.loop import train
from carrara.training.random_data import Rehearsal
from carrara.training.recipe import TrainConfig

_LONGEST = 60.0  # seconds that the first step of a trial may take, by its FLOPs


@dataclass(frozen=True)
class Trial:
    """Pictures a second, how it was found, and bytes at the peak where they were measured."""

    rate: float
    words: str
    peak: int | None = None


def run_trial(
    build: Callable[[], Rehearsal], config: TrainConfig, flops: float, placement: Placement, seconds: float
) -> Trial:
    """Real steps of the real loop on random data, nothing written; else a rate by a picture's FLOPs, and why."""
    speed = _speed(placement)
    one = flops / speed  # seconds a picture at the very least
    if not seconds:
        return Trial(1 / one, f"from its FLOPs at {speed / 1e9:.0f} GFLOP/s, no trial")
    if one > _LONGEST:
        return Trial(
            1 / one, f"from its FLOPs at {speed / 1e9:.0f} GFLOP/s: a trial would take {one:.0f} s a picture"
        )
    part = config.batch // config.accumulate
    batch = config.batch if one * config.batch < seconds else max(1, min(part, int(seconds / 3 / one)))
    changes = {"budget": f"{seconds}s", "batch": batch, "warmup": 0}
    if batch != config.batch:
        changes["accumulate"] = 1
    torch.manual_seed(config.seed)
    rehearsal, config = build(), config.model_copy(update=changes)
    placement, how = fastest_training(rehearsal, next(random_batches(batch)), placement, config)
    if placement.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(placement.device)
    state = TrainingState(rehearsal.modules, config, placement)
    marks: list[tuple[int, float]] = []
    with closing(random_batches(batch)) as batches:
        marks.extend((r.seen, r.spent) for r in train(rehearsal, batches, state) if r.losses)
    skipped = min(2, len(marks) - 1)  # the first steps are slow
    (seen0, spent0), (seen, spent) = (marks[skipped - 1] if skipped else (0, 0.0)), marks[-1]
    counted = f"{len(marks)} {'step' if len(marks) == 1 else 'steps'}"
    fewer = f" of {batch} {'picture' if batch == 1 else 'pictures'}" if batch != config.batch else ""
    words = f"measured over {spent:.1f} s, {counted}{fewer}"
    peak = None if fewer else _measured(placement)
    return Trial((seen - seen0) / max(1e-9, spent - spent0), f"{words}; {how}", peak)


def _measured(placement: Placement) -> int | None:
    """Bytes at the peak of this process, or on the GPU, where this can be told."""
    if placement.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(placement.device))
    return resident("VmHWM")


def random_batches(batch: int) -> Generator[Loaded, None, None]:
    """Batches that say only how many pictures there are."""
    seen = 0
    while True:
        seeds = np.arange(seen, seen + batch, dtype=np.uint64)
        yield Loaded(np.arange(batch), seen, seeds, {})
        seen += batch


def _speed(placement: Placement) -> float:
    """FLOPs a second of products of matrices, in the precision of the forward pass."""
    dtype = torch.bfloat16 if placement.bf16 else torch.float32
    side = 4096 if placement.device.type == "cuda" else 512
    a = torch.randn(side, side, device=placement.device, dtype=dtype)
    (a @ a).sum().item()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.2:
        (a @ a).sum().item()
        count += 1
    return 2 * side**3 * count / (time.perf_counter() - start)
