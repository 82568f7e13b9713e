"""Aspect-ratio buckets: a few sizes of about one area, so that pictures of any ratio are trained on nearly whole
(NovelAI, "NovelAI Improvements on Stable Diffusion", 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def buckets(size: int, multiple: int, most: float = 2.0) -> list[tuple[int, int]]:
    """The (height, width) of all buckets, tallest first: both sides multiples of ``multiple``, the long one at
    most ``most`` times the short one, and the area as near to ``size * size`` as they allow.

    The square of ``size`` is among them, and with a bucket the same one lying. ValueError where ``size`` is no
    multiple of ``multiple``, or ``most`` is below 1.
    """
    if multiple < 1 or size < 1 or size % multiple:
        raise ValueError(f"size is {size}; expected a multiple of {multiple}")
    if most < 1:
        raise ValueError(f"most is {most}; expected at least 1")
    tall = []
    for width in range(multiple, size + 1, multiple):
        height = max(1, round(size * size / (width * multiple))) * multiple
        if height <= most * width:
            tall.append((height, width))
    return tall + [(width, height) for height, width in reversed(tall) if height != width]


def assign(
    widths: Sequence[int] | npt.NDArray[np.int64],
    heights: Sequence[int] | npt.NDArray[np.int64],
    sizes: Sequence[tuple[int, int]],
) -> npt.NDArray[np.int64]:
    """For each picture ``[n]`` the index of the (height, width) whose ratio is nearest to its own.

    Near is by the logarithm, so that twice as wide and twice as high are equally far from a square.
    """
    ratios = np.log(np.asarray(widths, np.float64)) - np.log(np.asarray(heights, np.float64))
    offered = np.array([math.log(width / height) for height, width in sizes])
    nearest = np.zeros(len(ratios), np.int64)
    distance = np.full(len(ratios), np.inf)
    for index, ratio in enumerate(offered):  # and so no table of pictures by buckets is held
        closer = np.abs(ratios - ratio) < distance
        nearest[closer], distance[closer] = index, np.abs(ratios - ratio)[closer]
    return nearest
