"""Measures every sampler's order of convergence where the exact answer is known; writes docs/samplers.md.

Order: each sampler goes from t = 0.8 to 0.1 in equal steps of log-SNR and its end is compared with a far
finer solution; the slope of log(error) over log(steps) is the order. Both ends lie inside the path, because
steps from alpha = 0 and to sigma = 0 are Euler's in every method. A multistep method also begins with Euler's
rule, and that one step bounds the order by 2; the second figure is with a gentle start, the first step cut
into pieces that grow from h^2 by doubling.

Economy: whole paths on a usual grid, the error against the number of network evaluations.

    python bench/sampler_convergence.py     prints; rewrites docs/samplers.svg and the tables of the page
"""

from __future__ import annotations

import math
import re
import sys
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from carrara.diffusion.grids import GRIDS
from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.schedules import SCHEDULES, NoiseSchedule, logsnr

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from mixture import Mixture

DOCS = Path(__file__).parent.parent / "docs"
SOLVERS: dict[str, tuple[str, dict[str, float]]] = {
    "ddim (euler)": ("ddim", {}),
    "heun": ("heun", {}),
    "dpm2": ("dpm2", {}),
    "dpmpp_2s (eta 0)": ("dpmpp_2s_ancestral", {"eta": 0.0}),
    "dpmpp_sde (eta 0)": ("dpmpp_sde", {"eta": 0.0}),
    "dpmpp_2m": ("dpmpp_2m", {}),
    "dpmpp_3m (eta 0)": ("dpmpp_3m_sde", {"eta": 0.0}),
    "unipc 2": ("unipc", {"order": 2}),
    "unipc 3": ("unipc", {"order": 3}),
    "deis 2": ("deis", {"order": 2}),
    "deis 3": ("deis", {"order": 3}),
    "lms 4": ("lms", {"order": 4}),
    "plms": ("plms", {}),
}
STEPS = (80, 160)
FROM_NOISE = ("flow", "shifted_cosine", "sigmoid", "laplace")
BUDGETS = (8, 16, 32, 64)
"""Network evaluations for a whole path; two-stage samplers take half as many steps."""


def inner_grid(schedule: NoiseSchedule, steps: int, *, gentle: bool = False) -> Tensor:
    """Equal steps in log-SNR between two inner times."""
    ends = logsnr(schedule, torch.tensor([0.8, 0.1], dtype=torch.float64))
    places = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if gentle:
        pieces = math.ceil(math.log2(steps))
        places = torch.cat([places[:1], places[1] * 0.5 ** torch.arange(pieces, 0, -1), places[1:]])
    return schedule.time(ends[0] + (ends[1] - ends[0]) * places)


def end(solver: str, schedule: NoiseSchedule, times: Tensor, z: Tensor) -> tuple[Tensor, int]:
    """Where z ends, and how often the denoiser was asked."""
    name, options = SOLVERS[solver]
    exact = Mixture().denoiser(schedule)
    calls = 0

    def counted(z: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return exact(z, t)

    *_, last = SAMPLERS[name](counted, z, times, schedule, noise=torch.randn_like, **options)
    return last.z, calls


def spread(schedule: NoiseSchedule, t: float, n: int = 64) -> Tensor:
    """Points all over the noised mixture at time t, [1 n], with no random numbers."""
    when = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(when), schedule.sigma(when)
    normal = torch.special.ndtri(torch.linspace(0.02, 0.98, n, dtype=torch.float64))
    return (0.1 * alpha + torch.hypot(alpha, sigma) * normal).reshape(1, n)


def extrapolated(schedule: NoiseSchedule, z: Tensor, grids: tuple[Tensor, Tensor]) -> Tensor:
    """The end on a grid so fine that its error is far below every other; the second has twice the steps."""
    fine, finer = (end("heun", schedule, times, z)[0] for times in grids)
    return finer + (finer - fine) / 3  # Heun is of second order


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def orders(
    schedule: NoiseSchedule, steps: tuple[int, int] = STEPS, fine: int = 2000
) -> dict[str, list[float]]:
    """For each solver the order between two step counts: as it is, and with a gentle start."""
    z = spread(schedule, 0.8)
    exact = extrapolated(schedule, z, (inner_grid(schedule, fine), inner_grid(schedule, 2 * fine)))
    found: dict[str, list[float]] = {}
    for solver, gentle in product(SOLVERS, (False, True)):
        few, many = (
            rms(end(solver, schedule, inner_grid(schedule, n, gentle=gentle), z)[0] - exact) for n in steps
        )
        found.setdefault(solver, []).append(math.log(few / many) / math.log(steps[1] / steps[0]))
    return found


def orders_from_noise(schedule: NoiseSchedule, steps: tuple[int, int] = STEPS) -> dict[str, float]:
    """For each solver the order from pure noise to t = 0.1 in equal steps of time; alpha(1) must be 0."""
    z, stop = spread(schedule, 1.0), torch.tensor(0.1, dtype=torch.float64)
    # The exact end hangs on the noise level alone: it is taken from a flow, which is smooth at its noisy end.
    flow, size = SCHEDULES["flow"](), schedule.alpha(stop) + schedule.sigma(stop)
    low = float(flow.time(logsnr(schedule, stop)))
    fine = [torch.linspace(1, low, n + 1, dtype=torch.float64) for n in (1000, 2000)]
    exact = extrapolated(flow, z, (fine[0], fine[1])) * size
    found = {}
    for solver in SOLVERS:
        grids = [torch.linspace(1, 0.1, n + 1, dtype=torch.float64) for n in steps]
        few, many = (rms(end(solver, schedule, times, z)[0] - exact) for times in grids)
        found[solver] = math.log(few / many) / math.log(steps[1] / steps[0])
    return found


def economy(schedule: NoiseSchedule, grid: str, fine: int = 2000) -> dict[str, list[tuple[int, float]]]:
    """For each solver (evaluations, error) of whole paths within the budgets."""
    z = spread(schedule, 1.0)
    exact = extrapolated(schedule, z, (GRIDS[grid](fine, schedule), GRIDS[grid](2 * fine, schedule)))
    found: dict[str, list[tuple[int, float]]] = {}
    for solver, budget in product(SOLVERS, BUDGETS):
        costly = solver.startswith(("heun", "dpm2", "dpmpp_2s", "dpmpp_sde"))
        steps = budget // 2 if costly else budget - (solver == "plms")
        z_end, calls = end(solver, schedule, GRIDS[grid](steps, schedule), z)
        found.setdefault(solver, []).append((calls, rms(z_end - exact)))
    return found


def order_table() -> str:
    """Markdown: solvers down, schedules across, "order (with a gentle start)"."""
    columns = {name: orders(SCHEDULES[name]()) for name in SCHEDULES}
    lines = ["| sampler | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for solver in SOLVERS:
        cells = ["{:.2f} ({:.2f})".format(*column[solver]) for column in columns.values()]
        lines.append(f"| {solver} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def noise_table() -> str:
    """Markdown: solvers down, paths from pure noise across, the order."""
    columns = {name: orders_from_noise(SCHEDULES[name]()) for name in FROM_NOISE}
    lines = ["| sampler | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {s} | {' | '.join(f'{c[s]:.2f}' for c in columns.values())} |" for s in SOLVERS]
    return "\n".join(lines)


def economy_table(results: dict[str, list[tuple[int, float]]]) -> str:
    """Markdown: solvers down, budgets across, the error."""
    lines = [
        f"| sampler | {' | '.join(f'{b} evaluations' for b in BUDGETS)} |",
        "|---|" + "---:|" * len(BUDGETS),
    ]
    lines += [f"| {s} | {' | '.join(f'{e:.1e}' for _, e in points)} |" for s, points in results.items()]
    return "\n".join(lines)


COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
DRAWN = ("ddim (euler)", "heun", "dpmpp_2s (eta 0)", "dpmpp_2m", "dpmpp_3m (eta 0)", "unipc 2", "unipc 3",
         "deis 3", "plms")  # fmt: skip


def picture(panels: dict[str, dict[str, list[tuple[int, float]]]]) -> str:
    """An SVG with a log-log panel for each path: evaluations across, error upwards."""
    width, height, left, top = 380, 320, 60, 40
    errors = [e for results in panels.values() for s in DRAWN for _, e in results[s]]
    low, high = math.floor(math.log10(min(errors))), math.ceil(math.log10(max(errors)))

    def x(panel: int, calls: float) -> float:
        return left + panel * (width + 70) + (math.log2(calls) - 2.5) / (6.2 - 2.5) * width

    def y(error: float) -> float:
        return top + (high - math.log10(error)) / (high - low) * height

    total = left + len(panels) * (width + 70) + 110
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{top + height + 50}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for place, (title, results) in enumerate(panels.items()):
        start, stop = x(place, 2**2.5), x(place, 2**6.2)
        out.append(f'<text x="{start:.0f}" y="{top - 14}" font-size="14">{title}</text>')
        for power in range(low, high + 1):
            out.append(f'<path d="M{start:.1f} {y(10**power):.1f}H{stop:.1f}" stroke="#ddd"/>')
            out.append(
                f'<text x="{start - 8:.1f}" y="{y(10**power) + 4:.1f}" text-anchor="end">1e{power}</text>'
            )
        for calls in BUDGETS:
            spot = f'x="{x(place, calls):.1f}" y="{top + height + 18}"'
            out.append(f'<text {spot} text-anchor="middle">{calls}</text>')
        middle = f'x="{(start + stop) / 2:.1f}" y="{top + height + 38}"'
        out.append(f'<text {middle} text-anchor="middle">network evaluations</text>')
        for solver, colour in zip(DRAWN, COLOURS, strict=True):
            points = " ".join(f"{x(place, n):.1f},{y(e):.1f}" for n, e in results[solver])
            out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for row, (solver, colour) in enumerate(zip(DRAWN, COLOURS, strict=True)):
        spot = top + 20 * row
        out.append(f'<rect x="{total - 150}" y="{spot}" width="14" height="4" fill="{colour}"/>')
        out.append(f'<text x="{total - 130}" y="{spot + 7}">{solver}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def rewrite(page: Path, tables: dict[str, str]) -> None:
    """Puts each table between its two marks in the page."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text = re.sub(f"{begin}.*?{end}", f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


def main() -> None:
    torch.set_num_threads(1)
    stable_diffusion = economy(SCHEDULES["scaled_linear"](), "karras")
    flow = economy(SCHEDULES["flow"](), "uniform")
    tables = {
        "orders": order_table(),
        "orders from noise": noise_table(),
        "economy scaled_linear": economy_table(stable_diffusion),
        "economy flow": economy_table(flow),
    }
    for name, table in tables.items():
        print(f"{name}\n\n{table}\n")
    panels = {"scaled_linear, Karras grid": stable_diffusion, "flow, uniform grid": flow}
    (DOCS / "samplers.svg").write_text(picture(panels), encoding="utf-8")
    rewrite(DOCS / "samplers.md", tables)


if __name__ == "__main__":
    main()
