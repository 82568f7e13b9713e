"""Progress: a line that fits the terminal, and in a file no line twice."""

import io

import pytest
from rich.console import Console

from carrara import terminal
from carrara.terminal import Bar, fit, per_second

PARTS = [(0, "loss 0.1234"), (2, "3200 seen"), (4, "25 pictures/s"), (1, "3:47 left"), (9, "0:41 elapsed")]


@pytest.mark.parametrize(
    ("room", "words"),
    [
        (100, "loss 0.1234 · 3200 seen · 25 pictures/s · 3:47 left · 0:41 elapsed"),
        (55, "loss 0.1234 · 3200 seen · 25 pictures/s · 3:47 left"),
        (40, "loss 0.1234 · 3200 seen · 3:47 left"),
        (25, "loss 0.1234 · 3:47 left"),
        (3, "loss 0.1234"),
    ],
)
def test_the_least_important_goes_first(room: int, words: str) -> None:
    assert fit(PARTS, room) == words


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_line_is_never_wider_than_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(
        terminal, "console", Console(file=written, width=width, force_terminal=True, color_system=None)
    )
    with Bar("importing") as bar:
        bar.show(0.0, "1842 kept, 3 skipped", total=2000)
        bar.show(0.5, "1842 kept, 3 skipped", total=2000)
    last = written.getvalue().split("\x1b[2K")[-1].splitlines()[0]
    assert last.startswith("importing  50 %")
    assert "1842 kept" in last
    assert len(last) < width
    assert ("elapsed" in last) == (width == 120)
    assert (" left" in last) == (width > 40)


def test_without_a_terminal_the_end_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=written, width=80))
    with Bar("importing") as bar:
        for fraction, seconds in ((0, 0), (0.5, 0), (1, 0), (1, 30)):
            bar._printed -= seconds  # so long ago
            bar.show(fraction, "3 kept")
    assert written.getvalue().count("100%") == 1


def test_a_slow_rate_is_not_zero() -> None:
    assert [per_second(rate, "pictures") for rate in (0.04, 3.21, 25.4)] == [
        "0.04 pictures/s",
        "3.2 pictures/s",
        "25 pictures/s",
    ]
