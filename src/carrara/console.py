"""What a person sees in the terminal: progress with rate and time left, and one line for an error."""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

console = Console(highlight=False, markup=False)  # names of files may hold brackets
T = TypeVar("T")


class Bar:
    """A progress bar; without a terminal a plain line every ten seconds."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.monotonic()
        self._printed = self.started
        self._first: float | None = None
        self._live: Progress | None = None
        if console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[words]}", markup=False),
                TimeElapsedColumn(),
                console=console,
            )
            self._task = self._live.add_task(title, total=1.0, words="")

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

        With ``total``, how many units the whole is, the rate is shown.
        """
        now = time.monotonic()
        if self._first is None:
            self._first, self._from = fraction, now
        moved = fraction - self._first
        if total and moved > 0 and now > self._from:
            words += f" · {moved * total / (now - self._from):.0f} {unit}/s"
        left = (1 - fraction) * (now - self._from) / moved if moved > 0 else None
        words += f" · {clock(left)} left" if left is not None else ""
        if self._live:
            self._live.update(self._task, completed=fraction, words=words)
        elif now - self._printed >= 10 or fraction >= 1:
            self._printed = now
            console.print(f"{self.title}  {fraction:4.0%}  {words}", soft_wrap=True)


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
