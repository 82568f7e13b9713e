"""The output of a lesson: what it shows, and its three forms: a still PNG, a moving GIF, a page with both and words."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from carrara.errors import UserError
from carrara.files import check_writable, write_atomically
from carrara.pages import html as report
from carrara.progress import Progress

_FRAME, _LAST = 100, 2000  # milliseconds


@dataclass(frozen=True)
class Exhibit:
    """A plate, the film where something moves, a paragraph for the reader, more sections for the page (HTML)."""

    title: str
    words: str
    still: Image.Image
    film: Sequence[Image.Image] = ()
    sections: Sequence[tuple[str, str]] = ()


Lesson: TypeAlias = Generator[Progress, None, Exhibit]
"""A lesson that takes its time: it yields how far it is and returns what it shows."""


def check_name(out: Path, *, moves: bool) -> None:
    """UserError unless the name's ending is one of the forms that this lesson has."""
    forms = [".png", ".gif", ".html"] if moves else [".png", ".html"]
    if (suffix := out.suffix.lower()) in forms:
        return
    if suffix == ".gif":
        raise UserError(f"{out}: nothing moves in this lesson; expected a name that ends in .png or .html")
    raise UserError(f"{out}: expected a name that ends in {', '.join(forms[:-1])} or {forms[-1]}")


def save(exhibit: Exhibit, out: Path) -> None:
    """Writes the form that the name asks for, whole or not at all; UserError where it cannot be written."""
    check_name(out, moves=bool(exhibit.film))
    if out.suffix.lower() == ".png":
        data = _png(exhibit.still)
    elif out.suffix.lower() == ".gif":
        data = _gif(exhibit.film)
    else:
        data = _page(exhibit).encode()
    check_writable(out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, data)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _gif(film: Sequence[Image.Image]) -> bytes:
    file = io.BytesIO()
    small = [frame.quantize(64, dither=Image.Dither.NONE) for frame in film]
    times = [_FRAME] * (len(film) - 1) + [_LAST]
    small[0].save(file, "GIF", save_all=True, append_images=small[1:], duration=times, loop=0)
    return file.getvalue()


def _page(exhibit: Exhibit) -> str:
    sections = []
    if exhibit.film:
        source = base64.b64encode(_gif(exhibit.film)).decode()
        alt = html.escape(exhibit.title)
        sections.append(
            (
                "Moving",
                f'<figure class="wide"><img alt="{alt}" src="data:image/gif;base64,{source}"></figure>',
            )
        )
    sections.append(("At a glance", report.picture(exhibit.still, wide=True)))
    return report.page(exhibit.title, exhibit.words, [*sections, *exhibit.sections])
