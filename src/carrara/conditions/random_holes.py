"""Holes to be filled: strokes, boxes and missing sides drawn at random (Suvorov et al. 2022, LaMa; section 2.3)."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from carrara.geometry import fit_mask, fit_picture
from carrara.tensors import to_pixels

if TYPE_CHECKING:
    from PIL import ImageDraw


@dataclass(frozen=True, eq=False)
class Masked:
    """A picture ``uint8`` or ``uint16 [c h w]`` and its hole, ``[h w]`` or ``[1 h w]``: not zero is to be filled."""

    picture: Tensor
    mask: Tensor

    @property
    def hole(self) -> Tensor:
        """``bool [h w]``."""
        return self.mask.reshape(self.mask.shape[-2:]) != 0


def hole_remarks(hole: Tensor) -> list[str]:
    """Where a hole ``bool [h w]`` is nothing or everything."""
    if not hole.any():
        return ["the mask leaves nothing to be filled"]
    return ["the mask covers the whole picture, nothing of it is kept"] if hole.all() else []


def draw_hole(seed: int, height: int, width: int) -> Tensor:
    """``bool [height width]``, a function of the seed: half are strokes, a quarter boxes, a quarter missing sides.

    Never empty and never the whole picture. On average it is about a third of it.
    """
    from PIL import Image, ImageDraw

    chance = random.Random(seed)
    canvas = Image.new("1", (width, height))
    pen = ImageDraw.Draw(canvas)
    kind = chance.random()
    if kind < 0.5:
        _strokes(chance, pen, height, width)
    elif kind < 0.75:
        _boxes(chance, pen, height, width)
    else:
        _sides(chance, pen, height, width)
    hole = torch.from_numpy(np.array(canvas))
    if hole.all() or not hole.any():  # of a picture of few pixels
        hole = torch.arange(width).expand(height, width) * 2 < max(1, width)
    return hole


def blend(original: Tensor, made: Tensor, mask: Tensor) -> Tensor:
    """What was made, inside the hole; outside of it the original's own pixels, as they are.

    ``made [c H W]`` uint8 or uint16; ``original [c h w]`` and ``mask`` (as in `Masked`) may have another size
    and are fitted to it.
    """
    height, width = made.shape[-2:]
    hole = fit_mask(Masked(original, mask).hole, (height, width))
    if original.shape != made.shape or original.dtype != made.dtype:
        original = to_pixels(fit_picture(original, (height, width)), 8 * made.element_size())
    return torch.where(hole.to(made.device), made, original.to(made.device))


def _strokes(chance: random.Random, pen: ImageDraw.ImageDraw, height: int, width: int) -> None:
    """One to four lines of a thick round brush that turn as they go."""
    scale = math.sqrt(height * width)
    for _ in range(chance.randint(1, 4)):
        x, y = chance.uniform(0, width), chance.uniform(0, height)
        heading, radius = chance.uniform(0, 2 * math.pi), chance.uniform(0.05, 0.16) * scale
        points = [(x, y)]
        for _ in range(chance.randint(2, 6)):
            heading += chance.uniform(-1.5, 1.5)
            length = chance.uniform(0.1, 0.4) * scale
            x = min(max(x + length * math.cos(heading), 0), width)
            y = min(max(y + length * math.sin(heading), 0), height)
            points.append((x, y))
        pen.line(points, fill=1, width=max(1, round(2 * radius)))
        for x, y in points:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)


def _boxes(chance: random.Random, pen: ImageDraw.ImageDraw, height: int, width: int) -> None:
    """One to three boxes."""
    for _ in range(chance.randint(1, 3)):
        h, w = chance.uniform(0.2, 0.6) * height, chance.uniform(0.2, 0.6) * width
        top, left = chance.uniform(0, height - h), chance.uniform(0, width - w)
        pen.rectangle((left, top, left + w, top + h), fill=1)


def _sides(chance: random.Random, pen: ImageDraw.ImageDraw, height: int, width: int) -> None:
    """All beyond a line across the picture, or all around a box: the picture is to be continued."""
    side, share = chance.randrange(5), chance.uniform(0.25, 0.6)
    x, y = round(share * width), round(share * height)
    if side < 4:
        box = [
            (0, 0, x, height),
            (width - x, 0, width, height),
            (0, 0, width, y),
            (0, height - y, width, height),
        ]
        pen.rectangle(box[side], fill=1)
    else:
        pen.rectangle((0, 0, width, height), fill=1)
        h, w = height * (1 - share / 2), width * (1 - share / 2)
        top, left = chance.uniform(0, height - h), chance.uniform(0, width - w)
        pen.rectangle((left, top, left + w, top + h), fill=0)
