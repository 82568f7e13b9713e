"""Batches of stage two: which pictures it is fed when, and how large: squares or buckets by ratio, at one resolution
after another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from carrara.dataset import latents
from carrara.dataset.buckets import assign, buckets
from carrara.dataset.loader import Bucket, Reading, load
from carrara.errors import UserError
from carrara.training.recipe import Resolution

if TYPE_CHECKING:
    from carrara.autoencoders.scale import LatentScale
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.dataset import Dataset
    from carrara.dataset.loader import Loaded
    from carrara.training.recipe import DiffusionRecipe


IMAGE = "image"


@dataclass(frozen=True)
class Needed:
    """Latents that have to be there before training: of these rows (None: of all), at (height, width)."""

    rows: npt.NDArray[np.int64] | None
    size: tuple[int, int]


@dataclass(frozen=True)
class Part:
    """The pictures until a share of the budget is used: train rows as squares of ``size``, or in buckets."""

    until: float
    size: int
    buckets: tuple[tuple[npt.NDArray[np.int64], tuple[int, int]], ...] = ()


def multiple_of(recipe: DiffusionRecipe, latent: Any) -> int:
    """What the sides of a picture must be multiples of, for the denoiser and latents of such channels and factor."""
    with torch.device("meta"):
        network = recipe.model.denoiser.build(channels=int(latent.channels))
    return int(latent.factor) * int(network.factor)


def check_size(size: int, multiple: int) -> None:
    """UserError where a picture's side is no multiple of what it must be."""
    if size % multiple:
        raise UserError(
            f"this model needs pictures whose sides are a multiple of {multiple}; here it is {size}"
        )


class LatentColumns(NamedTuple):
    """Latents that a task reads: ``names`` of the columns of all variants, and which of them are ``mirrored``.

    ``held_out`` are the columns of held-out pictures, where these are called otherwise.
    """

    names: Sequence[str]
    mirrored: Sequence[bool] = (False,)
    held_out: Mapping[str, str] = {}


class Feed:
    """The parts of a training, the latents that they need, and the batches."""

    def __init__(self, recipe: DiffusionRecipe, dataset: Dataset, autoencoder: StoredAutoencoder) -> None:
        """UserError where a size does not fit the autoencoder and the denoiser."""
        multiple = multiple_of(recipe, autoencoder.module)
        stages = recipe.resolutions or (Resolution(size=autoencoder.size),)
        self.recipe, self.dataset = recipe, dataset
        self.autoencoder = replace(autoencoder, size=stages[-1].size)
        self.variants = latents.variants(recipe.flip, recipe.crops)
        self.names = [IMAGE] if recipe.pixels else [f"latent.{k}" for k in range(len(self.variants))]
        for stage in stages:
            check_size(stage.size, multiple)
        total = sum(stage.share for stage in stages)
        ends = np.cumsum([stage.share / total for stage in stages])
        self.parts = [
            Part(float(end), stage.size, self._buckets(stage.size, multiple))
            for stage, end in zip(stages, ends, strict=True)
        ]

    def needed(self) -> list[Needed]:
        """All that has to be encoded; nothing in pixels."""
        if self.recipe.pixels:
            return []
        found: list[Needed] = []
        for part in self.parts:
            found += [Needed(rows, size) for rows, size in part.buckets]
            if not part.buckets:
                found.append(Needed(None, (part.size, part.size)))
        if self.parts[-1].buckets and len(held := self.dataset.indices("held_out")):
            size = self.parts[-1].size  # validation looks at squares
            found.append(Needed(held, (size, size)))
        return found

    def encoded(self, needed: Needed) -> list[str] | None:
        """The columns of all variants at a size; None where one is not encoded yet."""
        return latents.encoded(
            self.dataset, self.autoencoder, self.variants, rows=needed.rows, size=needed.size
        )

    def columns(self, needed: Needed) -> list[str]:
        """The columns of all variants at a size; UserError where one is not encoded yet."""
        if (columns := self.encoded(needed)) is None:
            raise UserError(
                f"{self.dataset.path} is not encoded with this autoencoder yet; see `carrara data encode`"
            )
        return columns

    def scaled(self) -> StoredAutoencoder:
        """The autoencoder with the scale measured on the latents that the training ends with."""
        return self.autoencoder if self.recipe.pixels else self.autoencoder.with_scale(self.measured())

    def measured(self) -> LatentScale:
        """The scale of the latents that the training ends with, all variants together; not for pixels."""
        return self._measured

    @functools.cached_property
    def _measured(self) -> LatentScale:
        last = self.parts[-1]
        if not last.buckets:
            columns = self.columns(Needed(None, (last.size, last.size)))
            return latents.measured_scale(self.dataset, columns)
        own = [self._bucket(rows, size) for rows, size in last.buckets]
        return latents.measured_scale(self.dataset, self.names, own)

    def scale_note(self) -> str | None:
        """A line where a scale that came with the autoencoder is far from the one of these latents."""
        if self.autoencoder.scale is None:
            return None
        return latents.scale_note(self.autoencoder.scale, self.measured())

    def latents(self) -> LatentColumns:
        """Those that the task reads: held-out pictures are squares of the last size."""
        if self.recipe.pixels:
            return LatentColumns(self.names)
        size = self.parts[-1].size
        rows = self.dataset.indices("held_out") if self.parts[-1].buckets else None
        squares = self._named(Needed(rows, (size, size)))
        return LatentColumns(self.names, [variant.flip for variant in self.variants], squares)

    def batches(
        self, columns: Sequence[str], fraction: Callable[[], float], start: int
    ) -> Generator[Loaded, None, None]:
        """Batches from ``start`` pictures on; ``fraction`` is asked before each how much of the budget is used."""
        train = self.recipe.train
        seen = start
        while True:
            part = self._part(fraction())
            own = {} if self.recipe.pixels or part.buckets else self._named(Needed(None, (part.size,) * 2))
            size, channels = None if part.buckets else part.size, int(self.autoencoder.config.image_channels)
            loaded = load(
                self.dataset,
                Reading(columns, size, channels, self.autoencoder.bits, own=own),
                batch=train.batch,
                seed=train.seed,
                start=seen,
                buckets=[self._bucket(rows, size) for rows, size in part.buckets],
            )
            with closing(loaded):
                while self._part(fraction()) is part:
                    batch = next(loaded)
                    seen += len(batch.rows)
                    yield batch

    def _part(self, fraction: float) -> Part:
        return next((part for part in self.parts if fraction < part.until), self.parts[-1])

    def _buckets(self, size: int, multiple: int) -> tuple[tuple[npt.NDArray[np.int64], tuple[int, int]], ...]:
        """The rows to train on by (height, width), without empty ones; none where all are squares."""
        if self.recipe.ratio == 1:
            return ()
        sizes = buckets(size, multiple, self.recipe.ratio)
        rows = self.dataset.indices("train")
        shapes = self.dataset.take(rows, ["width", "height"])
        chosen = assign(shapes["width"], shapes["height"], sizes)
        return tuple((rows[chosen == k], sizes[k]) for k in range(len(sizes)) if (chosen == k).any())

    def _bucket(self, rows: npt.NDArray[np.int64], size: tuple[int, int]) -> Bucket:
        return Bucket(rows, size, {} if self.recipe.pixels else self._named(Needed(rows, size)))

    def _named(self, needed: Needed) -> dict[str, str]:
        return dict(zip(self.names, self.columns(needed), strict=True))
