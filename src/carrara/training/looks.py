"""When a training looks at held-out pictures: at even shares of its budget, and at most a share of a budget of time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from carrara.training.budget import Budget

if TYPE_CHECKING:
    from carrara.training.state import TrainingState

SHARE = 0.1  # of a budget of time that all looks together may take
RESERVED = "reserved"  # in the state's numbers: seconds of the budget that are kept for the look at the end
_MARGIN = (
    0.75  # of what is allowed that a look is planned to take: its time is estimated before the first one
)
_BACKWARD = 3  # a training step takes as long as so many forward passes over its pictures


@dataclass(frozen=True)
class Looks:
    """``count`` looks in a run, of which at least ``least`` are made, however long they take.

    What it knows is in the state's numbers under ``name``, so a resumed run goes on in the same way: the step
    (``at``) and the seconds of training (``spent``) after the last look, how many there were (``looks``) and the
    ``seconds`` they took. With a budget in steps nothing depends on the clock.
    """

    name: str
    count: int
    least: int = 2
    share: float = SHARE

    def due(self, state: TrainingState) -> bool:
        """Whether it is time to look, before the step to come or after the last one."""
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

    def size(self, state: TrainingState, passes: float) -> float:
        """Which part (0 to 1) of a look of ``passes`` (forward passes of a picture) there is time for.

        The same in all looks of a run, so that they can be compared; 1 with a budget in steps.
        """
        key, seconds = f"{self.name}.part", Budget.parse(state.config.budget).seconds
        if key not in state.numbers:
            each = state.spent / max(1, state.seen) / _BACKWARD
            allowed = self.share * (seconds or 0.0) / max(1, min(self.least, self.count)) * _MARGIN
            fits = seconds is None or passes * each <= allowed
            state.numbers[key] = 1.0 if fits else allowed / (passes * each)
        return state.numbers[key]

    def seconds(self, budget: Budget, passes: float, rate: float) -> float:
        """What all looks will take of a training with ``rate`` pictures per second, each of ``passes``."""
        whole = self.count * passes / _BACKWARD / rate
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
