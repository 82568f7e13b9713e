"""Guidance: two estimates of the same z, one with the condition and one without, made into a stronger one.

A guidance is a list of *rules*, applied in order: each gets the estimates of one step and the result so far
(``guided``, which begins as the conditional estimate) and gives the next result. That is how they compose:

    guidance = chain(cfg(6), interval(low=0.2, high=0.8), rescale(amount=0.7))

which a user writes as "cfg:6+interval:low=0.2,high=0.8+rescale:amount=0.7" (`split`, `combined`).

A ``Guidance`` can be used in two ways, which agree:

    guidance(conditional, unconditional)    two callables, called one after the other
    guidance.together(both, conditional)    both(z, t) gives both estimates from one call on a double batch

``guidance.active(t)`` tells whether the unconditional estimate is wanted at a time at all; where it is not,
only ``conditional`` is called. Each call of either form begins a new run: rules with a memory (``apg``) start
empty, so one Guidance may serve any number of pictures.

A negative prompt is another context in the place of the empty one. A weaker model as the guide brings its own
estimate: see ``autoguidance``.

Scale 1 is off, everywhere. Written on estimates of x0, classifier-free guidance is the same as on noise or
velocity, because those are affine in x0 and its weights add up to 1.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from carrara.diffusion.parameterizations import Parameterization
from carrara.diffusion.process import solved
from carrara.diffusion.samplers.path import Denoise
from carrara.diffusion.schedules import NoiseSchedule
from carrara.errors import UserError
from carrara.registry import Table


class Estimates(NamedTuple):
    """What a rule sees at one step; all but ``t`` ([] in [0, 1]) are [b c ...]."""

    z: Tensor
    t: Tensor
    conditional: Tensor
    unconditional: Tensor  # the conditional one itself while the guidance is not active
    guided: Tensor


Rule = Callable[[Estimates], Tensor]


@dataclass(frozen=True)
class Guidance:
    """A rule, begun anew for every run, and whether it wants the unconditional estimate.

    ``wants(t, so_far)``: at time t, where ``so_far`` says whether the guidances before it in a chain do.
    """

    begin: Callable[[], Rule]
    wants: Callable[[Tensor, bool], bool]

    def active(self, t: Tensor) -> bool:
        """Whether the unconditional estimate is used at time t."""
        return self.wants(t, False)

    def __call__(self, conditional: Denoise, unconditional: Denoise) -> Denoise:
        """The guided denoiser from two."""
        return self.together(lambda z, t: (conditional(z, t), unconditional(z, t)), conditional)

    def together(
        self, both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], conditional: Denoise
    ) -> Denoise:
        """The guided denoiser from one that gives both estimates at once, and one for when one is enough."""
        rule = self.begin()

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            if self.active(t):
                x0, without = both(z, t)
            else:
                x0 = without = conditional(z, t)
            return rule(Estimates(z, t, x0, without, x0))

        return denoise


GUIDANCES: Table[Guidance] = Table("guidance")


def chain(*guidances: Guidance) -> Guidance:
    """Guidances one after another, each on the result of those before it; an empty chain is no guidance."""

    def begin() -> Rule:
        rules = [guidance.begin() for guidance in guidances]

        def rule(e: Estimates) -> Tensor:
            for each in rules:
                e = e._replace(guided=each(e))
            return e.guided

        return rule

    def wants(t: Tensor, so_far: bool) -> bool:
        for guidance in guidances:
            so_far = guidance.wants(t, so_far)
        return so_far

    return Guidance(begin, wants)


# --- what pushes away from an estimate that knows less ---


@GUIDANCES.add
def cfg(scale: float) -> Guidance:
    """Classifier-free: unconditional + scale * (conditional - unconditional) (Ho & Salimans 2022, eq. 6, with
    w = scale - 1).
    """
    _at_least_zero(scale=scale)
    return _pushing(lambda: lambda e: e.guided + (scale - 1) * (e.conditional - e.unconditional), scale)


@GUIDANCES.add
def apg(
    scale: float, *, momentum: float = -0.5, limit: float = float("inf"), parallel: float = 0.0
) -> Guidance:
    """Adaptive projected guidance: less of what only saturates (Sadat et al. 2024, Algorithm 1).

    The difference of both estimates is averaged over the steps (``momentum``, negative to push away from the
    last one), cut to the norm ``limit``, and its part along the conditional estimate kept by ``parallel``
    (their eta). With momentum 0, no limit and parallel 1 it is ``cfg``.
    """
    _at_least_zero(scale=scale, limit=limit, parallel=parallel)

    def begin() -> Rule:
        average: Tensor | None = None

        def rule(e: Estimates) -> Tensor:
            nonlocal average
            difference = e.conditional - e.unconditional
            average = difference if average is None else difference + momentum * average
            norm = _dot(average, average).sqrt()
            push = average * (limit / norm).clamp(max=1).nan_to_num(1)
            length = _dot(e.conditional, e.conditional).clamp(min=torch.finfo(push.dtype).tiny)
            along = _dot(push, e.conditional) / length * e.conditional
            return e.guided + (scale - 1) * (push - (1 - parallel) * along)

        return rule

    return _pushing(begin, scale)


@GUIDANCES.add
def cfg_zero(scale: float, *, schedule: NoiseSchedule, still: float = 0.0) -> Guidance:
    """CFG-Zero*: the unconditional velocity scaled to fit the conditional one (Fan et al. 2025).

    The velocity is that of the straight path through the same noise levels. For t > 1 - ``still`` it is 0
    ("zero init"): the estimate is what keeps z where it is.
    """
    _at_least_zero(scale=scale, still=still)

    def rule(e: Estimates) -> Tensor:
        y = e.z / (schedule.alpha(e.t) + schedule.sigma(e.t)).to(e.z.dtype)
        if e.t > 1 - still:
            return y
        given, free = y - e.conditional, y - e.unconditional  # sigma * velocity
        fit = _dot(given, free) / _dot(free, free).clamp(min=torch.finfo(free.dtype).tiny)
        return e.guided + (scale - 1) * (fit * free - given)

    return _pushing(lambda: rule, scale)


@GUIDANCES.add
def autoguidance(scale: float, *, weak: str, opened: Callable[[str], Denoise]) -> Guidance:
    """Away from a worse version of the same model: weak + scale * (good - weak) (Karras et al. 2024).

    ``opened`` gives the estimates of the model called ``weak`` for the same condition: a smaller network, or an
    earlier average of the weights. At scale 1 it is not opened.
    """
    _at_least_zero(scale=scale)

    def begin() -> Rule:
        worse = opened(weak)
        return lambda e: e.guided + (scale - 1) * (e.conditional - worse(e.z, e.t))

    return chain() if scale == 1 else Guidance(begin, _as_before)


# --- what limits classifier-free guidance of its own scale, and the guidances before it ---


@GUIDANCES.add
def interval(scale: float = 1.0, low: float = 0.0, high: float = 1.0) -> Guidance:
    """Guidance only for low <= t <= high, else the conditional estimate (Kynkäänniemi et al. 2024)."""
    if not 0 <= low <= high <= 1:
        raise UserError(f"a guidance interval must satisfy 0 <= low <= high <= 1, got {low} and {high}")

    def within(t: Tensor) -> bool:
        return low <= t.item() <= high

    limit = Guidance(
        lambda: lambda e: e.guided if within(e.t) else e.conditional,
        lambda t, so_far: so_far and within(t),
    )
    return chain(cfg(scale), limit)


@GUIDANCES.add
def rescale(
    scale: float = 1.0,
    amount: float = 0.7,
    *,
    schedule: NoiseSchedule | None = None,
    parameterization: Parameterization | None = None,
) -> Guidance:
    """Towards the conditional estimate's standard deviation, as Lin et al. 2023 do with outputs; 0 is off.

    Their eq. 15 and 16 are of what the network says (v, in theirs): give ``schedule`` and ``parameterization`` for
    that. Without, it is the estimate of x0 itself whose deviation is kept.
    """
    _fraction(amount=amount)
    if (schedule is None) != (parameterization is None):
        raise UserError("rescale needs a schedule and a parameterization, or neither")

    def rule(e: Estimates) -> Tensor:
        still: Tensor | float = 0.0  # what of x0 is z; the rest is the output, but for one factor for all
        if schedule is not None and parameterization is not None:
            still = solved(schedule, parameterization, e.t).skip.to(e.z) * e.z
        ratio = _std(e.conditional - still) / _std(e.guided - still).clamp(
            min=torch.finfo(e.guided.dtype).tiny
        )
        return e.guided + amount * (ratio - 1) * (e.guided - still)

    return chain(cfg(scale), Guidance(lambda: rule, _as_before))


@GUIDANCES.add
def dynamic_threshold(scale: float = 1.0, percentile: float = 0.995, *, least: float = 1.0) -> Guidance:
    """Each picture clipped at a percentile of its size, then shrunk to ``least`` (Saharia et al. 2022).

    A picture whose percentile is below ``least`` (1 for pixels in [-1, 1]) is only clipped, at ``least``.
    """
    _fraction(percentile=percentile)

    def rule(e: Estimates) -> Tensor:
        flat = e.guided.flatten(1).abs().to(torch.promote_types(e.guided.dtype, torch.float32))
        # One picture at a time: torch's quantile refuses more than 16 million numbers.
        edge = torch.stack([row.quantile(percentile) for row in flat]).clamp(min=least).to(e.guided.dtype)
        edge = edge.reshape(-1, *(1,) * (e.guided.ndim - 1))
        clipped = torch.minimum(torch.maximum(e.guided, -edge), edge)
        return clipped * (least / edge)

    return chain(cfg(scale), Guidance(lambda: rule, _as_before))


# --- as a user writes them ---


def split(text: str) -> tuple[float | None, str | None]:
    """The scale and the rest of what a user writes: "4" is (4, None), "apg:4,limit=2" (4, "apg:limit=2").

    The scale is that of the first guidance, None where it has none. UserError names the nearest guidance or option.
    """
    with contextlib.suppress(ValueError):
        return float(text), None
    (name, options), *rest = map(GUIDANCES.read, _JOINED.split(text))
    scale: Any = options.pop("scale", None)
    rules = "+".join(GUIDANCES.write(*each) for each in [(name, options), *rest])
    return scale, None if rules == "cfg" else rules


def combined(scale: float, rules: str | None, **supplied: Any) -> Guidance:
    """The guidance of what `split` gives; ``supplied`` are the schedule, the parameterization and the like."""
    (name, options), *rest = map(GUIDANCES.read, _JOINED.split(rules or "cfg"))
    made = [GUIDANCES.call(*each, supplied) for each in [(name, {"scale": scale, **options}), *rest]]
    return chain(*made)


_JOINED = re.compile(r"\+(?=\s*[a-z_]+\s*(?::|\+|$))")  # no "+" of 1e+3


def _pushing(begin: Callable[[], Rule], scale: float) -> Guidance:
    """A guidance that wants the unconditional estimate, or at scale 1 none at all."""
    if scale == 1:
        return chain()
    return Guidance(begin, lambda t, so_far: True)


def _as_before(t: Tensor, so_far: bool) -> bool:
    return so_far


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product for each picture, [b 1 ...]."""
    return (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))


def _std(a: Tensor) -> Tensor:
    """The standard deviation for each picture, [b 1 ...]."""
    return a.flatten(1).std(1).reshape(-1, *(1,) * (a.ndim - 1))


def _at_least_zero(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise UserError(f"guidance {name} must be 0 or more, got {value}")


def _fraction(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"guidance {name} must be from 0 to 1, got {value}")
