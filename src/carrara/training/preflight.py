"""Before step one: what a training will take of memory, disk and time, and whether this machine has it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.conditions.contract import Latent
from carrara.data.loader import IN_MEMORY, Loaded
from carrara.errors import UserError
from carrara.evaluation.embedders.encode import embedded
from carrara.evaluation.embedders.opening import open_embedder
from carrara.generation.model import latent_of
from carrara.training.autoencoding import AutoencoderRecipe
from carrara.training.budget import Budget
from carrara.training.conditioning import TrainingRows
from carrara.training.contrasting import ContrastiveRecipe, Pairs, Rows
from carrara.training.diffusing import DiffusionRecipe
from carrara.training.feed import check_size, multiple_of
from carrara.training.imagined import Imagined, imagine
from carrara.training.loop import TrainConfig, TrainingState, train
from carrara.training.machine import Memory, disk_free, memory, resident
from carrara.training.parallel import Placement
from carrara.training.rehearsal import (
    AutoencoderRehearsal,
    ContrastiveRehearsal,
    DiffusionRehearsal,
    MadeUp,
    Rehearsal,
    contexts,
    learn,
)

if TYPE_CHECKING:
    from carrara.data.table import Dataset

Recipe = AutoencoderRecipe | ContrastiveRecipe | DiffusionRecipe

_PART = 0.9  # of the free memory that a suggestion fills
_LONGEST = 60.0  # seconds that the first step of a trial may take, by its FLOPs
_SCORES = 8  # tables of a batch's scores, float32, that a contrastive loss and its gradient have at once
_CHECKPOINTS = 2  # besides those kept: the best one, and the one that is being written


@dataclass(frozen=True)
class Subject:
    """What is planned: a recipe with all that its networks are fitted to."""

    recipe: Recipe
    latent: Latent | None
    size: int
    dataset: Dataset | None = None
    autoencoder: StoredAutoencoder | None = None

    @staticmethod
    def of(
        recipe: Recipe,
        dataset: Dataset | None,
        autoencoder: StoredAutoencoder | None,
        latent: tuple[int, int, int] | None,
    ) -> Subject:
        """``latent`` [c h w] stands for an autoencoder of factor 8; UserError where neither is there but needed."""
        if isinstance(recipe, AutoencoderRecipe):
            return Subject(recipe, None, recipe.size, dataset)
        if isinstance(recipe, ContrastiveRecipe):
            return Subject(recipe, None, 0, dataset)
        if recipe.pixels:
            autoencoder = recipe.pixels.autoencoder()
        if autoencoder:
            size = recipe.resolutions[-1].size if recipe.resolutions else autoencoder.size
            check_size(size, multiple_of(recipe, autoencoder))
            channels = int(autoencoder.module.channels)  # type: ignore[arg-type]
            scale = autoencoder.scale or LatentScale(torch.zeros(channels), torch.ones(channels))
            autoencoder = replace(autoencoder, size=size, scale=scale)  # none is measured before training
            return Subject(recipe, latent_of(autoencoder), size, dataset, autoencoder)
        if latent is None:
            raise UserError(
                "this recipe works on latents: give its --autoencoder, or their shape as --latent, e.g. 4x64x64"
            )
        channels, height, width = latent
        if height != width:
            raise UserError(f"--latent is {channels}x{height}x{width}; expected a square one")

        def encode(image: Tensor) -> Tensor:
            return image.new_zeros(len(image), channels, image.shape[2] // 8, image.shape[3] // 8)

        return Subject(recipe, Latent(channels, 8, 3, 8, encode), 8 * height, dataset)


@dataclass(frozen=True)
class Trial:
    """Pictures a second, how it was found, and bytes at the peak where they were measured."""

    rate: float
    words: str
    peak: int | None = None


@dataclass(frozen=True)
class Plan:
    """All figures; ``document`` is their form as JSON. ``refusals`` say what cannot work, with the numbers."""

    parameters: Mapping[str, int]
    trained: int
    step: Imagined
    memory: Memory
    batch: int
    accumulate: int
    fits: Sequence[tuple[int, int]]
    disk: Mapping[str, int]
    disk_free: int
    trial: Trial
    seconds: float
    seen: float
    pictures: int | None
    notes: Sequence[str] = ()
    refusals: Sequence[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Bytes at the peak of a step as configured."""
        return self.step.peak(self.batch // self.accumulate, self.accumulate)

    def document(self) -> dict[str, Any]:
        """Ready for JSON; bytes, seconds, pictures."""
        return {
            "parameters": dict(self.parameters),
            "trained_parameters": self.trained,
            "flops_a_step": round(self.step.flops * self.batch),
            "memory": {
                "kind": self.memory.kind,
                "free": self.memory.free,
                "weights": self.step.weights,
                "averages": self.step.averages,
                "optimizer": self.step.optimizer,
                "gradients": self.step.gradients,
                "activations": round(self.step.activations * self.batch / self.accumulate),
                "peak": self.peak,
                "peak_measured": self.trial.peak,
            },
            "batch": self.batch,
            "accumulate": self.accumulate,
            "fits": [{"batch": batch, "accumulate": parts} for batch, parts in self.fits],
            "disk": {**self.disk, "free": self.disk_free},
            "rate": self.trial.rate,
            "rate_from": self.trial.words,
            "seconds": self.seconds,
            "seen": round(self.seen),
            "epochs": self.seen / self.pictures if self.pictures else None,
            "pictures": self.pictures,
            "notes": list(self.notes),
            "refusals": list(self.refusals),
        }


def plan(subject: Subject, *, seconds: float = 10.0, place: Path = Path()) -> Plan:
    """All of it; a trial of ``seconds`` (0 is none) where the step fits. ``place`` is where the run will be written.

    UserError where the recipe does not fit together, as training would raise it.
    """
    recipe, config = subject.recipe, subject.recipe.train
    placement = Placement.choose(precision=config.precision)
    build, notes = _rehearsal(subject, placement)
    one = imagine(build, config, placement)
    pairwise = isinstance(recipe, ContrastiveRecipe)
    step = _with_scores(one, config.batch) if pairwise else one
    parameters = dict(step.parameters)
    if subject.autoencoder and not getattr(recipe, "pixels", None):
        parameters["autoencoder"] = sum(p.numel() for p in subject.autoencoder.module.parameters())
    free = memory(placement.device)
    kept = (
        _kept_pictures(subject) if placement.device.type == "cpu" else 0
    )  # a GPU's memory does not hold them
    needed = step.peak(config.batch // config.accumulate, config.accumulate) + kept
    fits = _fitting(one, config.batch, free.free - kept, pairwise=pairwise)
    disk = _disk(subject, step)
    refusals = []
    if needed > free.free:
        refusals.append(_too_large(one, config, needed, free, fits))
    if (wanted := sum(disk.values())) > (space := disk_free(place)):
        refusals.append(f"{_bytes(wanted)} of disk are needed, {_bytes(space)} are free at {place.resolve()}")
    try:
        trial = _trial(subject, step, placement, seconds if not refusals else 0.0)
    except torch.OutOfMemoryError:
        refusals.append(
            f"the trial ran out of memory, with {_bytes(free.free)} of {free.kind} free before it"
        )
        trial = _trial(subject, step, placement, 0.0)
    budget = Budget.parse(config.budget)
    if budget.steps:
        seen = float(budget.steps * config.batch)
        took = seen / trial.rate
    else:
        took = budget.seconds or 0.0
        seen = took * trial.rate
    pictures = len(_trained_on(subject.recipe, subject.dataset)) if subject.dataset else None
    return Plan(
        parameters,
        step.gradients // 4,
        step,
        free,
        config.batch,
        config.accumulate,
        fits,
        disk,
        space,
        trial,
        took,
        seen,
        pictures,
        notes,
        refusals,
    )


def _rehearsal(subject: Subject, placement: Placement) -> tuple[Callable[[], Rehearsal], list[str]]:
    """What builds the rehearsal, once; and what was assumed. Conditions learn here what they need of the data."""
    recipe, latent, size = subject.recipe, subject.latent, subject.size
    if isinstance(recipe, AutoencoderRecipe):
        return lambda: AutoencoderRehearsal(recipe, placement.device), []
    if isinstance(recipe, ContrastiveRecipe):
        chosen = recipe
        widths = open_embedder(recipe.pictures).width, open_embedder(recipe.texts).width
        notes = ["pictures and captions are embedded once before; that takes time of its own (data encode)"]
        return lambda: ContrastiveRehearsal(chosen, *widths, placement.device), notes
    assert latent is not None
    data: Any = TrainingRows(subject.dataset) if subject.dataset else MadeUp()
    conditions, notes = learn(recipe.model, data, latent)
    if subject.dataset is None and recipe.model.conditions:
        notes.append("no data set is given: its captions and classes are made up")
    conditions.to(placement.device)
    context = contexts(conditions, (size, size), placement.device)
    model = recipe
    return lambda: DiffusionRehearsal(model, conditions, context, latent, size, placement.device), notes


def _trained_on(recipe: Recipe, dataset: Dataset) -> Rows:
    """The rows that it learns from."""
    if isinstance(recipe, ContrastiveRecipe):
        return Pairs(recipe, dataset).rows("train")
    return dataset.indices("train")


def _with_scores(step: Imagined, batch: int) -> Imagined:
    """Each of a batch is compared with each: its scores grow with its square, which a few pictures do not show."""
    scores = _SCORES * batch**2 * 4
    return replace(step, least=step.least + scores, base=step.base + scores)


def _fitting(step: Imagined, batch: int, free: int, *, pairwise: bool = False) -> list[tuple[int, int]]:
    """(batch, accumulate) that fit, with as large parts as do: the recipe's batch, and the largest power of two.

    A ``pairwise`` step compares each of its batch with each, so it has one part and two of them at the least.
    """

    def peak(batch: int, parts: int) -> int:
        return (_with_scores(step, batch) if pairwise else step).peak(batch // parts, parts)

    found = []
    room = _PART * free
    splits = [n for n in range(1, 2 if pairwise else batch + 1) if batch % n == 0 and peak(batch, n) <= room]
    if splits:
        found.append((batch, splits[0]))
    largest = max((2**k for k in range(int(pairwise), 17) if peak(2**k, 1) <= room), default=0)
    if largest and (largest, 1) not in found:
        found.append((largest, 1))
    return found


def _too_large(
    step: Imagined, config: TrainConfig, needed: int, free: Memory, fits: Sequence[tuple[int, int]]
) -> str:
    """The refusal, with what would fit."""
    words = f"a step needs {_bytes(needed)}, {_bytes(free.free)} of {free.kind} are free"
    if fits and fits[0][0] == config.batch:
        return f"{words}: take --set train.accumulate={fits[0][1]}"
    if fits:
        return f"{words}: take --set train.batch={fits[0][0]}"
    words += f"; a single picture at a time still needs {_bytes(step.peak(1, config.batch))}"
    if not config.checkpointing and step.floor < free.free:
        return f"{words}: try --set train.checkpointing=true"
    return (
        f"{words}, of which weights, their averages, gradients and the optimizer alone are {_bytes(step.floor)}: "
        "take a smaller network, or a larger machine"
    )


def _kept_pictures(subject: Subject) -> int:
    """Bytes of decoded pictures that the loader keeps in RAM, where it feeds pictures; or of vectors."""
    recipe, dataset = subject.recipe, subject.dataset
    if dataset is None or (isinstance(recipe, DiffusionRecipe) and not recipe.pixels):
        return 0
    if isinstance(recipe, ContrastiveRecipe):
        pairs = Pairs(recipe, dataset)
        numbers = sum(embedder.width for embedder, _ in pairs.needed())
        size = len(pairs.rows("train")) * numbers * 2
        return size if size <= IN_MEMORY else 0
    channels = (
        recipe.network.image_channels
        if isinstance(recipe, AutoencoderRecipe)
        else recipe.pixels.channels
        if recipe.pixels
        else 3
    )
    size = len(dataset.indices("train")) * int(channels) * subject.size**2
    return size if size <= IN_MEMORY else 0


def _disk(subject: Subject, step: Imagined) -> dict[str, int]:
    """Bytes that the run will write, by what for."""
    recipe, config = subject.recipe, subject.recipe.train
    one = step.weights + step.averages + step.optimizer
    found = {"checkpoints": one * (config.keep + _CHECKPOINTS), "model": step.weights}
    if config.posthoc:
        found["snapshots"] = step.weights // 2 * len(config.posthoc) * config.snapshots
    if isinstance(recipe, DiffusionRecipe) and not recipe.pixels and subject.dataset and subject.latent:
        found["latents"] = _latents(recipe, subject.dataset, subject)
    if isinstance(recipe, ContrastiveRecipe) and subject.dataset:
        needed = Pairs(recipe, subject.dataset).needed()
        lacking = [embedder for embedder, of in needed if embedded(subject.dataset, embedder, of) is None]
        found["vectors"] = len(subject.dataset) * sum(embedder.width for embedder in lacking) * 2
    return found


def _latents(recipe: DiffusionRecipe, dataset: Dataset, subject: Subject) -> int:
    """Bytes of latents that are not there yet: a mean and a spread in 16 bits for each number and variant."""
    from carrara.data.latents import encoded, variants

    assert subject.latent is not None
    wanted = variants(recipe.flip, recipe.crops)
    if subject.autoencoder and encoded(dataset, subject.autoencoder, wanted) is not None:
        return 0
    side = subject.size // subject.latent.factor
    return len(dataset) * len(wanted) * 2 * subject.latent.channels * side**2 * 2


# --- the trial ---


def _trial(subject: Subject, step: Imagined, placement: Placement, seconds: float) -> Trial:
    """Real steps of the real loop on random data, nothing written; else a rate by FLOPs, and why."""
    speed = _speed(placement)
    config = subject.recipe.train
    one = step.flops / speed  # seconds a picture at the very least
    if not seconds:
        return Trial(1 / one, f"from its FLOPs at {speed / 1e9:.0f} GFLOP/s, no trial")
    if one > _LONGEST:
        return Trial(
            1 / one, f"from its FLOPs at {speed / 1e9:.0f} GFLOP/s: a trial would take {one:.0f} s a picture"
        )
    part = config.batch // config.accumulate
    batch = config.batch if one * config.batch < seconds else max(1, min(part, int(seconds / 3 / one)))
    changes = {"budget": f"{seconds}s", "batch": batch, "warmup": 0}
    if batch != config.batch:
        changes["accumulate"] = 1
    before = resident()
    if placement.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(placement.device)
    torch.manual_seed(config.seed)
    rehearsal = _rehearsal(subject, placement)[0]()
    state = TrainingState(rehearsal.modules, config.model_copy(update=changes), placement)
    marks: list[tuple[int, float]] = []
    with closing(_random(batch)) as batches:
        marks.extend((r.seen, r.spent) for r in train(rehearsal, batches, state) if r.losses)
    skipped = min(2, len(marks) - 1)  # the first steps are slow
    (seen0, spent0), (seen, spent) = (marks[skipped - 1] if skipped else (0, 0.0)), marks[-1]
    counted = f"{len(marks)} {'step' if len(marks) == 1 else 'steps'}"
    fewer = f" of {batch} {'picture' if batch == 1 else 'pictures'}" if batch != config.batch else ""
    words = f"measured over {spent:.1f} s, {counted}{fewer}"
    peak = _measured(placement, before) if batch == config.batch else None
    return Trial((seen - seen0) / max(1e-9, spent - spent0), words, peak)


def _measured(placement: Placement, before: int | None) -> int | None:
    """Bytes at the peak of the trial, where this can be told."""
    if placement.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(placement.device))
    now = resident("VmHWM")
    return max(0, now - before) if now is not None and before is not None else None


def _random(batch: int) -> Generator[Loaded, None, None]:
    """Batches that say only how many pictures there are."""
    seen = 0
    while True:
        seeds = np.arange(seen, seen + batch, dtype=np.uint64)
        yield Loaded(np.arange(batch), seen, seeds, {})
        seen += batch


def _speed(placement: Placement) -> float:
    """FLOPs a second of products of matrices, in the precision of the forward pass."""
    dtype = torch.bfloat16 if placement.bf16 else torch.float32
    side = 4096 if placement.device.type == "cuda" else 512
    a = torch.randn(side, side, device=placement.device, dtype=dtype)
    (a @ a).sum().item()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.2:
        (a @ a).sum().item()
        count += 1
    return 2 * side**3 * count / (time.perf_counter() - start)


def _bytes(count: float) -> str:
    """ "12.3 GB" or "456 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{math.ceil(count / 1e6)} MB"
