"""The plan before step one: what a training will take of memory, disk and time, and whether this machine has it."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from carrara.embedders.embedders import open_embedder
from carrara.errors import UserError
from carrara.training import mirroring
from carrara.training.autoencoder_task import LOOKS
from carrara.training.condition_columns import TrainingRows
from carrara.training.contrastive_task import Pairs, looks_of
from carrara.training.devices import Memory, Placement, disk_free, memory, resident
from carrara.training.disk_and_memory import Subject, kept_in_memory, on_disk
from carrara.training.lr_and_budget import Budget, enough
from carrara.training.memory_estimate import Imagined, imagine
from carrara.training.random_data import (
    AutoencoderRehearsal,
    ContrastiveRehearsal,
    DiffusionRehearsal,
    MadeUp,
    contexts,
    learn,
)
from carrara.training.recipe import AutoencoderRecipe, ContrastiveRecipe, DiffusionRecipe
from carrara.training.trial import Trial, run_trial
from carrara.training.validation import timing

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.dataset import Dataset
    from carrara.training.contrastive_task import Rows
    from carrara.training.disk_and_memory import Recipe
    from carrara.training.random_data import Rehearsal
    from carrara.training.recipe import TrainConfig


_PART = 0.9  # of the free memory that a suggestion fills
_SMALLEST = 16  # side of pictures in pixels that is still suggested
_SCORES = 8  # tables of a batch's scores, float32, that a contrastive loss and its gradient have at once


@dataclass(frozen=True)
class Plan:
    """All figures; ``document`` is their form as JSON. ``refusals`` say what cannot work, with the numbers."""

    parameters: Mapping[str, int]
    trained: int
    step: Imagined
    base: int
    memory: Memory
    batch: int
    accumulate: int
    fits: Sequence[tuple[int, int]]
    disk: Mapping[str, int]
    disk_free: int
    trial: Trial
    seconds: float
    looks: float
    seen: float
    pictures: int | None
    notes: Sequence[str] = ()
    refusals: Sequence[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Bytes at the peak of the whole process (on a GPU: of what lies there), with a step as configured."""
        return self.base + self.step.peak(self.batch // self.accumulate, self.accumulate)

    def document(self) -> dict[str, Any]:
        """Ready for JSON; bytes, seconds, pictures."""
        return {
            "parameters": dict(self.parameters),
            "trained_parameters": self.trained,
            "flops_a_step": round(self.step.flops * self.batch),
            "memory": {
                "kind": self.memory.kind,
                "free": self.memory.free,
                "base": self.base,
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
            "seconds_of_looks": self.looks,
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
    pictures = len(_trained_on(recipe, subject.dataset)) if subject.dataset else None
    budget = Budget.parse(config.budget)
    if budget.epochs and pictures is None:
        raise UserError("a budget in epochs needs a data set, whose pictures they count; give one, or steps")
    budget = budget.counted(pictures or 0, config.batch)
    placement = Placement.choose(precision=config.precision)
    need = _Need.of(subject, placement)
    step, free = need.step, memory(placement.device)
    parameters = dict(step.parameters)
    if subject.autoencoder and not getattr(recipe, "pixels", None):
        parameters["autoencoder"] = sum(p.numel() for p in subject.autoencoder.module.parameters())
    base = (resident() or 0) + need.kept if placement.device.type == "cpu" else 0  # all libraries are loaded
    disk = on_disk(subject, step)
    refusals = [refusal] if (refusal := need.refusal(free)) else []
    if (wanted := sum(disk.values())) > (space := disk_free(place)):
        refusals.append(f"{_bytes(wanted)} of disk are needed, {_bytes(space)} are free at {place.resolve()}")
    build, _ = _rehearsal(subject, placement)
    try:
        trial = run_trial(build, config, step.flops, placement, seconds if not refusals else 0.0)
    except torch.OutOfMemoryError:
        refusals.append(
            f"the trial ran out of memory, with {_bytes(free.free)} of {free.kind} free before it"
        )
        trial = run_trial(build, config, step.flops, placement, 0.0)
    looks = _looks(subject, budget, trial.rate)
    took = budget.seconds or (budget.steps or 0) * config.batch / trial.rate + looks
    seen = (took - looks) * trial.rate
    notes = need.notes
    if pictures and isinstance(recipe, DiffusionRecipe) and seen < (wanted := enough(pictures)):
        notes.append(
            f"that is little: conditions mean something from about {wanted} pictures seen on; "
            f"train about {math.ceil(wanted / max(seen, 1))} times as long"
        )
    return Plan(
        parameters,
        step.gradients // 4,
        step,
        base,
        free,
        config.batch,
        config.accumulate,
        need.fits(free),
        disk,
        space,
        trial,
        took,
        looks,
        seen,
        pictures,
        [*notes, *filter(None, [mirroring.note(recipe)])],
        refusals,
    )


def check_memory(
    recipe: Recipe,
    dataset: Dataset,
    placement: Placement,
    autoencoder: StoredAutoencoder | None = None,
    conditions: nn.ModuleDict | None = None,
) -> None:
    """UserError where a step of this recipe needs more memory than is free, with what would fit.

    ``conditions`` are those of a model to begin from. Takes seconds: no number is computed.
    """
    need = _Need.of(Subject.of(recipe, dataset, autoencoder, None), placement, conditions)
    if refusal := need.refusal(memory(placement.device)):
        raise UserError(refusal)


@dataclass(frozen=True)
class _Need:
    """Memory of a step: of ``one`` picture after another, and with all that a ``step`` of the whole batch has."""

    subject: Subject
    placement: Placement
    one: Imagined
    step: Imagined
    kept: int
    notes: list[str]

    @staticmethod
    def of(subject: Subject, placement: Placement, conditions: nn.ModuleDict | None = None) -> _Need:
        config = subject.recipe.train
        build, notes = _rehearsal(subject, placement, conditions)
        one = imagine(build, config, placement)
        step = _with_scores(one, config.batch) if isinstance(subject.recipe, ContrastiveRecipe) else one
        kept = kept_in_memory(subject) if placement.device.type == "cpu" else 0  # a GPU does not hold them
        return _Need(subject, placement, one, step, kept, notes)

    @property
    def bytes(self) -> int:
        """At the peak, besides what the process has already."""
        config = self.subject.recipe.train
        return self.step.peak(config.batch // config.accumulate, config.accumulate) + self.kept

    def fits(self, free: Memory) -> list[tuple[int, int]]:
        """Which (batch, accumulate) do."""
        recipe = self.subject.recipe
        pairwise = isinstance(recipe, ContrastiveRecipe)
        return _fitting(self.one, recipe.train.batch, free.free - self.kept, pairwise=pairwise)

    def refusal(self, free: Memory) -> str:
        """Why it does not fit and what would, or ""."""
        if self.bytes <= free.free:
            return ""
        smaller = "" if (fits := self.fits(free)) else self._smaller(free)
        return _too_large(self.one, self.subject.recipe.train, self.bytes, free, fits, smaller)

    def _smaller(self, free: Memory) -> str:
        """The largest power of two as a size of pictures at which the batch fits, as a change of the recipe, or ""."""
        recipe, room = self.subject.recipe, max(0.0, _PART * free.free - self.step.floor)
        most = 2 * self.subject.size * math.sqrt(room / self.bytes)  # what a step takes grows with the area
        size = 2 ** math.floor(math.log2(max(1.0, min(self.subject.size - 1, most))))
        while size >= _SMALLEST:
            if isinstance(recipe, AutoencoderRecipe):
                key, changed = "size", recipe.model_copy(update={"size": size})
            elif isinstance(recipe, DiffusionRecipe) and recipe.pixels and not recipe.resolutions:
                pixels = recipe.pixels.model_copy(update={"size": size})
                key, changed = "pixels.size", recipe.model_copy(update={"pixels": pixels})  # type: ignore[assignment]
            else:
                return ""
            with contextlib.suppress(UserError):
                need = _Need.of(Subject.of(changed, self.subject.dataset, None, None), self.placement)
                if need.bytes <= _PART * free.free:
                    return f"{key}={size}"
            size //= 2
        return ""


def _looks(subject: Subject, budget: Budget, rate: float) -> float:
    """Seconds that looks at held-out pictures will take."""
    recipe = subject.recipe
    held_out = len(subject.dataset.indices("held_out")) if subject.dataset else 10**9
    if isinstance(recipe, DiffusionRecipe):
        return timing(recipe.validation, held_out).seconds(budget, rate)
    if isinstance(recipe, AutoencoderRecipe):
        return LOOKS.seconds(budget, rate)
    return looks_of(recipe, min(recipe.pairs, held_out / 2)).seconds(budget, rate)


def _rehearsal(
    subject: Subject, placement: Placement, conditions: nn.ModuleDict | None = None
) -> tuple[Callable[[], Rehearsal], list[str]]:
    """What builds the rehearsal, once; and what was assumed.

    Without ``conditions`` (which stay as they are) new ones learn here what they need of the data.
    """
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
    if conditions is None:
        conditions, notes = learn(recipe.model, data, latent)
    else:
        conditions, notes = copy.deepcopy(conditions), []
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
    step: Imagined,
    config: TrainConfig,
    needed: int,
    free: Memory,
    fits: Sequence[tuple[int, int]],
    smaller: str = "",
) -> str:
    """The refusal, with what would fit; ``smaller`` is a change of the recipe that does."""
    words = f"a step needs {_bytes(needed)}, {_bytes(free.free)} of {free.kind} are free"
    if fits and fits[0][0] == config.batch:
        return f"{words}: take --set train.accumulate={fits[0][1]}"
    if fits:
        return f"{words}: take --set train.batch={fits[0][0]}"
    if smaller:
        return f"{words}: take --set {smaller}"
    words += f"; a single picture at a time still needs {_bytes(step.peak(1, config.batch))}"
    if not config.checkpointing and step.floor < free.free:
        return f"{words}: try --set train.checkpointing=true"
    return (
        f"{words}, of which weights, their averages, gradients and the optimizer alone are {_bytes(step.floor)}: "
        "take a smaller network, or a larger machine"
    )


def _bytes(count: float) -> str:
    """ "12.3 GB" or "456 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{math.ceil(count / 1e6)} MB"
