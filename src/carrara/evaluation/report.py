"""A page about a run: one HTML file with everything inside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

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
