"""What `carrara data dedup` finds of copies that were made on purpose, and what else it takes for copies.

Of real pictures (a data set made by `carrara data import`) some are altered in a dozen ways and hidden among all of
them: `python bench/copies.py DATASET [--pictures 4000] [--altered 500] [--within 8]`.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from carrara.cleaning.duplicates import by_glances
from carrara.dataset.dataset import Dataset
from carrara.images.decode import decode
from carrara.images.fingerprint import RADIUS, look, unpack


def encoded(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without ``share`` of each side at both of its ends."""
    width, height = image.size
    return image.resize(
        image.size,
        Image.Resampling.BICUBIC,
        (width * share, height * share, width * (1 - share), height * (1 - share)),
    )


def scaled(image: Image.Image, across: float, down: float) -> Image.Image:
    return image.resize((round(image.width * across), round(image.height * down)), Image.Resampling.BICUBIC)


ALTERED: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG at 50": lambda image: encoded(image, "JPEG", quality=50),
    "JPEG at 20": lambda image: encoded(image, "JPEG", quality=20),
    "WebP at 60": lambda image: encoded(image, "WEBP", quality=60),
    "half the size": lambda image: encoded(scaled(image, 0.5, 0.5)),
    "twice the size": lambda image: encoded(scaled(image, 2, 2)),
    "stretched by a quarter": lambda image: encoded(scaled(image, 1.25, 1)),
    "brighter by an eighth": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.125)),
    "paler": lambda image: encoded(ImageEnhance.Contrast(image).enhance(0.85)),
    "2 % cut off each side": lambda image: encoded(cropped(image, 0.02)),
    "4 % cut off each side": lambda image: encoded(cropped(image, 0.04)),
    "mirrored": lambda image: encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "half the size, JPEG at 50": lambda image: encoded(scaled(image, 0.5, 0.5), "JPEG", quality=50),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--altered", type=int, default=500)
    parser.add_argument("--within", type=int, default=RADIUS)
    parser.add_argument("--where", help="an SQL condition on the pictures")
    asked = parser.parse_args()
    dataset = Dataset.open(asked.dataset)
    chance = np.random.default_rng(0)
    rows = chance.permutation(dataset.indices(None, asked.where))[: asked.pictures]
    plain = [data for row in rows for data in dataset.take([row], ["image"])["image"]]
    count, some = len(plain), min(asked.altered, len(plain))
    stored = [look(data) for data in plain]
    for alter in ALTERED.values():
        stored += [look(alter(decode(data))) for data in plain[:some]]
    every = unpack(np.stack(stored))
    found = by_glances([every], lambda rows: every.colours[rows], asked.within, mirrored=True)
    alike = {(found.node[k], found.node[k]) for k in range(len(stored))}
    for first, second in zip(found.first.tolist(), found.second.tolist(), strict=True):
        alike |= {(first, second), (second, first)}
    print(
        f"{count} pictures of {asked.dataset}, {some} of them altered; {asked.within} of 64 bits or fewer apart"
    )
    for index, name in enumerate(ALTERED):
        start = count + index * some
        hits = sum((found.node[k], found.node[start + k]) in alike for k in range(some))
        print(f"{name:28} {hits / some:6.1%} found")
    originals = found.node[:count]
    others = {pair for pair in alike if pair[0] < pair[1] and np.isin(pair, originals).all()}
    print(f"pairs among the {count} themselves: {len(others)} of {count * (count - 1) // 2:,}")


if __name__ == "__main__":
    main()
