"""The log of a run's metrics: every tenth report as a line of `metrics.jsonl` and as TensorBoard events."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from carrara.files import DAMAGED, Journal, json_object, replacing, set_aside
from carrara.training.recipe import LOG_EVERY

if TYPE_CHECKING:
    from carrara.training.checkpoint import TrainingState
    from carrara.training.loop import Report


METRICS, CHECKPOINTS, EVENTS, MODEL = "metrics.jsonl", "checkpoints", "events", "model"

STOPPED = "stopped.txt"  # why the training could not go on; gone when it does


class MetricsLog:
    """Every tenth report as a line of metrics.jsonl and as TensorBoard events."""

    def __init__(self, folder: Path, state: TrainingState) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.note = _cut_log(folder / METRICS, state.step)
        self._lines = Journal(folder / METRICS, durable=False)
        self._lines.path.touch()  # from the first step on, for whoever follows it
        self._events = SummaryWriter(str(folder / EVENTS), purge_step=state.step + 1)
        self._since = (time.monotonic(), state.seen)
        self._state = state

    def write(self, report: Report) -> None:
        """Logs the report if its step is one of those logged; the rate is pictures per second since the last."""
        if report.step % LOG_EVERY or not report.losses:
            return
        before, self._since = self._since, (time.monotonic(), report.seen)
        rate = (report.seen - before[1]) / max(1e-9, self._since[0] - before[0])
        values = {
            **rounded(report.losses),
            **rounded(report.measures),
            "gradient": round(report.gradient, 5),
            "lr": report.lr,
            "rate": round(rate, 1),
            "spent": round(report.spent, 2),
        }
        if report.step == LOG_EVERY:
            values |= self._state.measured
        if (device := self._state.placement.device).type == "cuda":
            values["peak_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
        self.add(report.step, {"seen": report.seen, **values})

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """A line, and its numbers as events."""
        self._lines.add({"step": step, **values})
        for name, value in values.items():
            if name != "seen":
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the file of events."""
        self._events.close()


def rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in numbers.items()}


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, in order, without any that is damaged; the last may be half written."""
    return [values for _, values in _log_lines(folder / METRICS) if values is not None]


def _log_lines(file: Path) -> Iterator[tuple[bytes, dict[str, float] | None]]:
    """Each line of a log with its numbers, None for one that is damaged."""
    for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else []:
        values = json_object(line) or {}
        numbers = all(isinstance(value, int | float) for value in values.values())
        yield line, values if numbers and isinstance(values.get("step"), int) else None


def read_stopped(folder: Path) -> str:
    """Why the run's training could not go on, or ""."""
    file = folder / STOPPED
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""


def _cut_log(file: Path, step: int) -> str:
    """Removes lines after ``step``, and a last line that a kill cut short; sets aside damaged ones, and says so."""
    aside = file.with_name(file.name + DAMAGED)
    if not file.is_file():
        if not os.path.lexists(file):
            return ""
        return f"{file} was no file, and is {set_aside(file).name} now"
    kept, damaged = list[bytes](), list[bytes]()
    for line, values in _log_lines(file):
        if values is not None and line.endswith(b"\n") and values["step"] <= step:
            kept.append(line)
        elif values is None and line.endswith(b"\n"):
            damaged.append(line)
    if damaged:
        with open(aside, "ab") as others:
            others.writelines(damaged)
    with replacing(file) as lines:
        lines.writelines(kept)
    return f"{len(damaged)} damaged lines of {file} are in {aside.name} now" if damaged else ""
