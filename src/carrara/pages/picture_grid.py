"""Plates: pictures in rows and columns with words beside them, drawn by Pillow alone."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

INK, PALE, ACCENT = "#1d1d1f", "#6b6b70", "#b4552d"
_GAP, _MARGIN, _LINE, _WIDEST = 6, 14, 17, 8192  # pixels


@dataclass(frozen=True)
class Row:
    """Pictures of one size with a name (lines split by newlines), a caption under each, some of them marked."""

    name: str
    pictures: Sequence[Image.Image]
    captions: Sequence[str] = ()
    marked: Sequence[bool] = ()


def plate(rows: Sequence[Row], columns: Sequence[str] = (), *, side: int = 96, foot: str = "") -> Image.Image:
    """All rows, the columns' names above, ``foot`` below; pictures are enlarged by a whole number, to about ``side``.

    The letters are those of Pillow's own font: Latin. Words in other scripts belong into a page, not here.
    """
    first = rows[0].pictures[0]
    zoom = max(1, round(side / max(first.size)))
    width, height = first.width * zoom, first.height * zoom
    name_width = max(_width(row.name) for row in rows) + (_MARGIN if any(row.name for row in rows) else 0)
    words = [*columns, *(caption for row in rows for caption in row.captions)]
    width_of_cell = max([width, *map(_width, words)])
    head = _LINE * max((name.count("\n") + 1 for name in columns), default=0) + (_GAP if columns else 0)
    lines = [max((caption.count("\n") + 1 for caption in row.captions), default=0) for row in rows]
    heights = [height + _LINE * count + _GAP for count in lines]
    across = max(len(row.pictures) for row in rows)
    canvas = Image.new(
        "RGB",
        (
            2 * _MARGIN + name_width + across * (width_of_cell + _GAP) - _GAP,
            2 * _MARGIN + head + sum(heights) + _LINE * len(foot.split("\n") if foot else []),
        ),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    middles = [_MARGIN + name_width + k * (width_of_cell + _GAP) + width_of_cell // 2 for k in range(across)]
    for middle, name in zip(middles, columns, strict=False):
        write(draw, (middle, _MARGIN), name, "ma")
    top = _MARGIN + head
    for row, below in zip(rows, heights, strict=True):
        write(draw, (_MARGIN, top + height // 2 - _LINE * (row.name.count("\n") + 1) // 2), row.name, "la")
        for index, (middle, picture) in enumerate(zip(middles, row.pictures, strict=False)):
            large = picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(large, (middle - width // 2, top))
            if row.captions:
                marked = bool(row.marked and row.marked[index])
                write(
                    draw,
                    (middle, top + height + 1),
                    row.captions[index],
                    "ma",
                    colour=ACCENT if marked else PALE,
                )
        top += below
    write(draw, (_MARGIN, top + _GAP), foot, "la", colour=PALE)
    return canvas


def contact_sheet(pictures: Sequence[Image.Image], words: Sequence[str]) -> Image.Image:
    """All pictures, each with its words below, in about as many rows as columns; large ones are made small.

    Words that Pillow's own font has no letters for are replaced by the picture's number.
    """
    columns = min(len(pictures), max(8, math.ceil(math.sqrt(len(pictures)))))
    side = max(32, min(256, _WIDEST // columns))
    small, captions = [], []
    for number, (picture, text) in enumerate(zip(pictures, words, strict=True), 1):
        copy = picture.convert("RGB")
        copy.thumbnail((side, side))
        small.append(copy)
        text = text[:200] if drawable(text[:200]) else f"picture {number}"
        captions.append("\n".join(textwrap.wrap(text, max(4, side // 7), max_lines=3, placeholder=" …")))
    parts = [slice(first, first + columns) for first in range(0, len(small), columns)]
    return plate([Row("", small[part], captions[part]) for part in parts], side=128)


def drawable(text: str) -> bool:
    """Whether the font of plates has every letter."""
    missing = bytes(font().getmask("\U0010ffff"))
    return all(c.isspace() or bytes(font().getmask(c)) != missing for c in set(text))


def write(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str, *, colour: str = INK
) -> None:
    """Lines of text, the first at ``place``; ``anchor`` as Pillow has it ("la" left, "ma" middle, top)."""
    x, y = place
    for line in text.split("\n"):
        draw.text((x, y), line, fill=colour, font=font(), anchor=anchor)
        y += _LINE


def font() -> FreeTypeFont:
    """The letters of all plates and charts."""
    found = ImageFont.load_default(size=13)
    assert isinstance(found, ImageFont.FreeTypeFont)  # Pillow without FreeType has no sizes
    return found


def _width(text: str) -> int:
    return max(int(font().getlength(line)) + 2 for line in text.split("\n")) if text else 0
