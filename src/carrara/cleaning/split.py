"""The split of a data set: which pictures training never sees: whole groups, so that what looks alike is on one
side."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from carrara.cleaning.duplicates import Likeness, components, hanging_together
from carrara.errors import UserError, nearest
from carrara.tensors import Index

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

HELD_OUT, TRAIN = "held_out", "train"
# What no picture can be grouped by: bytes, and what is different for each.
_OWN = ("id", "image", "source", "url", "split")


@dataclass(frozen=True)
class Division:
    """The wanted split of every row, and how far it is from what the table says now."""

    held_out: npt.NDArray[np.bool_]
    groups: int
    held_groups: int
    largest: int
    now_held: int  # pictures that were trained on
    now_trained: int  # pictures that were held out


def divide(dataset: Dataset, names: Index, share: float, *, seed: int | None = None) -> Division:
    """Holds out about ``share`` of the pictures, by the groups that ``names`` [n] numbers.

    What is held out stays so as far as it can: first come groups that are held out as a whole, last those that are
    partly trained on, as no model unlearns. With a ``seed`` chance alone decides. A group is taken where it brings
    the share nearer; of more than one group, at least one is held out.
    """
    groups, place, counts = np.unique(names, return_inverse=True, return_counts=True)
    ids = np.array(dataset.column("id"))[groups] if len(groups) else np.empty(0, str)
    before = np.array([split == HELD_OUT for split in dataset.column("split")], bool)
    inside = np.bincount(place, before, minlength=len(groups))
    first = np.zeros(len(groups), np.int64)
    if seed is None:
        first = np.where(inside == counts, 0, np.where(inside == 0, 1, 2))
    order = sorted(
        range(len(groups)),
        key=lambda k: (int(first[k]), hashlib.sha256(f"{seed or 0}:{ids[k]}".encode()).digest()),
    )
    wanted = share * len(names)
    chosen = np.zeros(len(groups), bool)
    held = 0
    for k in order:
        if abs(held + counts[k] - wanted) < abs(held - wanted):
            chosen[k] = True
            held += int(counts[k])
    if share > 0 and not chosen.any() and len(groups) > 1:
        chosen[min(order, key=lambda k: int(counts[k]))] = True
    held_out = chosen[place]
    return Division(
        held_out,
        len(groups),
        int(chosen.sum()),
        int(counts.max(initial=0)),
        int((held_out & ~before).sum()),
        int((~held_out & before).sum()),
    )


def names_by_column(dataset: Dataset, column: str) -> Index:
    """Rows with one value in a column of words together; those without a value each alone."""
    words = [
        field.name
        for field in dataset.table.schema
        if str(field.type) in ("string", "large_string", "int32") and field.name not in _OWN
    ]
    if column not in words:
        raise UserError(f"pictures cannot be grouped by {column!r}{nearest(column, ['near', *words])}")
    first: dict[object, int] = {}
    return np.array(
        [
            row if value is None else first.setdefault(value, row)
            for row, value in enumerate(dataset.column(column))
        ],
        np.int64,
    )


def names_by_likeness(dataset: Dataset, likeness: Likeness) -> Index:
    """Look-alikes together, and with them all that the column ``group`` holds together."""
    return with_groups(dataset, components(likeness))


def with_groups(dataset: Dataset, names: Index) -> Index:
    """What ``names`` holds together, and what the column ``group`` does."""
    rows = np.arange(len(names))
    ties = np.concatenate([names_by_column(dataset, "group"), names])
    return hanging_together(rows, ties, np.concatenate([rows, rows]))


def apply(dataset: Dataset, division: Division) -> int:
    """Writes the split of the rows whose split it changes, in one version; returns how many."""
    from carrara.dataset.word_changes import amend

    wanted = [HELD_OUT if held else TRAIN for held in division.held_out]
    changes = {
        row: new
        for row, (new, now) in enumerate(zip(wanted, dataset.column("split"), strict=True))
        if new != now
    }
    if changes:
        amend(dataset, {"split": changes})
    return len(changes)


def trained_on_before(dataset: Dataset, division: Division) -> dict[str, int]:
    """For each tagged version of the table how many of the pictures now held out it had for training."""
    ids = {
        known for known, held in zip(dataset.column("id"), division.held_out.tolist(), strict=True) if held
    }
    found = {}
    for tag, about in sorted(dataset.table.tags.list().items()):
        before = dataset.table.checkout_version(int(about["version"]))
        trained = before.to_table(columns=["id"], filter=f"split = '{TRAIN}'")["id"].to_pylist()
        if count := len(ids.intersection(trained)):
            found[tag] = count
    return found
