"""A patch discriminator: says of every patch of a picture how real it looks (Isola et al. 2017, section 3.2.2).

The adversarial part of stage one: begins once reconstruction has settled, and is undone if it does harm.

Rombach et al. 2022, appendix G; the adaptive weight is that of Esser et al. 2021, equation 7. That it waits for
reconstruction instead of a step number, and that held-out pictures decide whether it may stay, is Carrara's own.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.training import checkpoint

if TYPE_CHECKING:
    from carrara.training.checkpoint import TrainingState
    from carrara.training.recipe import DiscriminatorConfig, TrainConfig


class Discriminator(nn.Module):
    """image [b c h w] in [-1, 1] -> logits [b 1 h' w'], one for each patch; higher is more real.

    ``layers`` halvings (70 pixels a patch with three), ``channels`` features at first, doubled up to eight times.
    With 3, 64 and three image channels it has the published 2,765,633 weights.
    """

    def __init__(self, image_channels: int, layers: int = 3, channels: int = 64) -> None:
        super().__init__()
        widths = [channels * min(2**n, 8) for n in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(image_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for index, (inner, outer) in enumerate(itertools.pairwise(widths)):
            stride = 2 if index < layers - 1 else 1
            norm = nn.BatchNorm2d(outer)
            nn.init.normal_(norm.weight, 1.0, 0.02)
            parts += [nn.Conv2d(inner, outer, 4, stride, 1, bias=False), norm, nn.LeakyReLU(0.2)]
        parts.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*parts)
        for part in self.layers:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Logits, float32."""
        out: Tensor = self.layers(image).float()
        return out


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss (Lim & Ye 2017): real ones above 1, fakes below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def non_saturating(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss (Goodfellow et al. 2014): cross-entropy."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def fooled(kind: str, fake: Tensor) -> Tensor:
    """The autoencoder's loss against either: -logits for the hinge, -log(sigmoid) for the other."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


LOSSES = {"hinge": hinge, "non_saturating": non_saturating}


def gradient_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018, equation 9): half the squared gradient at real pictures, mean over them."""
    with torch.autocast(real.device.type, enabled=False):
        at = real.detach().float().requires_grad_(True)
        (slope,) = torch.autograd.grad(discriminator(at).mean((1, 2, 3)).sum(), at, create_graph=True)
    return 0.5 * slope.square().flatten(1).sum(1).mean()


SNAPSHOT = "before_discriminator"


class Judge(Protocol):
    """Looks at the averaged weights with held-out pictures."""

    def psnr(self, state: TrainingState) -> float:
        """Mean PSNR in dB."""
        ...

    def distance(self, state: TrainingState) -> float | None:
        """Kernel distance of features; None where no network for them is at hand."""
        ...

    def show(self, state: TrainingState) -> None:
        """Draws some pictures and their reconstructions for the run's page."""
        ...


class Adversary:
    """Discriminator, phase and judgement. What must survive a kill lies in ``state.numbers`` and in a snapshot.

    Phases: waiting ("began" is absent), playing, and over ("over" is 1) once it was undone.
    """

    def __init__(
        self, config: DiscriminatorConfig, module: Discriminator, judge: Judge, folder: Path
    ) -> None:
        self.config, self.module, self.judge, self.folder = config, module, judge, folder
        self.factor = 0.0  # of its weight, from 0 to 1, for the step to come
        self.scale = 0.0  # the adaptive weight of the last step

    def train_config(self, config: TrainConfig) -> TrainConfig:
        """How the discriminator is trained."""
        own = {"optimizer": "adamw", "lr": self.config.lr, "betas": (0.5, 0.9), "weight_decay": 0.0}
        return config.model_copy(update=own)

    # --- losses ---

    def fooling(self, picture: Tensor, reconstruction: Tensor, last: Tensor) -> Tensor:
        """The autoencoder's term: ``picture`` against the discriminator, weighed against ``reconstruction``.

        ``last`` are the decoder's last weights, where the two gradients are compared.
        """
        self.module.requires_grad_(False)
        loss = fooled(self.config.loss, self.module(picture))
        self.module.requires_grad_(True)
        (ours,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
        (theirs,) = torch.autograd.grad(loss, last, retain_graph=True)
        scale = (ours.norm() / (theirs.norm() + 1e-4)).clamp(0, 1e4).detach()
        self.scale = float(scale)
        term: Tensor = self.factor * self.config.weight * scale * loss
        return term

    def losses(self, real: Tensor, fake: Tensor) -> Mapping[str, Tensor]:
        """The discriminator's terms."""
        terms = {"discriminator": LOSSES[self.config.loss](self.module(real), self.module(fake))}
        if self.config.gradient_penalty:
            terms["gradient_penalty"] = self.config.gradient_penalty * gradient_penalty(self.module, real)
        return terms

    # --- phases ---

    def between(self, state: TrainingState, psnr: float | None) -> str:
        """Before a step: begins, ramps, or undoes; ``psnr`` is the held-out one where it was measured just now."""
        numbers, note = state.numbers, ""
        if not numbers.get("over"):
            if "began" not in numbers:
                note = self._begin(state, psnr) if psnr is not None and self._settled(state, psnr) else ""
            elif psnr is not None and psnr < numbers["before"] - self.config.tolerance:
                note = self._undo(state, psnr)
        playing = "began" in numbers and not numbers.get("over")
        ramp = max(self.config.ramp, 1e-9)
        self.factor = min(1.0, (state.fraction - self._began(state)) / ramp + 1e-3) if playing else 0.0
        return note

    def finish(self, state: TrainingState, psnr: float) -> str:
        """After the last step: what it made stays only if PSNR held and, where measurable, features came closer.

        Returns what became of it.
        """
        numbers = state.numbers
        if "began" not in numbers:
            return "the discriminator never began"
        if numbers.get("over"):
            return f"the discriminator was undone: {self._fall(state)}"
        if psnr < numbers["before"] - self.config.tolerance:
            return self._undo(state, psnr)
        words = f"the discriminator stays: held-out PSNR {numbers['before']:.2f} -> {psnr:.2f} dB"
        if (distance := self.judge.distance(state)) is not None and "distance" in numbers:
            if distance >= numbers["distance"]:
                numbers["distance_after"] = distance
                return self._undo(state, psnr)
            words += f", feature distance {numbers['distance']:.3f} -> {distance:.3f}"
        return words

    def _settled(self, state: TrainingState, psnr: float) -> bool:
        gained = psnr - state.numbers.get("psnr", float("-inf"))
        return gained < self.config.settled or state.fraction >= self.config.latest

    @staticmethod
    def _began(state: TrainingState) -> float:
        """The share of the budget, as it is now, at which it began."""
        numbers = state.numbers
        if "began_step" not in numbers:  # of a run of an earlier version
            return numbers["began"]
        return state.fraction_at(spent=numbers["began_spent"], step=int(numbers["began_step"]))

    def _begin(self, state: TrainingState, psnr: float) -> str:
        # What lies there is of a run that was killed before its next checkpoint, and took another course.
        shutil.rmtree(self.folder / SNAPSHOT, ignore_errors=True)
        state.save(self.folder / SNAPSHOT)
        state.numbers.update(began=state.fraction, before=psnr, snapshot=state.seen)
        state.numbers.update(began_step=state.step, began_spent=state.spent)
        if (distance := self.judge.distance(state)) is not None:
            state.numbers["distance"] = distance
        return f"the discriminator begins: held-out PSNR is {psnr:.2f} dB"

    def _undo(self, state: TrainingState, psnr: float) -> str:
        path = checkpoint.place(self.folder / SNAPSHOT, int(state.numbers["snapshot"]))
        state.roll_back(path)
        state.numbers.update(over=1.0, after=psnr)
        return f"the discriminator was undone, all is as it was before it: {self._fall(state)}"

    @staticmethod
    def _fall(state: TrainingState) -> str:
        numbers = state.numbers
        if "distance_after" in numbers:
            before, after = numbers["distance"], numbers["distance_after"]
            return f"the feature distance did not improve ({before:.3f} to {after:.3f})"
        return f"held-out PSNR fell from {numbers['before']:.2f} to {numbers['after']:.2f} dB"


def build(config: DiscriminatorConfig, image_channels: int) -> Discriminator:
    """The network, freshly initialised from torch's global generator."""
    return Discriminator(image_channels, config.layers, config.channels)
