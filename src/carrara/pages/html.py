"""A page about a run: one HTML file with everything inside it.

Charts: lines over an interval, as SVG for a page and as pixels for a PNG, from one description.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from PIL import Image, ImageDraw

from carrara.pages.picture_grid import INK, PALE, font

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #b4552d; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-weight: 600; margin-bottom: 0; } h2 { margin-top: 2.5rem; font-weight: 600; }
img { max-width: 100%; border: 1px solid var(--line); border-radius: 6px; background: #fff; }
figure { display: inline-block; margin: 0 .6rem 1rem 0; width: 8.6rem; vertical-align: top; }
figure img { width: 100%; image-rendering: auto; } figcaption { font-size: .85rem; }
figure.wide { display: block; width: auto; } figure.wide img { width: auto; }
table { border-collapse: collapse; }
td, th { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); }
pre { overflow-x: auto; padding: .8rem; border: 1px solid var(--line); border-radius: 6px; font-size: .85rem; }
svg { width: 100%; height: auto; } .muted { opacity: .7; }
.curve { fill: none; stroke: var(--accent); stroke-width: 1.5; }
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page: ``sections`` are headings with their HTML."""
    body = "".join(f"<section><h2>{html.escape(head)}</h2>{inner}</section>" for head, inner in sections)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f'<h1>{html.escape(title)}</h1><p class="muted">{html.escape(lead)}</p>{body}</html>'
    )


def picture(image: Image.Image, caption: str = "", *, wide: bool = False) -> str:
    """A picture inside the page, with words below."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    source = base64.b64encode(file.getvalue()).decode()
    kind = ' class="wide"' if wide else ""
    words = html.escape(caption)
    image_tag = f'<img alt="{words}" src="data:image/png;base64,{source}">'
    return f"<figure{kind}>{image_tag}<figcaption>{words}</figcaption></figure>"


def table(rows: Sequence[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Rows of words and numbers."""
    top = "<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in head) + "</tr>" if head else ""
    lines = ("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{top}{''.join(lines)}</table>"


def code(text: str) -> str:
    """Preformatted text."""
    return f"<pre>{html.escape(text)}</pre>"


def curve(lines: Sequence[Mapping[str, float]], name: str, *, over: str = "seen") -> str:
    """One column of a run's log as a line, smoothed over a fiftieth of it; the ends are named."""
    points = [(line[over], line[name]) for line in lines if name in line and line[name] > 0]
    if len(points) < 2:
        return '<p class="muted">too few steps for a curve</p>'
    window = max(1, len(points) // 50)
    smooth = [
        (
            points[i][0],
            sum(y for _, y in points[max(0, i - window) : i + 1]) / len(points[max(0, i - window) : i + 1]),
        )
        for i in range(len(points))
    ]
    low, high = min(y for _, y in smooth), max(y for _, y in smooth)
    last = smooth[-1][0]
    width, height = 640, 180
    path = " ".join(
        f"{x / last * width:.1f},{(1 - (y - low) / ((high - low) or 1)) * height:.1f}" for x, y in smooth
    )
    words = f"{name}: from {smooth[0][1]:.4f} to {smooth[-1][1]:.4f} in {int(last)} pictures seen"
    line = f'<polyline class="curve" points="{path}"/>'
    drawn = f'<svg viewBox="-4 -4 {width + 8} {height + 8}" role="img">{line}</svg>'
    return f'{drawn}<p class="muted">{words}</p>'


# Okabe & Ito's colours, which most colour-blind people can tell apart; yellow darkened for white paper.
COLOURS = ("#56616b", "#e69f00", "#56b4e9", "#009e73", "#8f7d00", "#0072b2", "#d55e00", "#cc79a7")
WIDTH, HEIGHT = 300, 220
_TOP, _BOTTOM = 26, 34


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order of x; its place in the chart gives the colour, every second line is dashed."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines within the window of the first and last tick on each axis; what lies outside is cut off.

    ``logarithmic``: distances are those of logarithms on both axes, and every tick is positive.
    """

    title: str
    across: str
    lines: Sequence[Line]
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    logarithmic: bool = False

    def svg(self) -> str:
        """The chart as one ``<svg>`` element."""
        left, right = round(self._left), round(WIDTH - self._right)
        parts = [f'<text x="{left}" y="16" font-weight="600">{html.escape(self.title)}</text>']
        for place, label in self._y_axis():
            parts.append(f'<line x1="{left}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}" class="grid"/>')
            parts.append(f'<text x="{left - 6}" y="{place + 4:.1f}" text-anchor="end">{label}</text>')
        for place, label in self._x_axis():
            parts.append(
                f'<text x="{place:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{label}</text>'
            )
        parts.append(
            f'<text x="{right}" y="{HEIGHT - 3}" text-anchor="end">{html.escape(self.across)}</text>'
        )
        for index, (line, colour) in enumerate(zip(self.lines, self.colours(), strict=True)):
            for run in self._runs(line):
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
                dash = ' stroke-dasharray="6 5"' if index % 2 else ""
                parts.append(
                    f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}>'
                    f"<title>{html.escape(line.name)}</title></polyline>"
                )
        style = "font: 12px system-ui, sans-serif; max-width: 19rem; fill: currentColor"
        grid = "<style>.grid { stroke: #8884; stroke-width: 1 }</style>"
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" style="{style}">{grid}{"".join(parts)}</svg>'

    def image(self) -> Image.Image:
        """The chart as pixels, lines smoothed by drawing them at three times the size."""
        large = Image.new("RGB", (3 * WIDTH, 3 * HEIGHT), "white")
        draw = ImageDraw.Draw(large)
        for place, _ in self._y_axis():
            draw.line(
                [(3 * self._left, 3 * place), (3 * (WIDTH - self._right), 3 * place)], fill="#dddddd", width=3
            )
        for index, (line, colour) in enumerate(zip(self.lines, self.colours(), strict=True)):
            for run in self._runs(line):
                for dash in _dashes(run) if index % 2 else [run]:
                    draw.line([(3 * x, 3 * y) for x, y in dash], fill=colour, width=6, joint="curve")
        small = large.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        draw = ImageDraw.Draw(small)
        draw.text((self._left, 6), self.title, fill=INK, font=font())
        draw.text((WIDTH - self._right, HEIGHT - 3), self.across, fill=PALE, font=font(), anchor="rb")
        for place, label in self._y_axis():
            draw.text((self._left - 6, place), label, fill=PALE, font=font(), anchor="rm")
        for place, label in self._x_axis():
            draw.text((place, HEIGHT - _BOTTOM + 5), label, fill=PALE, font=font(), anchor="ma")
        return small

    @cached_property
    def _left(self) -> float:
        """Room for the widest number beside the y axis, and for half of the first below the x axis."""
        beside = max(font().getlength(f"{tick:g}") for tick in self.y_ticks)
        return max(42, beside + 10, font().getlength(f"{self.x_ticks[0]:g}") / 2 + 2)

    @cached_property
    def _right(self) -> float:
        """Room for half of the last number below the x axis."""
        return max(10, font().getlength(f"{self.x_ticks[-1]:g}") / 2 + 2)

    def colours(self) -> list[str]:
        """One for each line; they begin again after eight."""
        return [COLOURS[index % len(COLOURS)] for index in range(len(self.lines))]

    def _x(self, value: float) -> float:
        return self._left + self._part(value, self.x_ticks) * (WIDTH - self._left - self._right)

    def _y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - self._part(value, self.y_ticks) * (HEIGHT - _TOP - _BOTTOM)

    def _part(self, value: float, ticks: Sequence[float]) -> float:
        low, high = ticks[0], ticks[-1]
        if self.logarithmic:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def _x_axis(self) -> list[tuple[float, str]]:
        return [(self._x(tick), f"{tick:g}") for tick in self.x_ticks]

    def _y_axis(self) -> list[tuple[float, str]]:
        return [(self._y(tick), f"{tick:g}") for tick in self.y_ticks]

    def _runs(self, line: Line) -> list[list[tuple[float, float]]]:
        """The stretches of a line inside the window, in pixels."""
        runs: list[list[tuple[float, float]]] = [[]]
        for x, y in line.points:
            if self.y_ticks[0] <= y <= self.y_ticks[-1]:
                runs[-1].append((self._x(x), self._y(y)))
            elif runs[-1]:
                runs.append([])
        return [run for run in runs if len(run) > 1]


def legend(chart: Chart) -> str:
    """The lines' names in their colours, as HTML."""
    return " ".join(
        f'<span style="white-space: nowrap; margin-right: 1rem"><span style="color: {colour}">&#9644;</span> '
        f"{html.escape(line.name)}</span>"
        for line, colour in zip(chart.lines, chart.colours(), strict=True)
    )


def side_by_side(charts: Sequence[Chart]) -> Image.Image:
    """Charts of the same lines in a row, with one legend below."""
    canvas = Image.new("RGB", (len(charts) * WIDTH, HEIGHT + 54), "white")
    for index, chart in enumerate(charts):
        canvas.paste(chart.image(), (index * WIDTH, 0))
    draw = ImageDraw.Draw(canvas)
    x, y = 14.0, HEIGHT + 14
    for index, (line, colour) in enumerate(zip(charts[0].lines, charts[0].colours(), strict=True)):
        length = font().getlength(line.name)
        if x + 26 + length > canvas.width:
            x, y = 14.0, y + 22
        for start, end in [(0, 8), (12, 20)] if index % 2 else [(0, 20)]:
            draw.line([(x + start, y), (x + end, y)], fill=colour, width=3)
        draw.text((x + 26, y), line.name, fill=INK, font=font(), anchor="lm")
        x += length + 44
    return canvas


def _dashes(run: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Every second stretch of about five pixels."""
    dashes: list[list[tuple[float, float]]] = []
    walked, drawing = 0.0, False
    for start, end in pairwise(run):
        if int(walked / 5) % 2 == 0:
            if not drawing:
                dashes.append([start])
            dashes[-1].append(end)
        drawing = int(walked / 5) % 2 == 0
        walked += math.dist(start, end)
    return dashes
