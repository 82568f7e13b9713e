"""A space of texts and pictures: whether held-out pairs find each other, and whether it has come to a point.

That contrastive spaces can collapse, or keep pictures and texts apart: Liang et al. 2022 ("Mind the Gap").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from carrara.doctor import training_log
from carrara.doctor.finding import Check, Finding, not_looked
from carrara.embedders.contrastive import lifting, load_towers
from carrara.embedders.embedders import Vectors
from carrara.embedders.two_towers import Towers
from carrara.errors import UserError
from carrara.metrics.recall import ranks
from carrara.tensors import under
from carrara.training import checkpoint
from carrara.training.contrastive_task import MODULE, SCALE, Pairs, halves, stored_vectors
from carrara.training.metrics_log import CHECKPOINTS, MODEL, read_metrics, read_stopped
from carrara.training.recipe import ContrastiveRecipe

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

_FEW = 100  # pairs: towers memorize them, and tell little apart
_AT = 5  # the rank up to which a pair counts as found
_ABOVE = 3.0  # times chance from which on something was learned
_POINT = 0.8  # mean cosine of vectors that have nothing to do with each other
_LOOKED_AT = 1000  # pairs
_HELD_OUT = "held-out"


class _Seen(NamedTuple):
    """Unit vectors ``[n d]`` of pictures and of a caption each, in the space."""

    pictures: Vectors
    texts: Vectors
    split: str


class JointPatient:
    """The run of a joint space, finished or not, and its data set where it is given."""

    def __init__(self, folder: Path, recipe: ContrastiveRecipe, dataset: Dataset | None) -> None:
        """UserError where there is neither a model nor a checkpoint that can be read."""
        self.folder, self.recipe, self.dataset = folder, recipe, dataset
        self.lines = read_metrics(folder)
        if (folder / MODEL).is_dir():
            self.towers = load_towers(folder / MODEL).module
        else:
            self.towers = _of_checkpoint(folder, recipe)


def examine_joint(patient: JointPatient) -> Iterator[tuple[float, Check]]:
    """Each look when it is done, with how much of all is."""
    looks: Sequence[Callable[[], Check]] = (
        lambda: training_log.losses(patient.lines, patient.recipe.train, read_stopped(patient.folder)),
        lambda: _amount(patient),
        lambda: _temperature(patient),
        lambda: _found(patient),
        lambda: _spread(patient),
    )
    for done, look in enumerate(looks, 1):
        yield done / len(looks), look()


def _amount(patient: JointPatient) -> Check:
    name = "amount of data"
    if patient.dataset is None:
        return not_looked(name, "give the data set to look at it")
    pairs = Pairs(patient.recipe, patient.dataset)
    train, held_out = len(pairs.rows("train")), len(pairs.rows("held_out"))
    seen = patient.lines[-1].get("seen", 0) if patient.lines else 0
    saw = f"{train} pairs, each met {seen / max(1, train):.3g} times; {held_out} held out"
    found = []
    if train < _FEW:
        fix = f"bring more captioned pictures, {_FEW} at the very least"
        found.append(Finding("few_pairs", f"there are only {train} pairs", fix, serious=False))
    if held_out < 4:
        words = "too few pairs are held out to choose the best state by and to measure it on others"
        found.append(
            Finding(
                "nothing_held_out",
                words,
                f"carrara data split {patient.dataset.path}, and train again",
                serious=False,
            )
        )
    return Check(name, saw, found)


def _temperature(patient: JointPatient) -> Check:
    name, scale = "temperature", float(patient.towers.scale.detach())
    saw = f"similarities are scaled by {math.exp(min(scale, SCALE[1])):.3g} (from 14.3 at first, at most 100)"
    found = []
    if not math.isfinite(scale):
        found.append(
            Finding("temperature", "it is no number any more", "lower train.lr, and begin a new run")
        )
    elif scale >= SCALE[1]:
        words = "it is at its end: the towers cannot tell the training's pairs any further apart"
        fix = "train for a shorter time, or raise towers.dropout: they have memorized the training pairs"
        found.append(Finding("temperature_at_its_end", words, fix, serious=False))
    return Check(name, saw, found)


def _found(patient: JointPatient) -> Check:
    name = "pairs find each other"
    seen = _in_the_space(patient)
    if isinstance(seen, str):
        return not_looked(name, seen)
    rates = [
        float((ranks(one, other) <= _AT).mean())
        for one, other in ((seen.texts, seen.pictures), (seen.pictures, seen.texts))
    ]
    recall, chance = sum(rates) / 2, min(1.0, _AT / len(seen.texts))
    saw = f"of {len(seen.texts)} {seen.split} pairs {recall:.1%} are among the first {_AT}, by chance {chance:.1%}"
    found = []
    if chance < 0.3 and recall < _ABOVE * chance:
        words = f"{recall:.1%} is hardly more than chance ({chance:.1%})"
        fix = (
            "train longer (train.budget), with more pairs, or other embedders (pictures, texts); "
            "look whether the captions say what is to be seen"
        )
        enough = seen.split == _HELD_OUT and len(seen.texts) >= _FEW
        if not enough:
            words += f", though {len(seen.texts)} {seen.split} pairs are no sure sign"
        found.append(Finding("no_better_than_chance", words, fix, serious=enough))
    return Check(name, saw, found)


def _spread(patient: JointPatient) -> Check:
    name = "spread of the space"
    seen = _in_the_space(patient)
    if isinstance(seen, str):
        return not_looked(name, seen)
    own = float((seen.pictures * seen.texts).sum(1).mean())
    cosines = {
        "pictures": _others(seen.pictures, seen.pictures),
        "texts": _others(seen.texts, seen.texts),
        "pictures and texts that do not belong together": _others(seen.pictures, seen.texts),
    }
    told = ", ".join(f"of {what} {value:.2f}" for what, value in cosines.items())
    saw = f"mean cosine of pairs {own:.2f}, {told}"
    found = []
    for what in ("pictures", "texts"):
        if cosines[what] > _POINT:
            words = f"all {what} lie nearly at one point: their mean cosine is {cosines[what]:.2f}"
            fix = (
                f"lower train.lr (now {patient.recipe.train.lr:g}), enlarge train.batch, and begin a new run"
            )
            found.append(Finding("collapsed", words, fix))
    return Check(name, saw, found)


def _others(one: Vectors, other: Vectors) -> float:
    """The mean cosine of all pairs of rows that do not belong together."""
    count = len(one)
    scores = one @ other.T
    return float((scores.sum() - np.trace(scores)) / max(1, count * (count - 1)))


def _in_the_space(patient: JointPatient) -> _Seen | str:
    """Pairs that had no part in the training where there are some; or why none can be looked at."""
    if patient.dataset is None:
        return "give the data set to look at it"
    pairs = Pairs(patient.recipe, patient.dataset)
    try:
        column, read = pairs.columns()
    except UserError as error:
        return str(error)
    rows, split = halves(pairs.rows("held_out"), patient.recipe)[1], _HELD_OUT
    if len(rows) < 2:
        rows, split = pairs.rows("train"), "training"
    if len(rows) < 2:
        return "there are fewer than two captioned pictures"
    # By chance: a table often has one class after another, and those of one class are hard to tell apart.
    drawn = np.random.default_rng(patient.recipe.train.seed).permutation(rows)[:_LOOKED_AT]
    stored = stored_vectors(patient.dataset, (column, *read.values()), np.sort(drawn))
    texts = torch.stack([stored[name].float() for name in read.values()], 1)  # [b l d]
    first = (texts.abs().amax(2) > 0).int().argmax(1)  # the first language that the picture has
    words = texts[torch.arange(len(texts)), first].numpy()
    return _Seen(
        lifting(patient.towers.pictures)(stored[column].float().numpy()),
        lifting(patient.towers.texts)(words),
        split,
    )


def _of_checkpoint(folder: Path, recipe: ContrastiveRecipe) -> Towers:
    """The averaged weights of the newest checkpoint that can be read."""
    found = checkpoint.newest_readable(folder / CHECKPOINTS, only=("module.", "average."))
    if found is None:
        raise UserError(f"{folder} has no model yet: its training has not begun")
    weights = under(f"module.{MODULE}.", found.tensors) | under(f"average.{MODULE}.", found.tensors)
    towers = Towers(recipe.towers, len(weights["pictures.mean"]), len(weights["texts.mean"]))
    towers.load_state_dict(weights)
    return towers.eval()
