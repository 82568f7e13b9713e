"""A run as the doctor sees it: recipe, log, model, the newest checkpoint, and the data where they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from carrara.errors import UserError
from carrara.generation.model import Model, load_model
from carrara.tensors import under
from carrara.training import checkpoint
from carrara.training.batches import Feed
from carrara.training.condition_columns import derived_columns, reads_of
from carrara.training.devices import Placement
from carrara.training.diffusion_task import DiffusionTask
from carrara.training.metrics_log import CHECKPOINTS, MODEL, read_metrics
from carrara.training.recipe import DiffusionRecipe
from carrara.training.run import UNFINISHED
from carrara.training.validation_pictures import FixedPictures, fetch

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.dataset.loader import Loaded

LOOKED_AT = 16  # pictures


@dataclass(frozen=True)
class Saved:
    """Weights of a checkpoint by their names in the denoiser's module, raw and averaged."""

    raw: Mapping[str, Tensor]
    average: Mapping[str, Tensor]


class Patient:
    """The run of a diffusion model. ``trouble`` is why the data cannot be looked at as training did, or ""."""

    def __init__(self, folder: Path, recipe: DiffusionRecipe, dataset: Dataset | None) -> None:
        """UserError where the folder holds neither a model nor what stands for it while it is trained."""
        self.folder, self.recipe, self.dataset = folder, recipe, dataset
        self.placement = Placement.choose(precision=recipe.train.precision)
        base = next((folder / name for name in (MODEL, UNFINISHED) if (folder / name).is_dir()), None)
        if base is None:
            raise UserError(f"{folder} has no model yet: its training has not begun")
        self.finished = base.name == MODEL
        self.model: Model = load_model(base)
        if not self.finished and self.saved:
            fill(self.parts, {**self.saved.raw, **self.saved.average})
        self.model.to(self.placement.device)

    @property
    def parts(self) -> nn.ModuleDict:
        """Denoiser and conditions, by the names they have in a checkpoint."""
        return nn.ModuleDict({"network": self.model.network, "conditions": self.model.conditions})

    @cached_property
    def lines(self) -> list[dict[str, float]]:
        """The log."""
        return read_metrics(self.folder)

    @cached_property
    def saved(self) -> Saved | None:
        """The newest checkpoint that can be read."""
        found = checkpoint.newest_readable(self.folder / CHECKPOINTS, only=("module.", "average."))
        return found and Saved(*(under(f"{kind}.denoiser.", found.tensors) for kind in ("module", "average")))

    @cached_property
    def trouble(self) -> str:
        """Why there is no `task`, or ""."""
        if self.dataset is None:
            return "give the data set to look at it"
        try:
            feed = self._feed()
        except UserError as error:
            return str(error)
        if feed.parts[-1].buckets and not self.rows("held_out"):
            return "of pictures in buckets only held-out ones can be looked at, and there are none"
        return ""

    @cached_property
    def feed(self) -> Feed:
        """What training is fed; only where there is no `trouble`."""
        return self._feed()

    @cached_property
    def task(self) -> DiffusionTask:
        """The objective over the model; only where there is no `trouble`."""
        return self.task_of(self.model.network, self.model.conditions)

    def task_of(self, network: nn.Module, conditions: nn.ModuleDict) -> DiffusionTask:
        """The objective over other modules of the same shape."""
        assert self.dataset is not None
        assert self.model.autoencoder.scale is not None
        words = derived_columns(conditions, reads_of(self.recipe.model, self.dataset), self.dataset)
        return DiffusionTask(
            self.recipe,
            network,
            conditions,
            latents=self.feed.latents(),
            scale=self.model.autoencoder.scale,
            words=words,
            device=self.placement.device,
            factor=int(self.model.autoencoder.module.factor),  # type: ignore[arg-type]
        )

    def rows(self, split: str, count: int = LOOKED_AT) -> Sequence[int]:
        """The first rows of a split."""
        assert self.dataset is not None
        rows: list[int] = self.dataset.indices(split)[:count].tolist()
        return rows

    def loaded(self, rows: Sequence[int]) -> Loaded:
        """All columns at some rows, with seeds of their own."""
        assert self.dataset is not None
        return fetch(self.dataset, self.task, self.model.autoencoder, rows, self.recipe.train.seed)

    @cached_property
    def pictures(self) -> FixedPictures:
        """Held-out pictures, or those to train on where there are too few; only where there is no `trouble`."""
        # With buckets, latents as squares are there for held-out pictures alone.
        few = len(self.rows("held_out")) < 4 and not self.feed.parts[-1].buckets
        return FixedPictures.of(self.task, self.loaded(self.rows("train" if few else "held_out")))

    def losses(self, values: Mapping[str, Sequence[Any]] | None = None) -> float:
        """The mean error over fixed times with the model's weights as they are now."""
        self.parts.eval()
        found = self.pictures.losses(self.task, self.placement.autocast, values=values)
        return float(found.mean())

    def _feed(self) -> Feed:
        assert self.dataset is not None
        feed = Feed(self.recipe, self.dataset, self.model.autoencoder)
        feed.scaled()  # asks for the latents
        return feed


@torch.no_grad()
def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts weights by name into a module; UserError where they do not fit."""
    for key, value in module.state_dict().items():
        try:
            value.copy_(weights[key])
        except (KeyError, RuntimeError):
            raise UserError(f"the run's checkpoint does not fit its model: {key} differs") from None


def numbers_of(lines: Sequence[Mapping[str, float]], name: str) -> np.ndarray[Any, Any]:
    """A column of the log, where it is there."""
    return np.array([float(line[name]) for line in lines if name in line])
