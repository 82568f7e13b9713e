"""Pictures, conditions, times and noise that never change: what losses are compared on during a run and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from carrara.context import Context
from carrara.dataset.loader import Fetch, Reading
from carrara.dataset.order import Batch
from carrara.generation.model import joined
from carrara.generation.values import Values
from carrara.geometry import Size
from carrara.tensors import mix, sample_noise
from carrara.threads import at_once
from carrara.training.recipe import BINS

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.dataset import Dataset
    from carrara.dataset.latents import Autocast
    from carrara.dataset.loader import Loaded
    from carrara.training.diffusion_task import DiffusionTask


_PICTURE, _AGAIN, _BIN = 1, 2, 3  # what seeds are mixed with
_TRIES = 32  # a condition that is dropped so often that all of these fail is not worth comparing


def bin_times(bins: int = BINS) -> Tensor:
    """The middles of equal intervals of time, ``float64 [bins]``."""
    return (torch.arange(bins, dtype=torch.float64) + 0.5) / bins


def fetch(
    dataset: Dataset, task: DiffusionTask, autoencoder: StoredAutoencoder, rows: Sequence[int], seed: int
) -> Loaded:
    """All columns that the task draws from, at these rows; a picture's seed is a function of ``seed`` and its row."""
    seeds = np.array([mix(seed, _PICTURE, int(row)) for row in rows], np.uint64)
    channels = int(autoencoder.config.image_channels)
    reading = Reading(task.columns, autoencoder.size, channels, autoencoder.bits, own=task.latents.held_out)
    return Fetch(dataset, reading)(Batch(np.asarray(rows, np.int64), 0, seeds))


@dataclass(frozen=True)
class FixedPictures:
    """Scaled latents ``[n c h w]`` on the CPU, each condition's values, a seed a picture, their size in pixels."""

    latent: Tensor
    values: Mapping[str, Sequence[Any]]
    seeds: Sequence[int]
    size: Size

    @staticmethod
    def of(task: DiffusionTask, loaded: Loaded) -> FixedPictures:
        """As the task sees them in training, except that no condition is dropped where the picture has one."""
        seeds = [int(s) for s in loaded.seeds]
        raw, mirrored = task.raw(loaded, seeds)
        size = (raw.shape[2] * task.factor, raw.shape[3] * task.factor)
        values: dict[str, Sequence[Any]] = {}
        for stream, (name, encoder) in enumerate(task.conditions.items(), 1):
            values[name] = _drawn(encoder, task.read_by(name, loaded, mirrored), seeds, stream)
        return FixedPictures(task.scale.scale(raw), values, seeds, size)

    def __len__(self) -> int:
        return len(self.seeds)

    def first(self, count: int) -> FixedPictures:
        """The first of them."""
        values = {name: list(found)[:count] for name, found in self.values.items()}
        return FixedPictures(self.latent[:count], values, self.seeds[:count], self.size)

    def wanted(self, config: Mapping[str, Any], count: int) -> Values:
        """What is asked for in so many samples, at most as many as these; any number where there is no condition."""
        first, free = self.first(count), self.first(count).free(config)
        return Values(
            len(first) if self.values else count, first.values, free.values if free else first.values
        )

    def free(self, config: Mapping[str, Any]) -> FixedPictures | None:
        """Without the conditions that training sometimes drops, as guidance asks; None where there is none."""
        dropped = {name for name in self.values if config[name].dropout > 0}
        if not dropped:
            return None
        values = {n: [None] * len(self) if n in dropped else found for n, found in self.values.items()}
        return FixedPictures(self.latent, values, self.seeds, self.size)

    @torch.no_grad()
    def losses(
        self,
        task: DiffusionTask,
        autocast: Autocast,
        *,
        bins: int = BINS,
        batch: int = 64,
        values: Mapping[str, Sequence[Any]] | None = None,
        threads: int = 1,
    ) -> Tensor:
        """The unweighted error of the output in each bin of time, the mean over the pictures: ``float64 [bins]``.

        The noise is a function of the picture's seed and the bin. ``values`` are other conditions to take.
        """
        values = self.values if values is None else values
        times = bin_times(bins)
        step = max(1, batch // bins // threads)  # each picture comes at all times at once

        def errors(start: int) -> Tensor:
            part = slice(start, start + step)
            seeds = self.seeds[part]
            latent = self.latent[part].repeat_interleave(bins, 0).to(task.device)
            numbers = [mix(seed, _BIN, index) for seed in seeds for index in range(bins)]
            noise = sample_noise(numbers, latent.shape[1:]).to(task.device)
            given = {name: found[part] for name, found in values.items()}
            with autocast():
                once = joined(task.conditions, given, self.size, task.device)
                context = Context(**{k: v.repeat_interleave(bins, 0) for k, v in once.roles().items()})
                loss = task.diffusion.loss(
                    latent, noise, times.float().repeat(len(seeds)).to(task.device), context
                )
            return loss.double().cpu().view(-1, bins).sum(0)

        starts = range(0, len(self), step)
        return torch.stack(at_once([partial(errors, start) for start in starts], threads)).sum(0) / len(self)


def _drawn(encoder: Any, columns: Mapping[str, Any], seeds: Sequence[int], stream: int) -> list[Any]:
    """The condition of each picture; where the draw dropped it, that of the next draw which did not."""
    found: list[Any] = [None] * len(seeds)
    for attempt in range(_TRIES):
        drawn = encoder.draw(
            columns, [mix(s, _AGAIN, attempt) if attempt else s for s in seeds], stream=stream
        )
        found = [new if absent(old) else old for old, new in zip(found, drawn, strict=True)]
        if not any(absent(value) for value in found):
            break
    return found


def absent(value: Any) -> bool:
    """Whether a condition's value is its null."""
    return value is None or (isinstance(value, str) and not value)
