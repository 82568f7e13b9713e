"""Which part of a picture is shown: it is scaled until it covers the size that is trained on, and cut in the middle."""

from __future__ import annotations

from dataclasses import dataclass

from carrara.conditions.contract import Size


@dataclass(frozen=True)
class Shown:
    """The part that is shown, in fractions of the whole picture, and how many pixels of the size one of its is."""

    left: float
    top: float
    width: float
    height: float
    ratio: float


def shown(width: int, height: int, size: Size) -> Shown:
    """The part of a picture of ``width`` by ``height`` pixels that is shown at ``size`` (height, width)."""
    ratio = max(size[1] / width, size[0] / height)
    across, down = size[1] / (width * ratio), size[0] / (height * ratio)
    return Shown((1 - across) / 2, (1 - down) / 2, across, down, ratio)
