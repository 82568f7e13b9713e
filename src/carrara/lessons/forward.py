"""The forward process on a picture: a thousand small steps, and the one leap that gives the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from carrara.diffusion.samplers.path import Moment, moment, renoised
from carrara.diffusion.schedules import SCHEDULES, Discrete, NoiseSchedule
from carrara.errors import BadPicture, UserError
from carrara.files import read_bytes
from carrara.generation.png import to_image
from carrara.images.decode import stack
from carrara.lessons.output import Exhibit
from carrara.pages.picture_grid import Row, plate
from carrara.tensors import PictureNoise, from_pixels, to_pixels

FRAMES = 40


class Pair(NamedTuple):
    """One image on both ways to step n: z made step by step and z made at once, each [1 c h w]."""

    n: int
    at: Moment
    chain: Tensor
    leap: Tensor


def open_picture(path: Path, size: int) -> Tensor:
    """``uint8 [1 3 size size]``, the middle square of a picture file; UserError where it is none."""
    try:
        return stack([read_bytes(path)], size)
    except BadPicture as reason:
        raise UserError(f"{path}: {reason}") from None


def steps_of(schedule: NoiseSchedule) -> int:
    """T: of the table, or the usual 1000 on a path without one."""
    return schedule.steps if isinstance(schedule, Discrete) else 1000


def both_ways(image: Tensor, schedule: NoiseSchedule, seed: int) -> Iterator[Pair]:
    """Steps n = 0 ... T of ``image [1 c h w]``: fresh noise at every step, against one noise for all."""
    total = steps_of(schedule)
    fresh, one = PictureNoise(seed, [0]), PictureNoise(seed, [1])(image)
    z, t = image, moment(torch.tensor(0.0), schedule)
    yield Pair(0, t, image, image)
    for n in range(1, total + 1):
        s = moment(torch.tensor(n / total, dtype=torch.float64), schedule)
        z, t = renoised(z, t, s, fresh), s  # q(z_n | z_(n-1)), eq. 2 of Ho et al. 2020
        yield Pair(n, s, z, s.alpha * image + s.sigma * one)  # q(z_n | z_0), eq. 4


def forward(picture: Tensor, *, schedule: str = "linear", seed: int = 0, columns: int = 9) -> Exhibit:
    """The exhibit for a picture ``uint8 [1 3 h w]``; UserError where no schedule has that name."""
    path = SCHEDULES[schedule]()
    total, image = steps_of(path), from_pixels(picture)
    shown = {
        round(total * (k / (columns - 1)) ** 2) for k in range(columns)
    }  # the beginning is the busy part
    filmed = {round(total * k / (FRAMES - 1)) for k in range(FRAMES)}
    found = [pair for pair in both_ways(image, path, seed) if pair.n in shown | filmed]
    table = [pair for pair in found if pair.n in shown]
    still = plate(
        [
            Row(
                "step by step",
                [_seen(p.chain, p.at) for p in table],
                [_measured(p.chain, image, p) for p in table],
            ),
            Row(
                "at once", [_seen(p.leap, p.at) for p in table], [_measured(p.leap, image, p) for p in table]
            ),
        ],
        [f"step {p.n}\nalpha {p.at.alpha:.3f}\nsigma {p.at.sigma:.3f}" for p in table],
    )
    film = [
        plate(
            [Row("", [_seen(p.chain, p.at), _seen(p.leap, p.at)])],
            [f"step by step\n{p.n} of {total}", f"at once\nalpha {p.at.alpha:.2f}, sigma {p.at.sigma:.2f}"],
            side=128,
        )
        for p in found
        if p.n in filmed
    ]
    words = (
        f"Schedule {schedule}. Above, every step takes a little of the picture away and adds a little fresh noise: "
        "q(z_n | z_(n-1)). Below, one leap, z = alpha * picture + sigma * noise: q(z_n | z_0). Both have the same "
        "distribution, which is why training can jump to any step: the noise measured in each (its standard "
        "deviation, under the pictures) is sigma both times."
    )
    return Exhibit("The forward process", words, still, film)


def _seen(z: Tensor, at: Moment) -> Image:
    """z as a picture; on the variance exploding path shrunk to the range that pixels have."""
    return to_image(to_pixels(z / max(1.0, torch.hypot(at.alpha, at.sigma).item()))[0])


def _measured(z: Tensor, image: Tensor, pair: Pair) -> str:
    return f"noise {(z - pair.at.alpha * image).std():.3f}"
