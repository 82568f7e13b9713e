"""Time grids: where a sampler stops on its way from t = 1 to t = 0. Any grid goes with any sampler.

Each function gives ``[steps + 1]`` falling times in float64, ending with 0. "Level" is sigma / alpha, the
sigma of Karras et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from carrara.diffusion.schedules import Discrete, NoiseSchedule, logsnr, time_of_level
from carrara.errors import UserError
from carrara.registry import Table

GRIDS: Table[Tensor] = Table("time grid", supplied=("steps",))
"""``GRIDS[name](steps, schedule, **options) -> times``."""


@GRIDS.add
def uniform(steps: int, schedule: NoiseSchedule) -> Tensor:
    """Equal steps in time."""
    return _line(steps)


@GRIDS.add
def trailing(steps: int, schedule: NoiseSchedule) -> Tensor:
    """Equal steps rounded to those of the training table, the last included (Lin et al. 2023, table 2)."""
    total = _table_steps(schedule, steps)
    return (_line(steps) * total).round() / total


@GRIDS.add
def leading(steps: int, schedule: NoiseSchedule, *, offset: int = 0, spare: int = 0) -> Tensor:
    """Every (T / steps)-th step from the first on: DDIM's "linear" subsequence (Song et al. 2021, D.2).

    It begins below t = 1, at the last such step. Stable Diffusion was sampled with ``offset`` 1. With ``spare`` so
    many more are laid out and the lowest left out (diffusers' multistep solvers: 1).
    """
    total = _table_steps(schedule, steps + int(spare))
    places = torch.arange(steps, dtype=torch.float64).flip(0) + spare
    return _of_table(places * (total // (steps + int(spare))) + offset, total)


@GRIDS.add
def linspace(steps: int, schedule: NoiseSchedule, *, spare: int = 0, rounded: bool = False) -> Tensor:
    """Equal steps from the last step of the training table to its first (k-diffusion), ``rounded`` to whole ones.

    With ``spare`` so many more are laid out and the lowest left out (diffusers' multistep solvers: 1, rounded).
    """
    total = _table_steps(schedule, steps)
    places = torch.linspace(total - 1, 0, steps + int(spare), dtype=torch.float64)[:steps]
    return _of_table(places.round() if rounded else places, total)


@GRIDS.add
def quadratic(steps: int, schedule: NoiseSchedule) -> Tensor:
    """Square roots of time in equal steps: dense near the data (Song et al. 2021, D.2)."""
    return _line(steps) ** 2


@GRIDS.add
def shifted(steps: int, schedule: NoiseSchedule, *, shift: float = 3.0) -> Tensor:
    """Equal steps moved towards the noise, t -> shift t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23)."""
    if not shift > 0:
        raise UserError(f"shift must be greater than 0, got {shift}")
    t = _line(steps)
    return shift * t / (1 + (shift - 1) * t)


@GRIDS.add
def karras(
    steps: int,
    schedule: NoiseSchedule,
    *,
    rho: float = 7.0,
    lowest: float | None = None,
    highest: float | None = None,
    between: str | None = None,
    offset: int = 0,
) -> Tensor:
    """Equal steps in the rho-th root of the level (Karras et al. 2022, eq. 5).

    ``between`` names a grid whose first and last levels it keeps, ``offset`` is that grid's (diffusers).
    """
    low, high, first = _range(steps, schedule, lowest, highest, between, offset)
    if not rho > 0:
        raise UserError(f"rho must be greater than 0, got {rho}")
    roots = high ** (1 / rho) + _ramp(steps) * (low ** (1 / rho) - high ** (1 / rho))
    return _at_levels(schedule, roots**rho, first)


@GRIDS.add
def exponential(
    steps: int,
    schedule: NoiseSchedule,
    *,
    rho: float = 1.0,
    lowest: float | None = None,
    highest: float | None = None,
    between: str | None = None,
    offset: int = 0,
) -> Tensor:
    """log(level) = low + (high - low) * (1 - ramp)^rho (k-diffusion; rho = 1 is equal steps in log-SNR).

    ``between`` and ``offset`` as of `karras`.
    """
    low, high, first = _range(steps, schedule, lowest, highest, between, offset)
    if not rho > 0:
        raise UserError(f"rho must be greater than 0, got {rho}")
    levels = low * (high / low) ** (1 - _ramp(steps)) ** rho
    return _at_levels(schedule, levels, first)


@GRIDS.add
def log_snr(
    steps: int, schedule: NoiseSchedule, *, lowest: float | None = None, highest: float | None = None
) -> Tensor:
    """Equal steps in log-SNR (Lu et al. 2022a): ``exponential`` with rho = 1."""
    return exponential(steps, schedule, lowest=lowest, highest=highest)


STABLE_DIFFUSION_LEVELS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""The levels found for Stable Diffusion 1.5 at ten steps (Sabour et al. 2024, "Align your steps")."""


@GRIDS.add
def explicit(
    steps: int, schedule: NoiseSchedule, *, levels: Sequence[float] = STABLE_DIFFUSION_LEVELS
) -> Tensor:
    """Listed levels, read off log-linearly at another number of steps (Sabour et al. 2024).

    ``levels`` fall and are positive; n + 1 of them are n steps, and the last, where the list ends, becomes 0.
    """
    listed = torch.tensor(list(levels), dtype=torch.float64)
    if len(listed) < 2 or not (listed > 0).all() or not (listed.diff() < 0).all():
        raise UserError(f"levels must be at least two falling positive numbers, got {list(levels)}")
    place = torch.linspace(0, len(listed) - 1, _steps(steps) + 1, dtype=torch.float64)[:-1]
    below = place.floor().long()
    logs = listed.log()
    return _at_levels(schedule, (logs[below] + (place - below) * logs.diff()[below]).exp(), None)


def check_times(times: Tensor) -> None:
    """UserError unless ``times [steps + 1]`` fall strictly within [0, 1] over one step or more."""
    if times.ndim != 1 or len(times) < 2:
        raise UserError(
            f"sampling needs at least one step, two times; got times of shape {list(times.shape)}"
        )
    if not (times.diff() < 0).all() or not 0 <= times[-1] < times[0] <= 1:
        raise UserError(f"times must fall from at most 1 to at least 0, each once; got {times.tolist()}")


def _steps(steps: int) -> int:
    if steps < 1:
        raise UserError(f"the number of steps must be 1 or more, got {steps}")
    return steps


def _line(steps: int) -> Tensor:
    return torch.linspace(1, 0, _steps(steps) + 1, dtype=torch.float64)


def _ramp(steps: int) -> Tensor:
    """From 0 to 1 over the ``steps`` times that are not the final 0."""
    return torch.linspace(0, 1, _steps(steps), dtype=torch.float64)


def _table_steps(schedule: NoiseSchedule, steps: int) -> int:
    total = schedule.steps if isinstance(schedule, Discrete) else 1000
    if _steps(steps) > total:
        raise UserError(f"this grid has at most {total} steps, one for each of the schedule's; got {steps}")
    return total


def _of_table(places: Tensor, total: int) -> Tensor:
    """The times of a table's steps, numbered from 0, then 0."""
    return _checked(torch.cat([(places + 1) / total, places.new_zeros(1)]))


def _range(
    steps: int,
    schedule: NoiseSchedule,
    lowest: float | None,
    highest: float | None,
    between: str | None,
    offset: int,
) -> tuple[float, float, float | None]:
    """Levels between which a grid is spread, and the time that it begins at, where that is not the level's own.

    They are those of the grid ``between`` and else a table's own first and last, or what Karras et al. use. Where
    alpha(1) = 0 the level is infinite and 80 stands in for it: no picture is visible beyond.
    """
    ends = torch.tensor([1 / schedule.steps if isinstance(schedule, Discrete) else 0.0, 1.0]).double()
    if between:
        ends = GRIDS[between](steps, schedule, **({"offset": offset} if offset else {}))[[-2, 0]]
    levels = (-logsnr(schedule, ends) / 2).exp()
    low = lowest if lowest is not None else max(levels[0].item(), 0.002 if ends[0] == 0 else 0.0)
    high = highest if highest is not None else min(levels[1].item(), 80.0 if levels[1].isinf() else math.inf)
    if low == high and between and steps == 1:  # one step has one level
        low = high / 2
    if not 0 < low < high:
        raise UserError(f"levels must satisfy 0 < lowest < highest, got {low:g} and {high:g}")
    return low, high, ends[1].item() if highest is None else None


def _at_levels(schedule: NoiseSchedule, levels: Tensor, first: float | None) -> Tensor:
    """The times of falling levels, then 0; ``first``, where it is given, is the first time itself."""
    times = torch.cat([time_of_level(schedule, levels), levels.new_zeros(1)])
    if first is not None:
        times[0] = first
    return _checked(times)


def _checked(times: Tensor) -> Tensor:
    check_times(times)
    return times
