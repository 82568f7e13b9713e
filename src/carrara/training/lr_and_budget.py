"""The learning rate's course: a warm-up, then one of a few shapes over the budget, be it of time or of steps.

How long to train: by the clock ("10m"), all included, or by steps or epochs, which repeats bit for bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

_MEETINGS = 30  # times that a picture has to be met before its caption means something
_MEETINGS_OF_MANY = (
    5000  # pictures; of more of them one learns from another, and not each has to be met so often
)


def enough(pictures: int) -> int:
    """How many pictures have to be seen of so many before conditions mean something."""
    return _MEETINGS * min(pictures, _MEETINGS_OF_MANY)


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

LOOKS_SHARE = 0.1  # of a budget of time that all looks together may take
# In the state's numbers: seconds of the budget that are kept for the look at the end, and that passed before the first
RESERVED, STARTUP = "reserved", "startup"  # step, which say nothing of how fast training is.

_UNITS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

_MOST = 1e9  # of a unit
_EXAMPLES = "90s, 10m, 1.5h, 4000steps or 20epochs"


@dataclass(frozen=True)
class Budget:
    """Seconds of training with all that is done meanwhile, steps, or epochs; exactly one is set.

    An epoch is as many pictures as there are to train on; `counted` makes steps of it.
    """

    seconds: float | None = None
    steps: int | None = None
    epochs: float | None = None

    @staticmethod
    def parse(text: str) -> Budget:
        """Reads "90s", "10m", "1.5h", "2d", "4000steps" or "20epochs"; ValueError says what was expected."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower(), re.ASCII)
        amount = float(match[1]) if match else 0.0
        if amount > _MOST:
            raise ValueError(f"the budget {text[:40]!r} is out of range; expected at most {_MOST:g}")
        if match and match[2] in ("steps", "step") and amount >= 1 and amount == int(amount):
            return Budget(steps=int(amount))
        if match and match[2] in ("epochs", "epoch") and amount > 0:
            return Budget(epochs=amount)
        if match and match[2] in _UNITS and amount > 0:
            return Budget(seconds=amount * _UNITS[match[2]])
        raise ValueError(f"cannot read the budget {text!r}; expected for example {_EXAMPLES}")

    @property
    def amount(self) -> tuple[str, float]:
        """What it is measured in ("seconds", "steps" or "epochs"), and how many."""
        return next((unit, value) for unit, value in vars(self).items() if value is not None)

    def counted(self, pictures: int, batch: int) -> Budget:
        """Epochs over so many pictures as steps, the last one whole; another budget as it is."""
        if self.epochs is None:
            return self
        return Budget(steps=max(1, math.ceil(self.epochs * pictures / batch - 1e-9)))

    def share(self, part: float) -> Budget:
        """A part of the time; steps and epochs are not divided, because each stage counts its own."""
        return self if self.seconds is None else Budget(seconds=self.seconds * part)

    def fraction(self, *, spent: float, step: int, reserved: float = 0.0) -> float:
        """How much of it is used, from 0 to 1; ``reserved`` seconds are for what comes after the last step.

        Epochs have to be `counted` before.
        """
        assert self.epochs is None
        if self.steps:
            return min(step / self.steps, 1.0)
        seconds = self.seconds or 1.0
        return min(spent / max(seconds - reserved, seconds / 2), 1.0)

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.steps}steps" if self.epochs is None else f"{self.epochs:.12g}epochs"
        return f"{self.seconds / 60:g}m" if self.seconds >= 60 else f"{self.seconds:g}s"
