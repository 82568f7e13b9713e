"""Samplers against each other, at equal numbers of evaluations of the network, which is what costs time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from carrara.diffusion.grids import GRIDS
from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.schedules import NoiseSchedule
from carrara.errors import UserError
from carrara.generation.model import Model
from carrara.generation.png import to_image
from carrara.generation.sample import Settings, decode, denoise
from carrara.lessons.output import Exhibit, Lesson
from carrara.lessons.reverse import request
from carrara.pages import html
from carrara.pages.html import Chart, Line, legend
from carrara.pages.picture_grid import Row, plate
from carrara.progress import Progress
from carrara.tensors import from_pixels

USUAL = ("ddim", "heun", "dpm2", "dpmpp_2m", "unipc", "deis", "lms", "ancestral", "dpmpp_2m_sde")
REFERENCE, REFERENCE_STEPS = "dpmpp_2m", 500


@dataclass(frozen=True)
class Cost:
    """What a sampler asks for in a number of steps: estimates, and whether fresh noise."""

    steps: int
    evaluations: int
    noisy: bool


@dataclass(frozen=True)
class Result:
    """Pictures ``[n c h w]`` (8 or 16 bits) of one sampler at one cost, and how far they are from the reference."""

    cost: Cost
    pictures: Tensor
    distance: float


def cost(sampler: str, steps: int, grid: str, schedule: NoiseSchedule) -> Cost:
    """Counted, by running it on a single number."""
    asked = {"estimates": 0, "noise": 0}

    def zero(z: Tensor, t: Tensor) -> Tensor:
        asked["estimates"] += 1
        return torch.zeros_like(z)

    def noise(z: Tensor) -> Tensor:
        asked["noise"] += 1
        return torch.zeros_like(z)

    walk = SAMPLERS[sampler](zero, torch.ones(1, 1), GRIDS[grid](steps, schedule), schedule, noise=noise)
    for _ in walk:
        pass
    return Cost(steps, asked["estimates"], asked["noise"] > 0)


def within(sampler: str, evaluations: int, grid: str, schedule: NoiseSchedule) -> Cost:
    """As many steps as ``evaluations`` of the network allow; UserError where they allow none."""
    counts = range(1, evaluations + 1)
    steps = bisect_right(counts, evaluations, key=lambda n: cost(sampler, n, grid, schedule).evaluations)
    if not steps:
        least = cost(sampler, 1, grid, schedule).evaluations
        raise UserError(f"{sampler} needs at least {least} evaluations; got {evaluations}")
    return cost(sampler, steps, grid, schedule)


def samplers(
    model: Model,
    prompt: str,
    settings: Settings,
    *,
    evaluations: Sequence[int],
    names: Sequence[str] = USUAL,
    count: int = 2,
) -> Lesson:
    """The exhibit of ``names`` (UserError where one is unknown), each on ``count`` pictures.

    The reference is where a sampler without noise arrives in 500 steps from the same noise.
    """
    rows, numbers = [request(model, prompt)] * count, list(range(count))
    schedule = model.diffusion.schedule
    costs = {name: [within(name, n, settings.grid, schedule) for n in evaluations] for name in names}
    total = REFERENCE_STEPS + sum(c.evaluations for found in costs.values() for c in found)
    spent = 0

    def run(sampler: str, planned: Cost) -> Generator[Progress, None, Tensor]:
        own = settings.model_copy(
            update={"sampler": sampler, "sampler_options": None, "steps": planned.steps}
        )
        for moment in denoise(model, rows, numbers, own):
            done = spent + planned.evaluations * moment.step / max(planned.steps, moment.step)
            words = f"{sampler}, {planned.evaluations} evaluations"
            yield Progress(title="sampling", fraction=done / total, words=words)
        return decode(model, moment.z)

    whole = cost(REFERENCE, REFERENCE_STEPS, settings.grid, schedule)
    reference = yield from run(REFERENCE, whole)
    spent = whole.evaluations
    results: dict[str, list[Result]] = {name: [] for name in names}
    for name, found in costs.items():
        for planned in found:
            pictures = yield from run(name, planned)
            spent += planned.evaluations
            results[name].append(Result(planned, pictures, _distance(pictures, reference)))
    return _exhibit(results, reference, evaluations, prompt, settings)


def _exhibit(
    results: dict[str, list[Result]],
    reference: Tensor,
    evaluations: Sequence[int],
    prompt: str,
    settings: Settings,
) -> Exhibit:
    exact = {name: found for name, found in results.items() if not found[0].cost.noisy}
    best = [
        min((found[k].distance for found in exact.values()), default=0.0) for k in range(len(evaluations))
    ]
    blank = to_image(torch.full_like(reference[0], 255, dtype=torch.uint8))
    rows = [
        Row(
            f"{REFERENCE}\n{REFERENCE_STEPS} steps",
            [to_image(reference[0]), *[blank] * (len(evaluations) - 1)],
            ["the reference", *[""] * (len(evaluations) - 1)],
        )
    ]
    for name, found in results.items():
        rows.append(
            Row(
                name + ("\nadds noise" if name not in exact else ""),
                [to_image(result.pictures[0]) for result in found],
                [_said(result) for result in found],
                [name in exact and result.distance == best[k] for k, result in enumerate(found)],
            )
        )
    foot = "The number: distance to the reference, root mean\nsquare of pixel differences, of 255."
    still = plate(rows, [f"{n} evaluations" for n in evaluations], foot=foot)
    table = [[name, *map(_said, found)] for name, found in results.items()]
    words = (
        f"{prompt or 'Without a prompt'}; grid {settings.grid}, guidance {settings.guidance:g}, seed {settings.seed}. "
        "Every column gives each sampler the same number of evaluations of the network, fewer steps to those that take "
        "two for a step. The number is the distance to the reference: the root mean square of pixel differences, of "
        f"255, over {len(reference)} pictures. Samplers that add noise arrive at another picture each time, "
        "so they have no distance; look at them."
    )
    sections = [("In numbers", html.table(table, ["sampler", *(f"{n} evaluations" for n in evaluations)]))]
    if len(evaluations) > 1 and exact:
        chart = _chart(exact)
        sections.insert(0, ("Distance to the reference", f"{chart.svg()}<p>{legend(chart)}</p>"))
    return Exhibit("Samplers at equal cost", words, still, sections=sections)


def _said(result: Result) -> str:
    steps = f"{result.cost.steps} steps"
    return steps if result.cost.noisy else f"{result.distance:.1f} in {steps}"


def _chart(exact: dict[str, list[Result]]) -> Chart:
    lines = [
        Line(name, [(r.cost.evaluations, max(r.distance, 0.1)) for r in found])
        for name, found in exact.items()
    ]
    every = [point for line in lines for point in line.points]
    x_ticks = sorted({x for x, _ in every})
    y_ticks = [y for y in (0.1, 0.3, 1, 3, 10, 30, 100, 300)]
    low, high = min(y for _, y in every), max(y for _, y in every)
    inside = [
        y for k, y in enumerate(y_ticks) if y_ticks[min(k + 1, 7)] > low and y_ticks[max(k - 1, 0)] < high
    ]
    return Chart("distance (of 255)", "evaluations", lines, _thinned(x_ticks), inside, logarithmic=True)


def _thinned(ticks: Sequence[float]) -> list[float]:
    """Ticks at least a fifth apart, the first and the last among them."""
    kept = [ticks[0]]
    for tick in ticks[1:-1]:
        if tick > kept[-1] * 1.2 and ticks[-1] > tick * 1.2:
            kept.append(tick)
    return [*kept, ticks[-1]]


def _distance(pictures: Tensor, reference: Tensor) -> float:
    """Root mean square in steps of 0..255, whatever the depth."""
    error = from_pixels(pictures).double() - from_pixels(reference).double()
    return float(127.5 * error.square().mean().sqrt())
