"""Whether the network can learn, whether it listens to its conditions, whether its average kept up."""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from carrara.dataset.loader import Loaded
from carrara.doctor.finding import Check, Finding, not_looked
from carrara.doctor.opened_run import Patient, fill
from carrara.errors import UserError
from carrara.generation.model import build_network, joined
from carrara.tensors import mix, sample_noise
from carrara.training.checkpoint import TrainingState
from carrara.training.loop import train
from carrara.training.task import Task
from carrara.training.validation_pictures import FixedPictures, absent

if TYPE_CHECKING:
    from carrara.training.diffusion_task import DiffusionTask

Values = Mapping[str, Sequence[Any]]

_BATCH, _STEPS = 8, 60
_LEARNT = 0.85  # of the first loss: a network that learns is far below it after so many steps on one batch
_HEARD = 2e-3  # of the output's size: a condition that changes less is not listened to
_HELPS = 0.999  # of the loss with wrong conditions
_BEHIND = 1.1  # times the raw weights' loss


def average(patient: Patient) -> Check:
    """The averaged weights should do at least as well as those of the last step (Karras et al. 2024, section 3)."""
    name, config = "averaged weights", patient.recipe.train
    if patient.trouble:
        return not_looked(name, patient.trouble)
    if patient.saved is None:
        return not_looked(name, "there is no checkpoint with both")
    try:
        fill(patient.parts, patient.saved.raw)
        raw = patient.losses()
        fill(patient.parts, {**patient.saved.raw, **patient.saved.average})
        averaged = patient.losses()
    except UserError as error:
        return not_looked(name, str(error))
    steps = int(patient.lines[-1]["step"]) if patient.lines else 0
    saw = f"loss {averaged:.4g} with the average of length {config.ema:g}, {raw:.4g} without, after {steps} steps"
    if averaged <= _BEHIND * raw:
        return Check(name, saw)
    words = f"the average is behind the weights: its loss is {averaged:.4g}, theirs {raw:.4g}"
    fix = (
        f"train longer, or lower train.ema (now {config.ema:g}); for this run `carrara average` with a shorter "
        "--length, where it was trained with train.posthoc"
    )
    return Check(name, saw, [Finding("average_behind", words, fix)])


def conditions(patient: Patient) -> Check:
    """Right, wrong and no conditions should give different outputs, and the right ones the lowest loss."""
    name = "conditions"
    if not patient.model.conditions:
        return not_looked(name, "the model has none")
    if patient.trouble:
        return not_looked(name, patient.trouble)
    pictures = patient.pictures
    without = pictures.free(patient.recipe.model.conditions)
    wrong = {n: [*found[1:], found[0]] for n, found in pictures.values.items()}
    right_loss, wrong_loss = patient.losses(), patient.losses(wrong)
    heard = _difference(patient, pictures.values, wrong)
    saw = f"loss {right_loss:.4g} with them, {wrong_loss:.4g} with those of other pictures"
    if without is not None:
        saw += f", {patient.losses(without.values):.4g} without"
        heard = max(heard, _difference(patient, pictures.values, without.values))
    saw += f"; they change the output by {heard:.2%}"
    found = []
    empty = [n for n, values in pictures.values.items() if all(absent(value) for value in values)]
    if empty:
        words = f"none of {len(pictures)} pictures has a value for {empty[0]}"
        fix = "import the data with its captions or classes, or leave the condition out of the recipe"
        found.append(Finding("empty_condition", words, fix))
    elif heard < _HEARD:
        words = f"what is asked for changes the output by only {heard:.2%}: the condition is ignored"
        first = next(iter(pictures.values))
        fix = (
            "train longer; see that captions say what is in the pictures; raise times_shift, for what a picture shows "
            f"is decided in the noise; lower model.conditions.{first}.dropout if it is above 0.2"
        )
        found.append(Finding("condition_ignored", words, fix))
    elif right_loss > _HELPS * wrong_loss:
        words = f"the right conditions help no more than those of other pictures: {right_loss:.4g} and {wrong_loss:.4g}"
        fix = "train longer; if it stays so, captions or classes do not say what is in the pictures"
        found.append(Finding("condition_useless", words, fix, serious=False))
    return Check(name, saw, found)


def overfits(patient: Patient, *, seconds: float = 60.0) -> Check:
    """A new network by the recipe, on one batch with one noise: its loss must fall (Karpathy 2019's first advice)."""
    name = "one batch"
    if patient.trouble:
        return not_looked(name, patient.trouble)
    lr = patient.recipe.train.lr
    first = _course(patient, lr, seconds)
    fell = f"loss {first[0]:.4g} to {first[-1]:.4g}"
    saw = f"{fell} in {len(first)} steps on {_BATCH} pictures at a learning rate of {lr:g}"
    if _fell(first):
        return Check(name, saw)
    for factor, words in ((0.1, "lower"), (10.0, "raise"), (0.01, "lower")):
        if _fell(other := _course(patient, factor * lr, seconds)):
            found = Finding(
                "learning_rate",
                f"one batch is not learned at a learning rate of {lr:g} ({fell}), but is at {factor * lr:g} (to "
                f"{other[-1]:.4g})",
                f"{words} train.lr to about {factor * lr:g}",
            )
            return Check(name, saw, [found])
    found = Finding(
        "cannot_learn",
        f"one batch is not learned at any learning rate near {lr:g}: {fell}",
        "the network cannot do it: make it larger (model.denoiser), or look at the latents above",
    )
    return Check(name, saw, [found])


def _fell(losses: list[float]) -> bool:
    return bool(np.isfinite(losses[-1]) and losses[-1] < _LEARNT * losses[0])


def _course(patient: Patient, lr: float, seconds: float) -> list[float]:
    """The losses of a new network over a few steps on one batch; infinite at last where it came apart."""
    recipe = patient.recipe
    torch.manual_seed(recipe.train.seed)
    # Conditions as they are: what matters is whether the denoiser can follow.
    encoders = copy.deepcopy(patient.model.conditions).cpu()
    channels = int(patient.model.autoencoder.module.channels)  # type: ignore[arg-type]
    network = build_network(recipe.model, encoders, channels)
    objective = patient.task_of(network, encoders)
    held = patient.feed.parts[-1].buckets
    rows = patient.rows("held_out" if held else "train", _BATCH)
    task = _OneBatch(objective, FixedPictures.of(objective, patient.loaded(rows)))
    config = recipe.train.model_copy(
        update={
            "lr": lr, "budget": f"{_STEPS}steps", "warmup": min(10, recipe.train.warmup), "accumulate": 1,
            "lr_schedule": "constant", "compile": False, "posthoc": (), "ema_lengths": (),
        }
    )  # fmt: skip
    state = TrainingState(task.modules, config, patient.placement)
    losses: list[float] = []
    began = time.monotonic()
    try:
        with closing(_again(len(rows))) as batches:
            for report in train(task, batches, state):
                losses += [sum(report.losses.values())] if report.losses else []
                if time.monotonic() - began > seconds:
                    break
    except UserError:  # no longer finite
        losses.append(float("inf"))
    return losses


class _OneBatch(Task):
    """A `Task` that sees the same pictures, times and noise in every step."""

    def __init__(self, task: DiffusionTask, pictures: FixedPictures) -> None:
        self.task, self.pictures = task, pictures
        self.modules = task.modules
        self.latent = latent = pictures.latent.to(task.device)
        self.noise = sample_noise([mix(s, 0) for s in pictures.seeds], latent.shape[1:]).to(task.device)
        self.times = ((torch.arange(len(latent)) + 0.5) / len(latent)).to(task.device)

    def losses(self, update: str, batch: Loaded) -> Mapping[str, Tensor]:
        """The error of the output."""
        context = joined(self.task.conditions, self.pictures.values, self.pictures.size, self.task.device)
        loss = self.task.diffusion.loss(self.latent, self.noise, self.times, context)
        return {"denoising": loss.mean()}


def _again(pictures: int) -> Generator[Loaded, None, None]:
    """Batches that say only how many pictures there are."""
    seen = 0
    while True:
        yield Loaded(np.arange(pictures), seen, np.zeros(pictures, np.uint64), {})
        seen += pictures


@torch.no_grad()
def _difference(patient: Patient, one: Values, other: Values) -> float:
    """How much outputs differ between two sets of conditions, in parts of the output's size; where it is most."""
    task, pictures = patient.task, patient.pictures
    patient.parts.eval()
    latent = pictures.latent.to(task.device)
    noise = sample_noise(pictures.seeds, latent.shape[1:]).to(task.device)
    found = []
    for t in (0.5, 0.8, 0.98):
        time_ = torch.full((len(latent),), t, device=task.device, dtype=torch.float64)
        outs = []
        for values in (one, other):
            context = joined(task.conditions, values, pictures.size, task.device)
            schedule = task.diffusion.schedule
            z = float(schedule.alpha(time_[0])) * latent + float(schedule.sigma(time_[0])) * noise
            outs.append(task.diffusion.output(z, time_, context).float())
        found.append(float((outs[0] - outs[1]).norm() / outs[0].norm().clamp_min(1e-12)))
    return max(found)
