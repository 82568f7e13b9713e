"""How well the averaged weights do on held-out pictures while an autoencoder trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from carrara.errors import UserError
from carrara.evaluation.pretrained import VISIBLE_CHANNELS
from carrara.evaluation.reconstruction import psnr, reconstruct
from carrara.generation.pictures import MOST, save_samples

if TYPE_CHECKING:
    from carrara.data.table import Dataset
    from carrara.training.autoencoding import AutoencoderRecipe
    from carrara.training.loop import TrainingState

LOOKED_AT = 64  # pictures for PSNR, so that a look costs little
SHOWN, _PIXELS = 8, 2**19  # pictures in a drawing, fewer where they would have more pixels
COMPARED = 256  # pictures whose features are compared; too few held-out ones are filled up from training


class HeldOutJudge:
    """`adversary.Judge` over a data set's held-out pictures; over training pictures where none are held out."""

    def __init__(self, recipe: AutoencoderRecipe, dataset: Dataset, module: Any, folder: Path) -> None:
        """``folder`` is the run's."""
        self.recipe, self.dataset, self.module, self.folder = recipe, dataset, module, folder

    def psnr(self, state: TrainingState) -> float:
        """Mean PSNR in dB of at most 64 pictures."""
        with self._averaged(state):
            return float(psnr(self._few, self._reconstructed(self._few, state)).clamp(max=100).mean())

    def distance(self, state: TrainingState) -> float | None:
        """Kernel distance between the features of pictures and of their reconstructions.

        None without a network for features, of pictures that it cannot be shown, and below two pictures.
        """
        from carrara.evaluation.features import kernel_distance, load_features

        if self.recipe.network.image_channels not in VISIBLE_CHANNELS:
            return None
        try:
            network = load_features(None).to(state.placement.device)
        except UserError:
            return None
        originals = self._pictures(COMPARED, fill=True)
        if len(originals) < 2:
            return None
        with self._averaged(state):
            again = self._reconstructed(originals, state)
        return float(kernel_distance(network(originals), network(again), paired=True))

    def show(self, state: TrainingState) -> None:
        """Pictures above, below what comes back, as ``samples/SEEN.png``; not of more channels than a PNG has."""
        if self.recipe.network.image_channels > MOST:
            return
        originals = self._few[: max(1, min(SHOWN, _PIXELS // self.recipe.size**2))]
        with self._averaged(state):
            again = self._reconstructed(originals, state)
        save_samples([*originals, *again], self.folder, {"seen": state.seen}, columns=len(originals))

    @cached_property
    def _few(self) -> Tensor:
        return self._pictures(LOOKED_AT, fill=False)

    def _pictures(self, count: int, *, fill: bool) -> Tensor:
        rows = list(self.dataset.indices("held_out")[:count])
        if not rows or (fill and len(rows) < count):
            rows += list(self.dataset.indices("train")[: count - len(rows)])
        recipe = self.recipe
        return self.dataset.pictures(rows, recipe.size, recipe.network.image_channels, bits=recipe.bits)

    def _reconstructed(self, pictures: Tensor, state: TrainingState) -> Tensor:
        return reconstruct(self.module, pictures, state.placement.device, state.placement.autocast)

    @contextmanager
    def _averaged(self, state: TrainingState) -> Iterator[None]:
        """The module with its averaged weights, in evaluation; afterwards as it was, to the bit."""
        parameters = dict(self.module.named_parameters())
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        training = self.module.training
        state.averages["autoencoder"].copy_to(self.module)
        self.module.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    parameters[name].copy_(value)
            self.module.train(training)
