"""The spread of numbers, in six of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Spread(NamedTuple):
    """The lowest, those below which 5, 50 and 95 of 100 lie, the highest, and the mean."""

    lowest: float
    p5: float
    median: float
    p95: float
    highest: float
    mean: float

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Spread | None:
        """None of no numbers."""
        if not len(values):
            return None
        found = np.percentile(values, [0, 5, 50, 95, 100])
        return cls(*(round(float(v), 4) for v in (*found, values.mean())))
