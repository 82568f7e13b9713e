"""The learning rate's course: a warm-up, then one of a few shapes over the budget, be it of time or of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carrara.training.train_config import TrainConfig


def wsd(used: float, cooldown: float) -> float:
    """Warm-up, stable, decay (Hu et al. 2024, "MiniCPM"): a plateau, then a linear fall to zero.

    The last part is where most of the detail is learned.
    """
    return min(1.0, (1 - used) / cooldown) if cooldown else 1.0


def cosine(used: float, cooldown: float) -> float:
    """Half a cosine over the whole budget, down to zero (Loshchilov & Hutter 2017, without restarts)."""
    return (1 + math.cos(math.pi * used)) / 2


def constant(used: float, cooldown: float) -> float:
    """No fall: for runs that are to go on, and where averaged weights take the place of one."""
    return 1.0


WARMUP = 0.1  # share of the budget after which the warm-up ends, whatever its steps

SCHEDULES: dict[str, Callable[[float, float], float]] = {"wsd": wsd, "cosine": cosine, "constant": constant}
"""(share of the budget used, cooldown) -> share of the highest rate."""


def falls_from(config: TrainConfig) -> float:
    """Share of the budget from which on the rate falls; 1 where it never does."""
    return {"wsd": 1 - config.cooldown, "cosine": 0.0}.get(config.lr_schedule, 1.0)


def share(config: TrainConfig, *, used: float, step: int) -> float:
    """Share of the highest rate for the step after ``step`` others, when ``used`` of the budget is gone.

    The warm-up counts steps, because that is what an optimizer's averages need, but takes at most a tenth of the
    budget; it multiplies the shape.
    """
    rise = min(1.0, max((step + 1) / max(1, config.warmup), used / WARMUP))
    return rise * SCHEDULES[config.lr_schedule](used, config.cooldown)
