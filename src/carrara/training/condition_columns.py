"""What conditions need of a data set before training: the columns they read, what they learn, what is derived."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from carrara.conditions.condition import Derivation as Wanted
from carrara.conditions.condition import Latent
from carrara.dataset.class_numbers import numbers
from carrara.dataset.columns import id_column
from carrara.dataset.derived import Derivation, Progress, derive, derived
from carrara.dataset.loader import Reading
from carrara.errors import UserError
from carrara.generation.model import ModelConfig

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

_AT_A_TIME = 4096
_LOOKED_AT = 10_000


class TrainingRows:
    """`conditions.contract.Contents` of a data set: its rows to train on, and those held out."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    @property
    def captions(self) -> Mapping[str, str]:
        """Language to caption column."""
        return self.dataset.captions

    @property
    def names(self) -> Sequence[str]:
        """Every column."""
        return self.dataset.columns

    def values(self, column: str) -> Iterator[Any]:
        """The values of a column over the rows to train on, in order."""
        yield from self._values(column, "train")

    def held_out(self, column: str) -> Iterator[Any]:
        """The values of a column over the held-out rows, in order."""
        yield from self._values(column, "held_out")

    def missing(self, column: str) -> tuple[int, int]:
        """How many rows, of all, have nothing in a column."""
        short = id_column(column)  # tells it without reading a picture
        asked = short if short in self.dataset.columns else column
        return len(self.dataset.indices(None, f"{asked} IS NULL")), len(self.dataset)

    def numbers(self, column: str, most: int) -> Iterator[tuple[str, Sequence[int]]]:
        """As `class_numbers.numbers`."""
        return numbers(self.dataset, column, most)

    def _values(self, column: str, split: str) -> Iterator[Any]:
        rows = self.dataset.indices(split)
        for first in range(0, len(rows), _AT_A_TIME):
            yield from self.dataset.take(rows[first : first + _AT_A_TIME], [column])[column]


def reads_of(config: ModelConfig, dataset: Dataset) -> dict[str, list[str]]:
    """For each condition the columns it draws from; UserError where it cannot do without one that is not there."""
    rows = TrainingRows(dataset)
    return {name: c.reads(rows) for name, c in config.conditions.items()}


def checked(
    parts: Mapping[str, Any], dataset: Dataset, *, reads: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """What is to be known of the data before training: a line each. UserError where it would stop in the middle.

    ``parts`` are the configurations of conditions to be learned, or the encoders of a model to begin from.
    """
    rows = TrainingRows(dataset)
    for name, part in parts.items():
        if reads[name] and hasattr(part, "check"):
            yield from (f"{name}: {note}" for note in part.check(rows))


def learned(config: ModelConfig, dataset: Dataset, latent: Latent, seed: int) -> nn.ModuleDict:
    """New encoders of all conditions, their weights a function of the seed."""
    torch.manual_seed(seed)
    rows = TrainingRows(dataset)
    return nn.ModuleDict({name: c.learn(rows, latent) for name, c in config.conditions.items()})


def cut_notes(
    conditions: nn.ModuleDict, reads: Mapping[str, Sequence[str]], dataset: Dataset
) -> Iterator[str]:
    """A line for each condition with a window that some of the data exceeds, of at most 10,000 values looked at."""
    rows = TrainingRows(dataset)
    for name, encoder in conditions.items():
        if not hasattr(encoder, "cut"):
            continue
        columns = [c for c in reads[name] if c not in ("width", "height")]
        every = (value for column in columns for value in rows.values(column) if value)
        looked, longer = 0, 0
        for value in itertools.islice(every, _LOOKED_AT):
            looked, longer = looked + 1, longer + (encoder.cut(value) > 0)  # type: ignore[operator]
        if longer:
            yield f"{name}: {longer} of {looked} values looked at are longer than its window and are cut"


def derive_for(
    conditions: nn.ModuleDict, reads: Mapping[str, Sequence[str]], dataset: Dataset
) -> Generator[Progress, None, None]:
    """Derives what the conditions want computed once, where it is not there yet."""
    for name, encoder in conditions.items():
        for wanted in encoder.derivations(reads[name]):  # type: ignore[operator]
            if derived(dataset, wanted.name, wanted.key) is None:
                yield from derive(
                    dataset,
                    Derivation(
                        wanted.name,
                        wanted.key,
                        lambda columns, wanted=wanted: wanted.function(columns[wanted.column]),  # type: ignore[misc]
                        wanted.batch,
                        Reading((wanted.column,)),
                        title="conditions",
                    ),
                )


def derived_columns(
    conditions: nn.ModuleDict, reads: Mapping[str, Sequence[str]], dataset: Dataset
) -> dict[str, dict[str, str]]:
    """For each condition, from the columns it reads to those that hold what was derived of them."""
    found: dict[str, dict[str, str]] = {}
    for name, encoder in conditions.items():
        wanted: Sequence[Wanted] = encoder.derivations(reads[name])  # type: ignore[operator]
        found[name] = {column: column for column in reads[name]}
        for one in wanted:
            column = derived(dataset, one.name, one.key)
            if column is None:
                raise UserError(f"{dataset.path} lacks what the condition {name!r} needs; train it again")
            found[name][one.column] = column
    return found
