"""Statistics of a data set, before anything is trained on it: sizes, words, classes, copies, what a resolution cuts
off.

Words and sizes are counted in all rows; what needs a decoded picture, in a sample, or in all of them where their
glances are derived already. Nothing is written, and no more than a few pictures are in memory at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Generator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from carrara.cleaning.advice import advice
from carrara.cleaning.caption_statistics import counted, said, values
from carrara.cleaning.crops import buckets_of, cut, lost_in_square
from carrara.cleaning.figures import Classes, Files, Sizes, Statistics
from carrara.cleaning.picture_statistics import copies, looks
from carrara.cleaning.spread import Spread
from carrara.dataset.columns import CAPTIONED_BY, KINDS
from carrara.images import boxes
from carrara.images.channels import bits_of, channels_of
from carrara.images.fingerprint import FLAT
from carrara.progress import Progress

if TYPE_CHECKING:
    from carrara.cleaning.caption_statistics import Said
    from carrara.cleaning.picture_statistics import Looks
    from carrara.dataset.dataset import Dataset
    from carrara.tensors import Index


SAMPLE = 4000  # pictures decoded
EXTREMES = 8
COMMON = 12
RANDOM = 18
NOT_STATED = "not stated"
NO_ADDRESS = "not an address"


def measure(dataset: Dataset, *, size: int = 256) -> Generator[Progress, None, Statistics]:
    """Counts what the data set holds; ``size`` is the resolution that crops are measured for."""
    total, chance = len(dataset), np.random.default_rng(0)
    sample = np.sort(chance.permutation(total)[:SAMPLE]).astype(np.int64)
    looked = yield from looks(dataset, sample)
    yield Progress(fraction=0.8, words="reading captions")
    spoken = said(dataset)
    yield Progress(fraction=0.95, words="counting")
    shapes = dataset.arrow(["width", "height"])
    width, height = (shapes[name].to_numpy().astype(np.int64) for name in ("width", "height"))
    found = Statistics(
        name=dataset.path.name,
        version=dataset.version,
        pictures=total,
        decoded=len(looked.rows),
        size=size,
        sizes=_sizes(width, height),
        files=_files(dataset, looked),
        languages=spoken.languages,
        uncaptioned=spoken.uncaptioned,
        captioned_by=_by_word(counted(dataset, CAPTIONED_BY)),
        classes=_classes(counted(dataset, "label")),
        licences=_with_rest(counted(dataset, "licence"), total),
        sources=_sources(dataset.about),
        hosts=_most(_hosts(dataset)),
        splits=_with_rest(counted(dataset, "split"), total),
        groups=_groups(dataset),
        flags=_by_word(counted(dataset, "flags")),
        beside={
            name: dataset.table.count_rows(filter=f"{name} IS NOT NULL")
            for name in (boxes.COLUMN, *KINDS)
            if name in dataset.columns
        },
        square=cut(width, height, [(size, size)]),
        bucketed=cut(width, height, buckets_of(size)),
        copies=copies(looked, dataset.indices("held_out")),
        light=Spread.of(looked.light),
        contrast=Spread.of(looked.contrast),
        empty=int((looked.contrast < FLAT).sum()),
        extremes=_extremes(width, height, looked, spoken),
        some=[int(row) for row in chance.permutation(sample)[:RANDOM]],
    )
    yield Progress(fraction=1.0, words="done")
    return dataclasses.replace(found, advice=advice(found, str(dataset.path)))


def _sizes(width: Index, height: Index) -> Sizes:
    ratio = width / np.maximum(height, 1)
    both, counts = np.unique(np.stack([width, height]), axis=1, return_counts=True)
    first = np.argsort(-counts, kind="stable")[:COMMON]
    shapes = {
        "wider than high": int((ratio > 1.05).sum()),
        "about square": int(((ratio <= 1.05) & (ratio >= 1 / 1.05)).sum()),
        "higher than wide": int((ratio < 1 / 1.05).sum()),
    }
    commonest = [(f"{both[0, k]} x {both[1, k]}", int(counts[k])) for k in first]
    return Sizes(Spread.of(width), Spread.of(height), Spread.of(ratio), commonest, shapes)


def _files(dataset: Dataset, looked: Looks) -> Files:
    modes = counted(dataset, "mode")
    channels: Counter[int] = Counter()
    for mode, count in modes.items():
        channels[channels_of(mode)] += count
    return Files(
        _most(modes),
        dict(sorted(channels.items())),
        sum(count for mode, count in modes.items() if bits_of(mode) > 8),
        dict(looked.formats.most_common()),
        Spread.of(np.array(looked.sizes)),
    )


def _classes(labels: Counter[str]) -> Classes | None:
    if not labels:
        return None
    ordered = labels.most_common()
    total = sum(labels.values())
    entropy = -sum(n / total * math.log(n / total) for n in labels.values())
    return Classes(
        len(labels),
        total,
        ordered[: 2 * COMMON],
        ordered[2 * COMMON :][-COMMON:],
        ordered[0][1] / ordered[-1][1],
        round(math.exp(entropy), 2),
    )


def _extremes(width: Index, height: Index, looked: Looks, spoken: Said) -> dict[str, list[tuple[int, str]]]:
    lost = lost_in_square(width, height)
    rows = looked.rows
    return {
        "smallest": [(k, f"{width[k]} x {height[k]}") for k in _lowest(width * height)],
        "cut most by a square": [
            (k, f"{lost[k]:.0%} of {width[k]} x {height[k]}") for k in _lowest(-lost) if lost[k]
        ],
        "darkest": [(int(rows[k]), f"light {looked.light[k]:.0f} of 255") for k in _lowest(looked.light)],
        "lightest": [(int(rows[k]), f"light {looked.light[k]:.0f} of 255") for k in _lowest(-looked.light)],
        "with least in them": [
            (int(rows[k]), f"contrast {looked.contrast[k]:.1f} of 255") for k in _lowest(looked.contrast)
        ],
        "with the longest captions": [
            (row, f"{length} characters ({language})") for row, language, length in spoken.longest
        ],
    }


def _lowest(values: np.ndarray[tuple[int], np.dtype[Any]]) -> list[int]:
    return [int(k) for k in np.argsort(values, kind="stable")[:EXTREMES]]


def _by_word(counts: Counter[str]) -> dict[str, int]:
    """Of values that are words with spaces between."""
    words: Counter[str] = Counter()
    for value, count in counts.items():
        words.update(dict.fromkeys(value.split(), count))
    return _most(words)


def _with_rest(counts: Counter[str], total: int) -> dict[str, int]:
    rest = total - sum(counts.values())
    return _most(counts) | ({NOT_STATED: rest} if rest else {})


def _most(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common(2 * COMMON))


def _hosts(dataset: Dataset) -> Counter[str]:
    found: Counter[str] = Counter()
    for urls in values(dataset, "url"):
        for url in urls.drop_null().to_pylist():
            try:
                found[urlsplit(url).hostname or NO_ADDRESS] += 1
            except ValueError:
                found[NO_ADDRESS] += 1
    return found


def _groups(dataset: Dataset) -> int:
    """How many there are; a picture that is alone in its group gave it its own name."""
    named: set[str] = set()
    alone = 0
    for batch in dataset.table.to_batches(columns=["id", "group"]):
        for own, group in zip(batch["id"].to_pylist(), batch["group"].to_pylist(), strict=True):
            if group in (own, None):
                alone += 1
            else:
                named.add(group)
    return alone + len(named)


def _sources(about: dict[str, Any]) -> list[str]:
    made = about.get("subset")
    first = [f"rows of {made['of']}, version {made['version']}: {made['why']}"] if made else []
    every = [*(made or {}).get("sources", []), *about.get("sources", [])]
    return first + [str(one.get("source", "")) for one in every]
