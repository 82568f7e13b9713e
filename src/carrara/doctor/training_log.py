"""How the training went, from its log, and whether there was enough of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from carrara.dataset.columns import caption_language
from carrara.doctor.finding import Check, Finding, not_looked
from carrara.importing.summary import FEW, few
from carrara.training.lr_and_budget import enough

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.training.recipe import TrainConfig


_OF_A_STEP = {"step", "seen", "spent", "rate", "lr", "gradient"}


def losses(lines: Sequence[Mapping[str, float]], config: TrainConfig, stopped: str = "") -> Check:
    """Why it was ``stopped``, if it was; numbers that are none; a loss that rose again, or never fell; gradients

    that grew.
    """
    name = "course of the loss"
    if stopped:
        fix = "free what it lacked, and give the same command again"
        if "finite" in stopped:
            fix = f"lower train.lr (now {config.lr:g}), or train.clip (now {config.clip:g}), and begin a new run"
        finding = Finding("stopped", f"the training was stopped: {stopped}", fix)
        return Check(name, f"{len(lines)} lines of the log", [finding])
    if not lines:
        return not_looked(name, "metrics.jsonl is empty: fewer than ten steps are done")
    bad = next(
        ((key, line.get("seen", 0)) for line in lines for key, v in line.items() if not math.isfinite(v)),
        None,
    )
    if bad:
        words = f"{bad[0]} is no longer a number after {bad[1]:.0f} pictures"
        fix = f"lower train.lr (now {config.lr:g}), or train.clip (now {config.clip:g}), and begin a new run"
        return Check(name, f"{len(lines)} lines of the log", [Finding("not_a_number", words, fix)])
    terms = dict.fromkeys(key for line in lines for key in line if key not in _OF_A_STEP)
    if not terms:
        return not_looked(name, "metrics.jsonl has no loss in it")
    term = "denoising" if "denoising" in terms else next(iter(terms))
    loss = np.array([line[term] for line in lines if term in line])
    gradient = np.array([line["gradient"] for line in lines if "gradient" in line])
    saw = f"{len(loss)} values of {term}, from {loss[0]:.4g} to {loss[-1]:.4g}"
    found = []
    if len(loss) >= 10:
        width = max(2, len(loss) // 10)
        smooth = np.convolve(loss, np.ones(width) / width, "valid")
        if smooth[-1] > 1.3 * smooth.min():
            words = f"{term} fell to {smooth.min():.4g} and rose again to {smooth[-1]:.4g}: it diverges"
            found.append(Finding("diverged", words, f"lower train.lr (now {config.lr:g})"))
        elif smooth[-1] > 0.97 * smooth[0]:
            words = f"{term} has not fallen: {smooth[0]:.4g} at first, {smooth[-1]:.4g} at last"
            found.append(
                Finding("flat", words, f"raise train.lr (now {config.lr:g}), or train longer (train.budget)")
            )
        third = max(1, len(gradient) // 3)
        early, late = np.median(gradient[:third]), np.median(gradient[-third:])
        saw += f"; gradient's norm {early:.3g} at first, {late:.3g} at last"
        if early > 0 and late > 10 * early:
            words = f"the gradient's norm grew from {early:.3g} to {late:.3g}"
            found.append(Finding("gradient_grows", words, f"lower train.lr (now {config.lr:g})"))
        if (share := float(np.mean(gradient > 10 * config.clip))) > 0.5:
            words = f"in {share:.0%} of the steps the gradient is more than ten times train.clip = {config.clip:g}"
            fix = (
                f"raise train.clip to about {np.median(gradient):.2g}, or lower train.lr (now {config.lr:g})"
            )
            found.append(Finding("always_clipped", words, fix, serious=False))
    return Check(name, saw, found)


def amount(lines: Sequence[Mapping[str, float]], dataset: Dataset | None, conditional: bool) -> Check:
    """How many pictures and words there are, and how often each was met."""
    name = "amount of data"
    if dataset is None:
        return not_looked(name, "give the data set to look at it")
    pictures = len(dataset.indices("train"))
    seen = lines[-1].get("seen", 0) if lines else 0
    times = seen / max(1, pictures)
    found = []
    saw = f"{pictures} pictures" + (f", each met {times:.3g} times" if lines else "")
    if pictures == 1:
        fix = "import more pictures; with one the model can only give that one back"
        found.append(Finding("one_picture", "there is a single picture to train on", fix))
    elif note := few(pictures):
        found.append(Finding("few_pictures", note[0], f"import at least {FEW}", serious=False))
    wanted = enough(pictures)
    if lines and seen < wanted:
        what = "conditions mean" if conditional else "pictures become"
        words = (
            f"{seen:.0f} pictures were seen, each {times:.2g} times; {what} something from about {wanted} on"
        )
        factor = math.ceil(wanted / max(seen, 1))
        found.append(
            Finding(
                "few_seen",
                words,
                f"train about {factor} times as long (train.budget)",
                serious=seen < wanted / 3,
            )
        )
    captions = [c for c in dataset.columns if caption_language(c)]
    if conditional and captions:
        rows = dataset.take(dataset.indices("train"), captions)
        different = len({text for column in captions for text in rows[column] if text})
        saw += f", {different} different captions"
        if different == 1 and pictures > 1:
            fix = "give each picture a caption of its own; with one for all it says nothing"
            found.append(Finding("one_caption", "all pictures have the same caption", fix))
    return Check(name, saw, found)
