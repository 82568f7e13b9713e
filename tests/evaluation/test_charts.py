"""Charts are whole: every number of an axis lies inside the picture."""

import re

import pytest

from carrara.pages.html import HEIGHT, WIDTH, Chart, Line
from carrara.pages.picture_grid import font


@pytest.mark.parametrize(
    ("x_ticks", "y_ticks"),
    [
        ([0, 5000, 10000], [0.0008, 0.00085, 0.0009]),
        ([0, 100, 200, 300], [0, 1]),
        ([250000, 500000], [-1.25e-05, 1.25e-05]),
        ([0.001, 1], [-123456, 123456]),
    ],
)
def test_numbers_lie_inside(x_ticks: list[float], y_ticks: list[float]) -> None:
    line = Line("line", [(x_ticks[0], y_ticks[0]), (x_ticks[-1], y_ticks[-1])])
    chart = Chart("title", "across", [line], x_ticks, y_ticks)
    texts = re.findall(r'<text x="([\d.-]+)" y="([\d.-]+)" text-anchor="(\w+)">([^<]*)<', chart.svg())
    assert len(texts) == len(x_ticks) + len(y_ticks) + 1
    for x, y, anchor, words in texts:
        width = font().getlength(words)
        left = float(x) - {"middle": width / 2, "end": width}[anchor]
        assert left >= 0, words
        assert left + width <= WIDTH, words
        assert 0 < float(y) < HEIGHT
    points = [float(v) for v in re.search(r'points="([^"]*)"', chart.svg())[1].replace(",", " ").split()]  # type: ignore[index]
    assert max(points[::2]) <= WIDTH
    assert chart.image().size == (WIDTH, HEIGHT)
