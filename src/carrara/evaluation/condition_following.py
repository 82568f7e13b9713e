"""Whether a condition is obeyed: a model is asked for what held-out pictures are, and what it makes is judged.

Each judge is independent of the model, and is shown real pictures and, as the floor, wrong ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from carrara.conditions.random_holes import Masked, blend, draw_hole
from carrara.dataset.dataset import Dataset, Rows
from carrara.errors import UserError
from carrara.evaluation import condition_pictures, map_reader
from carrara.evaluation.class_probe import accuracy, accuracy_by_class, fit_probe
from carrara.evaluation.map_reader import (
    MapReader,
    compare,
    find_boxes,
    learn_to_read,
    mean_overlap,
    numbers_of_labels,
    overlaps,
    sized_maps,
)
from carrara.evaluation.simple_fills import cut_around, mean_fill, psnr_where, smooth_fill
from carrara.generation.model import Model
from carrara.generation.sample import Settings, generate
from carrara.geometry import Box, Layout, fit_picture, read_boxes, shrink
from carrara.metrics.features import Features, kernel_distance
from carrara.metrics.reconstruction import Autocast, nearest_picture, psnr, reconstruct
from carrara.tensors import mix, to_pixels

if TYPE_CHECKING:
    from PIL import Image

SHOWN = 8  # pictures in a row of a plate
_CLASSES_SHOWN = 12
_LATER = 10**6  # numbers from here on are other pictures than those that are measured

Figures = Mapping[str, Mapping[str, float]]
"""Measures by name of each thing measured: the model's pictures, the floor, the ceiling."""


class Finding(NamedTuple):
    """What was asked for in one condition: the figures, more of them for a file, and pictures."""

    condition: str
    figures: Figures
    details: Mapping[str, float]
    plate: Image.Image


@dataclass(frozen=True)
class Trial:
    """A model (on its device), the data it is measured on, and how; at most so many held-out ``pictures``.

    ``references`` real training pictures teach the judges; ``lessons`` are the steps of the one that reads maps.
    """

    model: Model
    dataset: Dataset
    features: Features
    settings: Settings
    pictures: int = 256
    references: int = 2000
    lessons: int = 400
    batch: int = 32
    autocast: Autocast = field(default=nullcontext)

    def make(self, rows: Sequence[Mapping[str, Any]], first: int = 0) -> Tensor:
        """One picture a request, ``[n c h w]``."""
        numbers = list(range(first, first + len(rows)))
        with self.autocast():
            return generate(self.model, rows, self.settings, numbers=numbers, batch=self.batch)

    def rows(self, split: str, most: int, column: str | None = None) -> Rows:
        """Some rows of a split, always the same ones, where ``column`` says something. UserError where none does."""
        found = self.dataset.indices(split, f"{column} IS NOT NULL" if column else None)
        if len(found) < 2:
            said = f" with a {column}" if column else ""
            raise UserError(
                f"{self.dataset.path}: the split {split!r} has {len(found)} pictures{said}; at least 2 are needed"
            )
        chosen = np.random.default_rng(mix(self.settings.seed, len(found))).permutation(len(found))[:most]
        return found[np.sort(chosen)]

    def originals(self, rows: Rows) -> Tensor:
        """Real pictures as the model was to make them, ``[n c h w]``."""
        autoencoder = self.model.autoencoder
        return self.dataset.pictures(
            rows, self.model.size, autoencoder.config.image_channels, bits=autoencoder.bits
        )

    def values(self, rows: Rows, column: str) -> list[Any]:
        """A column's values there."""
        return self.dataset.take(rows, [column])[column]

    def maps(self, rows: Rows) -> Tensor:
        """``int64 [n h w]``; UserError where the data has none."""
        return self.dataset.beside(rows, "map", self.model.size)[:, 0]

    def through(self, pictures: Tensor) -> Tensor:
        """What the autoencoder makes of them: no sample can be better."""
        return reconstruct(self.model.autoencoder.module, pictures, self.model.device, self.autocast)

    def reader(self, classes: int) -> MapReader:
        """A judge that reads maps off pictures, taught by real ones."""
        rows = self.rows("train", self.references, "map")
        return learn_to_read(
            self.originals(rows),
            self.maps(rows),
            classes,
            steps=self.lessons,
            device=self.model.device,
            autocast=self.autocast,
        )


def measure(trial: Trial) -> list[Finding]:
    """Every condition of the model by itself, the others left out. UserError where none of them can be measured."""
    found = []
    for encoder in trial.model.conditions.values():
        if (way := MEASURES.get(name_of(encoder))) is not None:
            found.append(way(trial, encoder))
    if not found:
        has = ", ".join(map(name_of, trial.model.conditions.values())) or "none"
        known = ", ".join(sorted(MEASURES))
        raise UserError(f"no condition of this model can be measured (it has: {has}; known: {known})")
    return found


def name_of(encoder: Any) -> str:
    """What a condition is about: "class", "text", "layout", or what an image condition shows."""
    shows = {"low_resolution": "super-resolution", "masked": "inpainting"}
    if encoder.form == "picture":
        return shows.get(encoder.config.shows, str(encoder.config.shows))
    return {"label": "class", "boxes": "layout"}.get(encoder.form, str(encoder.form))


def _classes(trial: Trial, encoder: Any) -> Finding:
    column, features = str(encoder.column), trial.features
    known = trial.rows("train", trial.references, column)
    taught = features(trial.originals(known))
    probe = fit_probe(taught, list(map(str, trial.values(known, column))))
    rows = trial.rows("held_out", trial.pictures, column)
    real, labels = trial.originals(rows), list(map(str, trial.values(rows, column)))
    if strange := sorted(set(labels) - set(encoder.classes)):
        raise UserError(f"{trial.dataset.path} has a class {strange[0]!r}, which the model does not know")
    asked = [labels[k % len(labels)] for k in range(trial.pictures)]  # in the shares that the real ones have
    made = features(trial.make([{column: label} for label in asked]))
    held_out, again = features(real), features(trial.through(real))
    other = np.random.default_rng(trial.settings.seed).permutation(asked).tolist()
    answers = probe(made)
    names = sorted(set(labels))[:_CLASSES_SHOWN]
    shown = [trial.make([{column: name}] * SHOWN, _LATER) for name in names]  # the same noise in a column
    return Finding(
        "class",
        {
            "samples": {"accuracy": accuracy(answers, asked), "distance": kernel_distance(made, held_out)},
            "samples, classes shuffled": {"accuracy": accuracy(answers, other)},
            "held-out pictures": {
                "accuracy": accuracy(probe(held_out), labels),
                "distance": kernel_distance(taught, held_out),
            },
            "held-out pictures through the autoencoder": {
                "accuracy": accuracy(probe(again), labels),
                "distance": kernel_distance(held_out, again, paired=True),
            },
        },
        {f"accuracy of {name}": share for name, share in accuracy_by_class(answers, asked).items()},
        condition_pictures.classes(names, shown),
    )


def _text(trial: Trial, encoder: Any) -> Finding:
    """The nearest training picture by colours is the one whose caption was the prompt, or has the same caption."""
    if not (captions := trial.dataset.captions):
        raise UserError(f"{trial.dataset.path} has no captions")
    rows = trial.rows("train", trial.references)
    learned = [one for one in getattr(encoder.config, "languages", ()) if one in captions]
    references, languages = trial.originals(rows), learned or sorted(captions)
    drawn = np.random.default_rng(trial.settings.seed).permutation(len(rows))[: trial.pictures]
    columns = {language: trial.values(rows, captions[language]) for language in languages}
    asked = [(p, languages[k % len(languages)]) for k, p in enumerate(drawn.tolist())]
    asked = [(p, language) for p, language in asked if columns[language][p]]
    made = trial.make([{str(encoder.column): columns[language][p]} for p, language in asked])
    nearest = nearest_picture(made, references)
    right = [columns[lang][p] == columns[lang][near] for near, (p, lang) in zip(nearest, asked, strict=True)]
    moved = [*nearest[1:], nearest[0]]
    wrong = [columns[lang][p] == columns[lang][near] for near, (p, lang) in zip(moved, asked, strict=True)]
    latin = [k for k, (p, lang) in enumerate(asked) if columns[lang][p].isascii()][: 2 * SHOWN]
    by_language = {
        f"obeyed in {one}": float(np.mean(of_it))
        for one in languages
        if (of_it := [r for r, (_, lang) in zip(right, asked, strict=True) if lang == one])
    }
    return Finding(
        "text",
        {
            "samples": {"obeyed": float(np.mean(right))},
            "samples, prompts shuffled": {"obeyed": float(np.mean(wrong))},
        },
        by_language,
        condition_pictures.prompts(
            [columns[asked[k][1]][asked[k][0]] for k in latin],
            made[latin],
            references[[asked[k][0] for k in latin]],
        ),
    )


def _super_resolution(trial: Trial, encoder: Any) -> Finding:
    rows = trial.rows("held_out", trial.pictures)
    real, factor = trial.originals(rows), int(encoder.config.factor)
    small = shrink(real, factor)
    size = (real.shape[2], real.shape[3])
    bits = trial.model.autoencoder.bits
    bicubic = torch.stack([to_pixels(fit_picture(one, size), bits) for one in small])
    made = trial.make([{str(encoder.column): one} for one in small])
    features = trial.features(real)

    def judged(pictures: Tensor) -> dict[str, float]:
        return {
            "psnr": _mean_psnr(pictures, real),
            "distance": kernel_distance(features, trial.features(pictures), paired=True),
            "consistency": _mean_psnr(shrink(pictures, factor), small),
        }

    shown = _spread(len(real))
    return Finding(
        "super-resolution",
        {
            "samples": judged(made),
            "bicubic": judged(bicubic),
            "originals through the autoencoder": judged(trial.through(real)),
        },
        {"factor": factor},
        condition_pictures.super_resolution(
            small[shown], factor, {"bicubic": bicubic[shown], "ours": made[shown], "original": real[shown]}
        ),
    )


def _inpainting(trial: Trial, encoder: Any) -> Finding:
    rows = trial.rows("held_out", trial.pictures)
    real = trial.originals(rows)
    seeds = [mix(trial.settings.seed, number) for number in range(len(real))]
    holes = torch.stack([draw_hole(seed, *real.shape[-2:]) for seed in seeds])
    requests = [{str(encoder.column): Masked(*pair)} for pair in zip(real, holes, strict=True)]
    raw = trial.make(requests)
    shown = _spread(len(real))
    second = _pasted(real[shown], trial.make([requests[k] for k in shown], _LATER), holes[shown])
    features = trial.features(cut_around(real, holes, trial.model.size))

    def judged(pictures: Tensor) -> dict[str, float]:
        cut = cut_around(pictures, holes, trial.model.size)
        return {
            "psnr in the hole": float(psnr_where(pictures, real, holes).mean()),
            "distance around the hole": kernel_distance(features, trial.features(cut), paired=True),
        }

    made, smooth = _pasted(real, raw, holes), smooth_fill(real, holes)
    again = _pasted(real, trial.through(real), holes)
    kept = psnr_where(raw, real, ~holes)
    return Finding(
        "inpainting",
        {
            "samples": judged(made),
            "smooth fill": judged(smooth),
            "mean colour": judged(mean_fill(real, holes)),
            "originals through the autoencoder": judged(again),
        },
        {
            "share of the picture": float(holes.float().mean()),
            "psnr outside, before pasting": float(kept.mean()),
        },
        condition_pictures.inpainting(
            real[shown],
            holes[shown],
            {"smooth": smooth[shown], "ours": made[shown], "ours, again": second, "original": real[shown]},
        ),
    )


def _semantic_map(trial: Trial, encoder: Any) -> Finding:
    classes, column = int(encoder.config.classes), str(encoder.column)
    reader = trial.reader(classes)
    rows = trial.rows("held_out", trial.pictures, column)
    real, maps = trial.originals(rows), trial.maps(rows)
    made = trial.make([{column: one} for one in maps])
    asked, features = sized_maps(maps, reader.side), trial.features(real)
    found, again = reader.read(made), trial.through(real)

    def judged(pictures: Tensor, read: Tensor) -> dict[str, float]:
        return {
            "overlap": mean_overlap(asked, read, classes),
            "distance": kernel_distance(features, trial.features(pictures), paired=True),
        }

    each, shown = overlaps(asked, found, classes).tolist(), _spread(len(real))
    return Finding(
        "map",
        {
            "samples": judged(made, found),
            "samples, maps shuffled": {"overlap": mean_overlap(asked.roll(1, 0), found, classes)},
            "held-out pictures": {"overlap": mean_overlap(asked, reader.read(real), classes)},
            "held-out pictures through the autoencoder": judged(again, reader.read(again)),
        },
        {f"overlap of class {k}": share for k, share in enumerate(each) if share == share},
        condition_pictures.maps(
            maps[shown], classes, {"ours": made[shown], "read off ours": found[shown], "real": real[shown]}
        ),
    )


def _layout(trial: Trial, encoder: Any) -> Finding:
    column = str(encoder.column)
    if "map" not in trial.dataset.columns:
        raise UserError(
            f"{trial.dataset.path} has boxes but no maps of classes, by which things are found in samples; "
            "`carrara data import scenes` makes data with both"
        )
    taught = trial.rows("train", trial.references, "map")
    reader = trial.reader(int(trial.maps(taught).max()) + 1)
    size, visible = (trial.model.size, trial.model.size), float(encoder.config.visible)
    said = [layout.shown(size, visible) for layout in _layouts(trial, taught)]
    names = numbers_of_labels(sized_maps(trial.maps(taught), reader.side), said)
    rows = trial.rows("held_out", trial.pictures, column)
    real, layouts = trial.originals(rows), _layouts(trial, rows)
    asked = [layout.shown(size, visible) for layout in layouts]
    made = trial.make([{column: layout} for layout in layouts])

    def find(pictures: Tensor) -> list[list[Box]]:
        return find_boxes(reader.read(pictures), names)

    found, features, again = find(made), trial.features(real), trial.through(real)

    def judged(boxes: list[list[Box]], pictures: Tensor | None = None) -> dict[str, float]:
        agreement = compare(asked, boxes)
        figures = {"overlap": agreement.overlap, "obeyed": agreement.obeyed, "unasked": agreement.unasked}
        if pictures is None:
            return figures
        return {**figures, "distance": kernel_distance(features, trial.features(pictures), paired=True)}

    shown = _spread(len(real))
    return Finding(
        "layout",
        {
            "samples": judged(found, made),
            "samples, layouts shuffled": judged([*found[1:], found[0]]),
            "held-out pictures": judged(find(real)),
            "held-out pictures through the autoencoder": judged(find(again), again),
        },
        {"boxes asked for": sum(map(len, asked)), "a box is obeyed above": map_reader.RIGHT},
        condition_pictures.layouts([asked[k] for k in shown], {"ours": made[shown], "real": real[shown]}),
    )


MEASURES: Mapping[str, Callable[[Trial, Any], Finding]] = {
    "class": _classes,
    "text": _text,
    "super-resolution": _super_resolution,
    "inpainting": _inpainting,
    "map": _semantic_map,
    "layout": _layout,
}


def _layouts(trial: Trial, rows: Rows) -> list[Layout]:
    known = trial.dataset.take(rows, ["boxes", "width", "height"])
    columns = (known[name] for name in ("boxes", "width", "height"))
    return [Layout(tuple(read_boxes(said)), w, h, False) for said, w, h in zip(*columns, strict=True)]


def _spread(count: int) -> list[int]:
    """Which of so many pictures a plate shows: not the first ones, as data often stands class by class."""
    return [int(k) for k in np.linspace(0, count - 1, min(SHOWN, count))]


def _pasted(real: Tensor, made: Tensor, holes: Tensor) -> Tensor:
    rows = zip(real[: len(made)], made, holes, strict=True)
    return torch.stack([blend(one, new, hole) for one, new, hole in rows])


def _mean_psnr(a: Tensor, b: Tensor) -> float:
    return float(psnr(a, b).clamp(max=100).mean())
