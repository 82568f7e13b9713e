"""What pictures look like in numbers: how light they are, how much they vary, in which files they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from carrara.cleaning.duplicates import Likeness, by_glances, by_hash, components
from carrara.dataset.fingerprints import glance_column, glances
from carrara.errors import BadPicture
from carrara.images.fingerprint import Colours, Glances, look, unpack
from carrara.images.header import is_heic
from carrara.progress import Progress
from carrara.tensors import Index

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

_AT_ONCE = 64
_STARTS = (
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)


@dataclass(frozen=True)
class Looks:
    """Of the pictures in ``rows`` [k]: mean and standard deviation of their light (0 to 255), and what is alike.

    ``formats`` and ``sizes`` in bytes are those of a sample.
    """

    rows: Index
    light: npt.NDArray[np.float64]
    contrast: npt.NDArray[np.float64]
    likeness: Likeness
    formats: Counter[str]
    sizes: list[int]


@dataclass(frozen=True)
class Copies:
    """Pictures that look like another one, of those looked at; ``across_splits``: of how many groups some are held out
    and others trained on."""

    looked_at: int
    groups: int
    pictures: int
    across_splits: int


def looks(dataset: Dataset, sample: Index) -> Generator[Progress, None, Looks]:
    """Of all pictures where their glances are derived, otherwise of ``sample``; yields how far it is."""
    column = glance_column(dataset)
    formats: Counter[str] = Counter()
    sizes: list[int] = []
    stored: list[npt.NDArray[np.float32]] = []
    seen: list[int] = []
    for start in range(0, len(sample), _AT_ONCE):
        part = sample[start : start + _AT_ONCE]
        for row, data in zip(part.tolist(), dataset.take(part, ["image"])["image"], strict=True):
            formats[_format(data)] += 1
            sizes.append(len(data))
            if column is None:
                try:
                    stored.append(look(data, dataset.span("image")))
                    seen.append(row)
                except BadPicture:  # it was readable once, by another version of the decoder
                    formats["unreadable"] += 1
        share = (start + len(part)) / len(sample)
        yield Progress(title="looking", fraction=0.8 * share, words="looking at pictures")
    if column is not None:
        light, contrast = _light(glances(dataset, column))
        return Looks(np.arange(len(dataset)), light, contrast, by_hash(dataset, column), formats, sizes)
    found = unpack(np.stack(stored)) if stored else unpack(np.zeros((0, 264), np.float32))
    light, contrast = _light([found])
    likeness = by_glances([found], lambda rows: found.colours[rows])
    return Looks(np.array(seen, np.int64), light, contrast, likeness, formats, sizes)


def copies(found: Looks, held_out: Index) -> Copies:
    """How many of the pictures looked at have a look-alike among them; ``held_out`` are the rows that are."""
    group = components(found.likeness)
    _, place, counts = np.unique(group, return_inverse=True, return_counts=True)
    inside = np.bincount(place, np.isin(found.rows, held_out), minlength=len(counts))
    return Copies(
        len(found.rows),
        int((counts > 1).sum()),
        int((counts[counts > 1] - 1).sum()),
        int(((inside > 0) & (inside < counts)).sum()),
    )


def _light(parts: Iterable[Glances]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    means, spreads = [np.empty(0)], [np.empty(0)]
    for part in parts:
        grey = _luminance(part.colours)
        means.append(grey.mean(1))
        spreads.append(grey.std(1))
    return np.concatenate(means), np.concatenate(spreads)


def _luminance(colours: Colours) -> npt.NDArray[np.float64]:
    grey: npt.NDArray[np.float64] = colours.reshape(len(colours), -1, 3) @ np.array([0.299, 0.587, 0.114])
    return grey


def _format(data: bytes) -> str:
    for start, name in _STARTS:
        if data.startswith(start):
            return name
    if data[8:12] == b"WEBP":
        return "WebP"
    return "HEIC" if is_heic(data) else "AVIF" if data[4:8] == b"ftyp" else "another"
