"""All schedules side by side: alpha, sigma and log-SNR over time."""

from __future__ import annotations

import torch

from carrara.diffusion.schedules import SCHEDULES, NoiseSchedule, logsnr
from carrara.lessons.output import Exhibit
from carrara.pages import html
from carrara.pages.html import Chart, Line, legend, side_by_side

POINTS = 201
_WORDS = (
    "z_t = alpha(t) * latent + sigma(t) * noise. What counts for a network is their ratio, log(alpha^2 / sigma^2): how "
    "much of the picture is left to see. Two schedules with one log-SNR curve are one process, scaled; where a curve "
    "is flat, much time is spent on that mixture of picture and noise. Above +6 noise is invisible; below -6 nothing "
    "of the picture can be seen."
)


def schedules() -> Exhibit:
    """The exhibit of every schedule in the table, with its defaults."""
    paths = {name: make() for name, make in SCHEDULES.items()}
    t = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    quarters, units = (0, 0.25, 0.5, 0.75, 1), (0, 0.2, 0.4, 0.6, 0.8, 1)

    def lines(function: str) -> list[Line]:
        values = {
            name: logsnr(path, t) if function == "logsnr" else getattr(path, function)(t)
            for name, path in paths.items()
        }
        return [Line(name, list(zip(t.tolist(), y.tolist(), strict=True))) for name, y in values.items()]

    charts = [
        Chart("alpha: what is left of the picture", "t", lines("alpha"), quarters, units),
        Chart("sigma: the noise (edm goes on to 80)", "t", lines("sigma"), quarters, units),
        Chart("log-SNR", "t", lines("logsnr"), quarters, (-12, -6, 0, 6, 12)),
    ]
    curves = "".join(chart.svg() for chart in charts)
    rows = [[name, _sentence(name), *_ends(path)] for name, path in paths.items()]
    head = ["schedule", "", "alpha(1)", "sigma(1)", "log-SNR(1/2)"]
    sections = [
        ("Curves", f'<div style="display: flex; flex-wrap: wrap">{curves}</div><p>{legend(charts[0])}</p>'),
        ("In numbers", html.table(rows, head)),
    ]
    return Exhibit("Noise schedules", _WORDS, side_by_side(charts), sections=sections)


def _sentence(name: str) -> str:
    return (SCHEDULES[name].__doc__ or "").partition("\n")[0]


def _ends(path: NoiseSchedule) -> list[str]:
    one, half = torch.tensor([1.0, 0.5], dtype=torch.float64)
    return [f"{path.alpha(one):.4f}", f"{path.sigma(one):.4g}", f"{logsnr(path, half):.2f}"]
