"""What was asked for beside what was made, for each condition: pictures that show whether it is obeyed."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from carrara.generation.png import to_image
from carrara.geometry import Box
from carrara.pages.picture_grid import INK, Row, font, plate

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_GROUND, _NOTHING = (232, 232, 235), (150, 150, 152)
_SIDE = 128  # pixels of a picture with boxes: their names have to be read


def classes(names: Sequence[str], samples: Sequence[Tensor]) -> Picture:
    """A row of samples ``[n c h w]`` a class."""
    rows = [Row(name, _images(made)) for name, made in zip(names, samples, strict=True)]
    return plate(rows, side=64)


def prompts(words: Sequence[str], made: Tensor, references: Tensor) -> Picture:
    """Samples with their prompts, and below them the training picture of the same words."""
    rows = []
    for first in range(0, len(words), 8):
        part = slice(first, first + 8)
        rows.append(Row("ours", _images(made[part]), [_short(text) for text in words[part]]))
        rows.append(Row("trained on", _images(references[part])))
    return plate(rows, side=96)


def super_resolution(small: Tensor, factor: int, rows: Mapping[str, Tensor]) -> Picture:
    """The small pictures, enlarged as they are, above what became of them."""
    large = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return _in_rows({"given": large, **rows})


def inpainting(real: Tensor, holes: Tensor, rows: Mapping[str, Tensor]) -> Picture:
    """The pictures with grey holes above what they were filled with."""
    top = torch.iinfo(real.dtype).max
    grey = torch.full((), round(0.6 * top), dtype=real.dtype)
    return _in_rows({"given": torch.where(holes[:, None], grey, real), **rows})


def maps(asked: Tensor, count: int, rows: Mapping[str, Tensor]) -> Picture:
    """Maps ``int64 [n h w]`` in colours above what they became; rows that are maps themselves likewise."""
    return _in_rows(
        {
            name: _coloured(part[: len(asked)], count) if part.ndim == 3 else part
            for name, part in {"asked": asked, **rows}.items()
        }
    )


def layouts(asked: Sequence[Sequence[Box]], rows: Mapping[str, Tensor]) -> Picture:
    """Boxes with their names, the samples, and both again in one picture."""
    labels = sorted({box.label for boxes in asked for box in boxes})
    colours = dict(zip(labels, _palette(len(labels) + 1)[1:], strict=True))
    found = {
        "asked": [_boxed(Image.new("RGB", (_SIDE, _SIDE), _GROUND), boxes, colours, True) for boxes in asked]
    }
    for name, part in rows.items():
        found[name] = [picture.resize((_SIDE, _SIDE)) for picture in _images(part[: len(asked)])]
    first = next(iter(rows))
    outlined = [
        _boxed(picture.copy(), boxes, colours, False)
        for picture, boxes in zip(found[first], asked, strict=True)
    ]
    ordered = {"asked": found.pop("asked"), first: found.pop(first), f"{first}, boxes": outlined, **found}
    return plate([Row(name, pictures) for name, pictures in ordered.items()], side=_SIDE)


def _in_rows(rows: Mapping[str, Tensor]) -> Picture:
    """All rows as long as the first, all pictures of one size."""
    count = len(next(iter(rows.values())))
    size = max(part.shape[-1] for part in rows.values())
    named = []
    for name, part in rows.items():
        images = [picture.convert("RGB") for picture in _images(part[:count])]
        if images[0].width != size:
            images = [picture.resize((size, size), Image.Resampling.NEAREST) for picture in images]
        named.append(Row(name, images))
    return plate(named, side=96)


def _images(pictures: Tensor) -> list[Picture]:
    return [to_image(picture) for picture in pictures]


def _boxed(
    picture: Picture, boxes: Sequence[Box], colours: Mapping[str, tuple[int, int, int]], named: bool
) -> Picture:
    picture = picture.convert("RGB")
    pen, (width, height) = ImageDraw.Draw(picture), picture.size
    for box in boxes:
        left, top = box.left * width, box.top * height
        colour = colours[box.label]
        pen.rectangle((left, top, box.right * width - 1, box.bottom * height - 1), outline=colour, width=2)
        if named:
            place = max(0, min(left + 4, width - 2 - font().getlength(box.label)))
            pen.text((place, top + 2), box.label, fill=INK, font=font())
    return picture


def _coloured(numbers: Tensor, count: int) -> Tensor:
    """Maps as pictures ``uint8 [n 3 h w]``; what is no class is grey."""
    table = torch.tensor([*_palette(count), _NOTHING], dtype=torch.uint8)
    return table[numbers.clamp(max=count)].permute(0, 3, 1, 2)


def _palette(count: int) -> list[tuple[int, int, int]]:
    """The first, mostly the ground, is pale; the others differ in hue, and neighbours also in lightness."""
    found = [_GROUND]
    for k in range(1, count):
        r, g, b = colorsys.hls_to_rgb((k - 1) / max(1, count - 1), (0.38, 0.55)[k % 2], 0.75)
        found.append((round(255 * r), round(255 * g), round(255 * b)))
    return found


def _short(text: str) -> str:
    return text if len(text) <= 18 else text[:16] + "…"
