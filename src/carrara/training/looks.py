"""When a training looks at held-out pictures: at even shares of its budget, and at most a share of a budget of time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from carrara.training.lr_and_budget import LOOKS_SHARE, RESERVED, STARTUP, Budget

if TYPE_CHECKING:
    from carrara.training.checkpoint import TrainingState


_MARGIN = (
    0.75  # of what is allowed that a look is planned to take: its time is estimated before the first one
)
_BACKWARD = 3  # a training step takes as long as so many forward passes over its pictures


@dataclass(frozen=True)
class Looks:
    """``count`` looks in a run, of which at least ``least`` are made, however long they take.

    A look takes so many ``passes`` (forward passes of a picture).

    What it knows is in the state's numbers under ``name``, so a resumed run goes on in the same way: the step
    (``at``) and the seconds of training (``spent``) after the last look, how many there were (``looks``) and the
    ``seconds`` they took. With a budget in steps nothing depends on the clock.
    """

    name: str
    count: int
    least: int = 2
    share: float = LOOKS_SHARE
    passes: float = 0.0

    def due(self, state: TrainingState) -> bool:
        """Whether it is time to look, before the step to come or after the last one.

        For the only look of a run time is kept by an estimate; otherwise by what the looks before took.
        """
        if self.count == 1 and state.fraction < 1:
            state.numbers[RESERVED] = min(self._estimate(state), self._allowed(state))
        before = self._before(state)
        left = self.count - _passed(before, self.count)
        if left <= 0:
            return False
        if (affordable := self._affordable(state)) is not None and affordable < left:
            return state.fraction >= before + (1 - before) / affordable
        return _passed(state.fraction, self.count) > self.count - left

    @contextmanager
    def look(self, state: TrainingState) -> Iterator[None]:
        """Measures what a look takes, and notes that there was one."""
        start = time.perf_counter()
        yield
        took = time.perf_counter() - start
        numbers = state.numbers
        made, seconds = self._known(state, "looks") + 1, self._known(state, "seconds") + took
        own = {"looks": made, "seconds": seconds, "at": float(state.step), "spent": state.spent + took}
        numbers.update({f"{self.name}.{key}": value for key, value in own.items()})
        numbers[RESERVED] = seconds / made

    def size(self, state: TrainingState) -> float:
        """Which part (0 to 1) of a look there is time for.

        The same in all looks of a run, so that they can be compared; 1 with a budget in steps.
        """
        key, takes, allowed = f"{self.name}.part", self._estimate(state), self._allowed(state)
        return state.numbers.setdefault(key, 1.0 if takes <= allowed else allowed / takes)

    def _estimate(self, state: TrainingState) -> float:
        """Seconds of a look, by how fast training is; 0 before the first step."""
        trained = state.spent - state.numbers.get(STARTUP, 0.0)
        return self.passes * trained / state.seen / _BACKWARD if state.seen else 0.0

    def _allowed(self, state: TrainingState) -> float:
        """Seconds that a look may take; without end with a budget in steps."""
        seconds = Budget.parse(state.config.budget).seconds or math.inf
        return self.share * seconds / max(1, min(self.least, self.count)) * _MARGIN

    def seconds(self, budget: Budget, rate: float) -> float:
        """What all looks will take of a training with ``rate`` pictures per second."""
        whole = self.count * self.passes / _BACKWARD / rate
        return whole if budget.seconds is None else min(whole, self.share * budget.seconds)

    def _affordable(self, state: TrainingState) -> int | None:
        """How many more looks there is time for, at least the last one; None where time does not count."""
        seconds, made = Budget.parse(state.config.budget).seconds, self._known(state, "looks")
        taken = self._known(state, "seconds")
        if seconds is None or not taken:
            return None
        return max(1, self.least - int(made), int((self.share * seconds - taken) / (taken / made)))

    def _before(self, state: TrainingState) -> float:
        """The share of the budget at which there was the last look, 0 where there was none.

        Of the budget as it is now: a run that is prolonged has looks at the shares of its longer one.
        """
        return state.fraction_at(spent=self._known(state, "spent"), step=int(self._known(state, "at")))

    def _known(self, state: TrainingState, key: str) -> float:
        return state.numbers.get(f"{self.name}.{key}", 0.0)


def _passed(fraction: float, count: int) -> int:
    """How many of ``count`` even shares of a budget have passed."""
    return int(fraction * count + 1e-9)
