"""Progress on the terminal: a bar for each piece of work, notes above it, and Ctrl-C that saves."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypeVar

from carrara.progress import Progress
from carrara.terminal import Bar, console, per_second, until_interrupted

T = TypeVar("T")


def show(reports: Generator[Progress, None, T], *, quiet: bool = False) -> T:
    """Shows what work reports, to its end, unless ``quiet``; returns what it returns."""
    with closing(reports), _Shown("") as shown:
        while True:
            try:
                report = next(reports)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if not quiet:
                shown.add(report)


def follow(reports: Iterable[Progress], title: str, out: Path) -> None:
    """Shows what a training into ``out`` reports, its steps under ``title``.

    At Ctrl-C the generator is closed, which saves the run, and `terminal.Interrupted` is raised.
    """
    with _Shown(title) as shown:
        saved = f"stopped and saved in {out}; the same command again continues"
        for report in until_interrupted(reports, saved=saved):
            shown.add(report)
    if not shown.any_step:
        console.print(
            f"nothing to do: {out} is trained already; a larger --budget goes on from it", soft_wrap=True
        )


class _Shown(ExitStack):
    """A bar for each title."""

    def __init__(self, title: str) -> None:
        super().__init__()
        from carrara.training.devices import Sharing

        self.title, self.any_step = title, False
        self._rate, self._sharing = _Rate(), Sharing()
        self._bar: Bar | None = None

    def add(self, report: Progress) -> None:
        """The report on the terminal."""
        from carrara.training.loop import Report

        step = isinstance(report, Report)
        title = self.title if step else report.title
        if title and (self._bar is None or self._bar.title != title):
            self.close()
            self._bar = self.enter_context(Bar(title))
        if report.note and step and self._bar:
            self._bar.say(report.note)
        elif report.note:
            console.print(report.note, soft_wrap=True)
        if isinstance(report, Report) and report.losses and self._bar:
            self.any_step = True
            words = f"{report.words}{self._rate.words(report.seen)}{self._sharing.words()}"
            self._bar.show(report.fraction, words + (f" · {report.next}" if report.next else ""))
        elif not step and self._bar and report.words:
            self._bar.show(report.fraction, report.words, total=report.total, unit=report.unit)


class _Rate:
    """Pictures per second over the last seconds."""

    def __init__(self) -> None:
        self._rate, self._since = 0.0, (0.0, 0)

    def words(self, seen: int) -> str:
        """Such as " · 120 pictures/s"; nothing at first."""
        now = time.monotonic()
        if not self._since[0]:
            self._since = (now, seen)
        elif now - self._since[0] > 2 or not self._rate:
            self._rate = (seen - self._since[1]) / max(1e-9, now - self._since[0])
            self._since = (now, seen)
        return f" · {per_second(self._rate, 'pictures')}" if self._rate else ""
