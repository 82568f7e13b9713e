"""What a person sees in the terminal: progress with rate and time left, and one line for an error."""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

console = Console(highlight=False, markup=False)  # names of files may hold brackets
T = TypeVar("T")


def fit(parts: Sequence[tuple[int, str]], room: int) -> str:
    """The parts, with dots between, that ``room`` letters have a place for; those of the highest number go first."""
    kept = list(parts)
    while len(kept) > 1 and len(" · ".join(text for _, text in kept)) > room:
        kept.remove(max(kept))
    return " · ".join(text for _, text in kept)


class _Line(ProgressColumn):
    """The whole line, never wider than the terminal: a bar where there is room for it beside the words."""

    def render(self, task: Task) -> Text:
        room = console.width - 1
        head = f"{task.description} {task.percentage:3.0f} % "
        elapsed = (9, f"{clock(task.elapsed or 0)} elapsed")
        words = fit([*task.fields["parts"], elapsed], room - len(head) - 1)
        line, cells = Text(head, no_wrap=True), min(30, room - len(head) - len(words) - 2)
        if cells >= 8:
            done = int(cells * task.percentage / 100)
            line.append("━" * done, "bar.complete").append("━" * (cells - done) + " ", "bar.back")
        line.append(f" {words}").truncate(room, overflow="ellipsis")
        return line


class Bar:
    """A progress bar; without a terminal a plain line every ten seconds."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.monotonic()
        self._printed = self.started
        self._first: float | None = None
        self._complete = False
        self._live: Progress | None = None
        if console.is_terminal:
            self._live = Progress(_Line(), console=console)
            self._task = self._live.add_task(title, total=1.0, parts=[(0, "starting")])

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line above the bar, to stay."""
        console.print(f"{self.title}: {line}", soft_wrap=True)

    def show(self, fraction: float, words: str, *, total: int | None = None, unit: str = "pictures") -> None:
        """``fraction`` done (0 to 1); rate and time left follow from how it moved since the first call.

        Of ``words``, parts with " · " between, the first are kept longest where the terminal is narrow. With
        ``total``, how many units the whole is, the rate is shown.
        """
        now = time.monotonic()
        if self._first is None:
            self._first, self._from = fraction, now
        moved = fraction - self._first
        parts = [(2 * place, part) for place, part in enumerate(words.split(" · "))]
        if total and moved > 0 and now > self._from:
            parts.append((7, per_second(moved * total / (now - self._from), unit)))
        if moved > 0 and fraction < 1:
            parts.append((1, f"{clock((1 - fraction) * (now - self._from) / moved)} left"))
        if self._live:
            self._live.update(self._task, completed=fraction, parts=parts)
        elif not (fraction >= 1 and self._complete) and (fraction >= 1 or now - self._printed >= 10):
            self._printed = now
            console.print(f"{self.title}  {fraction:4.0%}  {fit(parts, 1000)}", soft_wrap=True)
        self._complete = fraction >= 1


def per_second(rate: float, unit: str) -> str:
    """Such as "120 pictures/s"; below ten with two digits that count, so that a slow one is not 0."""
    return f"{rate:.0f} {unit}/s" if rate >= 10 else f"{rate:.2g} {unit}/s"


def clock(seconds: float) -> str:
    """Seconds as "1:05:09" or "2:03"."""
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Interrupted(Exception):
    """Ctrl-C came, and what was under way has been put in safety."""


@contextmanager
def finishing_the_step() -> Iterator[list[bool]]:
    """The first Ctrl-C only asks to stop: the list then holds True. A second one stops at once."""
    asked: list[bool] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(True)
        signal.signal(number, before[number])

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until_interrupted(items: Iterable[T], *, saved: str) -> Iterator[T]:
    """The items; at Ctrl-C the generator is closed (it saves what it has) and Interrupted is raised."""
    with finishing_the_step() as asked:
        iterator = iter(items)
        for item in iterator:
            yield item
            if asked:
                close = getattr(iterator, "close", None)
                if close:
                    close()
                raise Interrupted(saved)
        if asked:  # while the last result was being written
            raise Interrupted(saved)


@functools.cache
def note(message: str) -> None:
    """One line on standard error about what does not stop a command; said once."""
    sys.stderr.write(f"note: {' '.join(message.splitlines())}\n")


def fail(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"carrara: {' '.join(message.splitlines())}\n")
