"""Validation that means something: the loss at fixed times and fixed noise, and samples from fixed noise, over a run.

The training loss jumps from step to step with the pictures, times and noise that it happens to draw. Here all
three stay what they are, and pictures are held out, so that two numbers of a run, or of two runs on the same data,
can be compared.

How well the averaged weights do on held-out pictures while an autoencoder trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from carrara.errors import UserError
from carrara.generation.model import Model
from carrara.generation.png import MOST, save_samples
from carrara.generation.sample import generate, settings_for
from carrara.generation.values import Values
from carrara.metrics.pretrained_weights import VISIBLE_CHANNELS
from carrara.metrics.reconstruction import psnr, reconstruct
from carrara.tensors import under
from carrara.training.looks import Looks
from carrara.training.validation_pictures import FixedPictures, bin_times, fetch

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.dataset import Dataset
    from carrara.training.checkpoint import TrainingState
    from carrara.training.diffusion_task import DiffusionTask
    from carrara.training.recipe import AutoencoderRecipe, ValidationConfig


_LOOKS, _AT, _BEST, _BEST_LOOK, _BEST_AT = (
    f"validation.{word}" for word in ("looks", "at", "best", "best_look", "best_at")
)
_KNOWN = "validation.known."  # what was measured last, in the state's numbers


def timing(config: ValidationConfig, held_out: int) -> Looks:
    """When to look at so many held-out pictures. What is to be stopped by its looks needs all of them."""
    least = config.looks if config.patience else 2
    return Looks("validation", config.looks, least, config.share, config.passes(held_out))


class Validation:
    """Looks at the averaged weights at fixed shares of the budget; what it knows is in ``state.numbers``."""

    def __init__(
        self,
        config: ValidationConfig,
        task: DiffusionTask,
        dataset: Dataset,
        autoencoder: StoredAutoencoder,
        folder: Path,
    ) -> None:
        """``folder`` is the run's. UserError where it is to stop the run but no picture is held out."""
        self.config, self.task, self.dataset, self.autoencoder = config, task, dataset, autoencoder
        self.folder, self.held_out = folder, len(dataset.indices("held_out"))
        self.timing = timing(config, self.held_out)
        self._measures: dict[str, float] = {}
        if config.prompts and not any(encoder.form == "text" for encoder in task.conditions.values()):
            raise UserError("validation.prompts needs a model with a text condition, and this one has none")
        if config.patience and not self.held_out:
            raise UserError(
                f"validation.patience needs held-out pictures, and {dataset.path} has none: import with --held-out, "
                "or leave patience at 0"
            )

    def between(self, state: TrainingState) -> str:
        """Before a step, and once more after the last one: looks where it is time to; the note says what it saw."""
        numbers, note = state.numbers, ""
        if self.timing.due(state):
            with self.timing.look(state):
                note = self._look(state, first=_LOOKS not in numbers)
            if (found := numbers.get(_KNOWN + "held_out", math.inf)) < numbers.get(_BEST, math.inf):
                numbers.update({_BEST: found, _BEST_LOOK: numbers[_LOOKS], _BEST_AT: state.fraction})
        self._measures = _known(state) if state.unlogged(numbers.get(_AT, 0)) else {}
        return note

    def measures(self) -> Mapping[str, float]:
        """The held-out loss and its bins of time as last measured, until they are logged: each look once."""
        return self._measures

    def finished(self, state: TrainingState) -> str:
        """Why training should end now, or ""."""
        numbers, patience = state.numbers, self.config.patience
        waited = numbers.get(_LOOKS, 0) - numbers.get(_BEST_LOOK, 0)
        if not patience or _BEST not in numbers or waited < patience:
            return ""
        return (
            f"the held-out loss has not improved in {int(waited)} looks; the best was {numbers[_BEST]:.4f} "
            f"at {numbers.get(_BEST_AT, 0):.0%} of the budget"
        )

    def _look(self, state: TrainingState, *, first: bool) -> str:
        """Measures and samples with the averaged weights, and writes the run's page; returns the note."""
        from carrara.training.run_page import write_report

        numbers, words = state.numbers, []
        before = numbers.get(_BEST)
        part = self.timing.size(state)
        with state.averages["denoiser"].put_into(self.task.modules["denoiser"]):
            if self.held_out:
                for name, value in self._losses(state, math.ceil(self.config.pictures * part)).items():
                    numbers[_KNOWN + name] = value
            if self.config.samples and int(self.autoencoder.config.image_channels) <= MOST:
                self._sample(state, math.ceil(self.config.samples * part))
        if (found := numbers.get(_KNOWN + "held_out")) is not None:
            words.append(f"held-out loss {found:.4f}")
            if (free := numbers.get(_KNOWN + "held_out.unconditional")) is not None:
                words.append(f"unconditional {free:.4f}")
            if before is not None:
                words.append("the best so far" if found < before else f"the best was {before:.4f}")
        elif first:
            words.append("no pictures are held out, so no loss is validated (import with --held-out)")
        if first and part < 1:
            words.append(f"looks take {part:.0%} of the pictures that they would, as the budget is short")
        write_report(self.folder, now={"step": state.step, "seen": state.seen, **_known(state)})
        return ", ".join(words) or f"samples after {state.seen} pictures"

    def _losses(self, state: TrainingState, count: int) -> dict[str, float]:
        """The mean over the bins and each bin, with the conditions and without those that can be left out."""
        pictures, found = self._pictures.first(count), {}
        forms = {"held_out": pictures, "held_out.unconditional": pictures.free(self._conditions)}
        for name, form in forms.items():
            if form is None:
                continue
            errors = form.losses(
                self.task,
                state.placement.autocast,
                batch=min(64, self._at_once),
                threads=state.placement.parts,
            )
            if not torch.isfinite(errors).all():
                raise UserError(f"the {name} loss is no longer finite at {state.seen} pictures seen")
            found[name] = float(errors.mean())
            for time, error in zip(bin_times().tolist(), errors.tolist(), strict=True):
                found[f"{name}.t{time:.2f}"] = error
        return found

    def _sample(self, state: TrainingState, count: int) -> None:
        """The grid of so many pictures, as a PNG that says how it was made."""
        network = self.task.modules["denoiser"]
        assert isinstance(network, torch.nn.ModuleDict)
        model = Model(
            self.task.recipe.model,
            network["network"],
            self.task.conditions,
            self.autoencoder,
            passport={},
            parts=state.placement.parts,
        ).to(state.placement.device)
        wanted = self._wanted(count)
        settings = settings_for(model, {"steps": self.config.steps, "seed": self.task.recipe.train.seed})
        with state.placement.autocast():
            pictures = generate(model, wanted, settings, batch=self._at_once)
        words = {"seen": state.seen, **settings.model_dump(exclude_none=True)}
        words["asked"] = [
            {name: found[k] for name, found in wanted.asked.items() if isinstance(found[k], str | int)}
            for k in range(wanted.count)
        ]
        save_samples(list(pictures), self.folder, words, columns=min(len(pictures), 8))

    def _wanted(self, count: int) -> Values:
        """What the samples are to show: the held-out pictures' conditions, or the prompts given in the text's place."""
        prompts = self.config.prompts
        wanted = self._pictures.wanted(self._conditions, len(prompts) or count)
        if not prompts:
            return wanted
        texts = {name for name, encoder in self.task.conditions.items() if encoder.form == "text"}
        asked, free = (
            {name: list(islice(cycle(values), len(prompts))) for name, values in given.items()}
            for given in (wanted.asked, wanted.free)
        )
        return Values(len(prompts), asked | {name: list(prompts) for name in texts}, free)

    @property
    def _at_once(self) -> int:
        """Pictures: as many as the training has memory for."""
        train = self.task.recipe.train
        return max(1, train.batch // train.accumulate)

    @property
    def _conditions(self) -> Mapping[str, Any]:
        return self.task.recipe.model.conditions

    @cached_property
    def _pictures(self) -> FixedPictures:
        """Held-out ones; where there are none, those to train on, for their conditions only."""
        count = max(
            self.config.pictures if self.held_out else 0, self.config.samples, len(self.config.prompts)
        )
        rows = self.dataset.indices("held_out" if self.held_out else "train")[:count]
        loaded = fetch(self.dataset, self.task, self.autoencoder, rows.tolist(), self.task.recipe.train.seed)
        return FixedPictures.of(self.task, loaded)


def _known(state: TrainingState) -> dict[str, float]:
    """What was measured last."""
    return under(_KNOWN, state.numbers)


LOOKED_AT = 64  # pictures for PSNR, so that a look costs little
SHOWN, _PIXELS = 8, 2**19  # pictures in a drawing, fewer where they would have more pixels
COMPARED = 256  # pictures whose features are compared; too few held-out ones are filled up from training


class HeldOutJudge:
    """`discriminator.Judge` over a data set's held-out pictures; over training pictures where none are held out."""

    def __init__(self, recipe: AutoencoderRecipe, dataset: Dataset, module: Any, folder: Path) -> None:
        """``folder`` is the run's."""
        self.recipe, self.dataset, self.module, self.folder = recipe, dataset, module, folder

    def psnr(self, state: TrainingState) -> float:
        """Mean PSNR in dB of at most 64 pictures."""
        with state.averages["autoencoder"].put_into(self.module):
            return float(psnr(self._few, self._reconstructed(self._few, state)).clamp(max=100).mean())

    def distance(self, state: TrainingState) -> float | None:
        """Kernel distance between the features of pictures and of their reconstructions.

        None without a network for features, of pictures that it cannot be shown, and below two pictures.
        """
        from carrara.metrics.features import kernel_distance, load_features

        if self.recipe.network.image_channels not in VISIBLE_CHANNELS:
            return None
        try:
            network = load_features(None).to(state.placement.device)
        except UserError:
            return None
        originals = self._pictures(COMPARED, fill=True)
        if len(originals) < 2:
            return None
        with state.averages["autoencoder"].put_into(self.module):
            again = self._reconstructed(originals, state)
        return float(kernel_distance(network(originals), network(again), paired=True))

    def show(self, state: TrainingState) -> None:
        """Pictures above, below what comes back, as ``samples/SEEN.png``; not of more channels than a PNG has."""
        if self.recipe.network.image_channels > MOST:
            return
        originals = self._few[: max(1, min(SHOWN, _PIXELS // self.recipe.size**2))]
        with state.averages["autoencoder"].put_into(self.module):
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
