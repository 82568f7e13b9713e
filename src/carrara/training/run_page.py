"""``report.html`` of a run: what it is doing, as curves, samples and its recipe, in one file that needs no other."""

from __future__ import annotations

import base64
import contextlib
import html
import math
import tomllib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from carrara.errors import UserError
from carrara.files import write_atomically
from carrara.generation.png import read_recipe
from carrara.pages import html as report
from carrara.pages.html import Chart, Line, legend

REPORT = "report.html"
_GRIDS = 12  # sample grids at most; of more, the last and others at even distances
_POINTS = 200  # of a line
_OF_A_STEP = {"step", "seen", "spent", "rate", "lr", "gradient"}
_ELSEWHERE = ("held_out", "gradient_")  # have their own section, or are for TensorBoard


def write_report(folder: Path, *, now: Mapping[str, float] | None = None) -> Path:
    """Writes the page of the run in ``folder``, whole or not at all; UserError where it cannot be written.

    ``now`` is a line that its log does not have yet.
    """
    from carrara.training.metrics_log import read_metrics

    lines = [line for line in read_metrics(folder) if isinstance(line, dict)]
    if now and any(name not in ("step", "seen") for name in now):
        lines.append(dict(now))
    path = folder / REPORT
    write_atomically(path, run_report(folder, lines))
    return path


def run_report(folder: Path, lines: Sequence[Mapping[str, float]]) -> str:
    """The page for a run's folder and the lines of its log."""
    recipe, values = _text(folder / "recipe.toml"), dict[str, Any]()
    with contextlib.suppress(tomllib.TOMLDecodeError):
        values = tomllib.loads(recipe)
    last = lines[-1] if lines else {}
    state = "finished" if (folder / "model" / "model.toml").is_file() else "training"
    lead = f"{values.get('task', 'a run')}, {state}: {_count(last.get('seen', 0))} pictures seen"
    if (spent := _latest(lines, "spent")) is not None:
        lead += f" in {_duration(spent)}"
    sections = [("Loss", _loss(lines))]
    if any("held_out" in line or "held_out_psnr" in line for line in lines):
        sections.append(("Held-out pictures", _held_out(lines)))
    if grids := sorted(p for p in (folder / "samples").glob("*.png") if p.stem.isdecimal() and p.is_file()):
        encodes = values.get("task") == "autoencoder"
        title = (
            "Pictures and below them their reconstructions" if encodes else "Samples, same noise each time"
        )
        sections.append((title, _words_of(grids[-1]) + _samples(grids)))
    sections.append(("Speed and steps", _steps(lines)))
    if checkpoints := _checkpoints(folder):
        sections.append(("Checkpoints", checkpoints))
    sections.append(("Recipe", report.code(recipe or "none is written yet")))
    return report.page(f"Run {folder.resolve().name}", lead, sections)


def _loss(lines: Sequence[Mapping[str, float]]) -> str:
    """Each loss term and further measure of its own chart, in the order of the log."""
    names = dict.fromkeys(name for line in lines for name in line)
    terms = [
        n for n in names if n not in _OF_A_STEP and not n.startswith(_ELSEWHERE) and not n.endswith("_mb")
    ]
    charts = [_chart(name, [Line(name, _points(lines, name, smooth=True))]) for name in terms]
    return _row(charts) or '<p class="muted">Nothing is logged yet.</p>'


def _held_out(lines: Sequence[Mapping[str, float]]) -> str:
    """The held-out loss over the run, and its bins of time as last measured."""
    parts = []
    if any("held_out_psnr" in line for line in lines):
        parts.append(_row([_chart("PSNR in dB", [Line("PSNR", _points(lines, "held_out_psnr"))])]))
    pairs = any("recall_5" in line for line in lines)
    named = {"held_out": "with the condition", "held_out.unconditional": "without it"}
    if pairs:
        named = {"held_out": "pairs that choose the best state"}
    over = [Line(words, _points(lines, name)) for name, words in named.items()]
    over = [line for line in over if line.points]
    bins = {name: words for name, words in named.items() if any(f"{name}.t" in k for m in lines for k in m)}
    if over:
        charts = [_chart("1 less the mean reciprocal rank" if pairs else "loss over the run", over)]
        by_time = [Line(words, _bins(lines, name)) for name, words in bins.items()]
        if by_time:
            charts.append(_chart("loss by time t, as last measured", by_time, across="t: 0 data, 1 noise"))
        parts.append(_row(charts) + f"<p>{legend(charts[0])}</p>")
        values = [y for _, y in over[0].points]
        fixed = "Pairs of all languages, found in both directions" if pairs else "Fixed times, fixed noise"
        parts.append(
            f'<p class="muted">Last {values[-1]:.4f}, best {min(values):.4f}. {fixed}, averaged weights: '
            "comparable within the run.</p>"
        )
    return "".join(parts)


def _bins(lines: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    prefix = f"{name}.t"
    last = next((m for m in reversed(lines) if any(k.startswith(prefix) for k in m)), {})
    found = [(float(k.removeprefix(prefix)), v) for k, v in last.items() if k.startswith(prefix)]
    return sorted(found)


def _words_of(grid: Path) -> str:
    """What each sample was asked to show, as its PNG says; the same in every grid."""
    try:
        asked = read_recipe(grid).get("asked") or []
        words = [", ".join(str(value) for value in one.values()) or "anything" for one in asked]
    except (OSError, UserError, AttributeError, TypeError):
        return ""
    items = "".join(f"<li>{html.escape(one)}</li>" for one in words)
    return f"<p>From left to right, row by row, they show:</p><ol>{items}</ol>" if any(asked) else ""


def _samples(grids: Sequence[Path]) -> str:
    """Grids from the newest to the oldest."""
    if len(grids) > _GRIDS:
        places = [round(k * (len(grids) - 1) / (_GRIDS - 1)) for k in range(_GRIDS)]
        grids = [grids[place] for place in places]
    drawn = []
    for path in reversed(grids):
        source = base64.b64encode(path.read_bytes()).decode()
        words = f"after {_count(int(path.stem))} pictures seen"
        image = f'<img alt="samples {words}" src="data:image/png;base64,{source}">'
        drawn.append(f'<figure class="wide">{image}<figcaption>{words}</figcaption></figure>')
    return "".join(drawn)


def _steps(lines: Sequence[Mapping[str, float]]) -> str:
    names = {"rate": "pictures per second", "lr": "learning rate", "gradient": "norm of the gradient"}
    charts = [
        _chart(words, [Line(words, found)])
        for name, words in names.items()
        if len(found := _points(lines, name)) > 1
    ]
    rows = []
    if (mega := _latest(lines, "activation_mb")) is not None:
        rows.append(["activations of a step", f"{mega:,.0f} MB"])
    if (mega := _latest(lines, "peak_mb")) is not None:
        rows.append(["GPU memory at its peak", f"{mega:,.0f} MB"])
    return _row(charts) + (report.table(rows) if rows else "")


def _checkpoints(folder: Path) -> str:
    rows = []
    for path in sorted((folder / "checkpoints").glob("*")):
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
        if files and not path.name.endswith((".part", ".old")):
            size = sum(file.stat().st_size for file in files)
            rows.append([f"checkpoints/{path.name}", f"{size / 1e6:,.1f} MB"])
    return report.table(rows, ["folder", "size"]) if rows else ""


def _points(
    lines: Sequence[Mapping[str, float]], name: str, *, smooth: bool = False
) -> list[tuple[float, float]]:
    """(seen, value) where it is logged and finite; at most 200, each the mean of those around it if ``smooth``.

    What is logged again and again between two looks (older runs did so) is taken where it was measured.
    """
    if name.startswith("held_out"):
        lines = [m for before, m in pairwise([{}, *lines]) if m.get(name) != before.get(name)]
    found = [
        (float(line["seen"]), float(line[name]))
        for line in lines
        if name in line and "seen" in line and math.isfinite(line[name])
    ]
    every = max(1, -(-len(found) // _POINTS))
    if smooth:
        width = max(1, len(found) // 50)
        found = [
            (
                x,
                sum(y for _, y in found[max(0, k - width + 1) : k + 1])
                / len(found[max(0, k - width + 1) : k + 1]),
            )
            for k, (x, _) in enumerate(found)
        ]
    return [*found[:-1:every], *found[-1:]]


def _chart(title: str, lines: Sequence[Line], *, across: str = "pictures seen") -> Chart:
    ys = [y for line in lines for _, y in line.points]
    xs = [x for line in lines for x, _ in line.points]
    return Chart(
        title,
        across,
        lines,
        _ticks(min(xs, default=0), max(xs, default=1)),
        _ticks(min(ys, default=0), max(ys, default=1)),
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, about four steps of them, from at most ``low`` to at least ``high``."""
    span = max(high - low, 1e-3 * max(abs(low), abs(high))) or 1.0
    size = 10 ** math.floor(math.log10(span / 4))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k * 4 >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.6g}") for k in range(first, max(last, first + 1) + 1)]


def _row(charts: Sequence[Chart]) -> str:
    drawn = "".join(
        f'<div style="width: 19rem">{chart.svg()}</div>'
        for chart in charts
        if any(line.points for line in chart.lines)
    )
    return f'<div style="display: flex; flex-wrap: wrap; gap: 1rem">{drawn}</div>' if drawn else ""


def _latest(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return next((line[name] for line in reversed(lines) if name in line), None)


def _count(number: float) -> str:
    return f"{int(number):,}".replace(",", " ")


def _duration(seconds: float) -> str:
    from carrara.terminal import clock

    return clock(seconds)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
