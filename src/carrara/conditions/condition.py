"""What a condition is: one named column, of a data row or of a request alike, becomes roles of the Context.

A module of this folder with a ``Config`` is a condition; its name is its ``kind``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy.typing as npt
from torch import Tensor

from carrara.tensors import sample_uniform

if TYPE_CHECKING:
    from carrara.context import Context
    from carrara.geometry import Size


Inputs = Tensor | Mapping[str, Tensor]
"""What an encoder's forward takes: prepared on the CPU, then moved to the device as a whole."""

Form = Literal["text", "label", "picture", "boxes", "size"]
"""How a person states the value of a condition; generation reads the request accordingly."""


class Columns(Protocol):
    """What a condition may look at of the rows to train on before training begins."""

    @property
    def captions(self) -> Mapping[str, str]:
        """Language to caption column, of those with any caption."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Every column of the table."""
        ...

    def values(self, column: str) -> Iterable[Any]:
        """A column's values over the rows to train on (words and numbers, not pictures); None where absent."""
        ...


class Contents(Columns, Protocol):
    """What a condition may ask besides of the rows, once, before anything is made of them."""

    def held_out(self, column: str) -> Iterable[Any]:
        """A column's values over the rows that are held out."""
        ...

    def missing(self, column: str) -> tuple[int, int]:
        """How many rows, of how many that training or validation uses, have nothing in a column."""
        ...

    def numbers(self, column: str, most: int) -> Iterable[tuple[str, Sequence[int]]]:
        """Evenly from those rows at most so many pictures' names, with the different numbers in their maps."""
        ...


@dataclass(frozen=True)
class Latent:
    """What the denoiser works on: conditions that bring a picture fit it to this.

    ``factor`` is the pixels a latent position has along a side; ``encode`` takes an image [b c H W] in [-1, 1]
    to the scaled latent's mean [b channels H/factor W/factor], without a gradient.
    """

    channels: int
    factor: int
    image_channels: int
    bits: int
    encode: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Derivation:
    """A column worth computing once for all rows from ``column``, and kept beside the pictures like latents.

    ``function`` takes the values of ``column`` for some rows to float16 or float32 ``[rows, ...]``.
    """

    name: str
    key: Mapping[str, Any]
    column: str
    batch: int
    function: Callable[[Sequence[Any]], npt.NDArray[Any]]


class ConditionConfig(Protocol):
    """The configuration of a condition. ``dropout``: the share of pictures trained without it.

    A class attribute ``placed = True`` says that it goes by where things are in the picture, which has to be the
    central part then. One that not all data suits has ``check(data: Contents) -> list[str]``: before latents are
    encoded it raises UserError where training would stop at some of the rows, and returns what else is to be known.
    """

    kind: str
    dropout: float

    def reads(self, data: Columns) -> list[str]:
        """The columns that training draws from. UserError where the data lacks one that it cannot do without;

        an empty list where there is nothing to draw from and training may go on without this condition.
        """
        ...

    def learn(self, data: Columns, latent: Latent) -> Condition:
        """A new encoder; what it must know of the data (words, classes) is learned here."""
        ...

    def restore(self, folder: Path, latent: Latent) -> Condition:
        """The encoder that ``keep`` wrote into ``folder``; its weights are loaded afterwards."""
        ...


class Condition(Protocol):
    """A condition's encoder, a module. ``tokens``, ``vector``, ``image``: the widths of the roles it fills.

    One with a window also has ``cut(value) -> int``: how much of a value lies beyond it. One that knows some values
    only has ``check`` as its configuration, for training that begins from it.
    """

    column: str
    form: Form
    tokens: int | None
    vector: int | None
    image: int | None

    def derivations(self, columns: Sequence[str]) -> Sequence[Derivation]:
        """Of the columns it reads, those that are to be derived first; ``draw`` then gets the derived values."""
        ...

    def draw(self, columns: Mapping[str, Any], seeds: Sequence[int], *, stream: int) -> Sequence[Any]:
        """One value a picture from a batch's columns, None (or the empty text) where it is dropped or absent.

        A function of each picture's own columns and seed, and of ``stream`` (numbers ``16 * stream`` and on are
        this condition's). Besides what ``reads`` named there is "mirrored" [b], True where the picture is.
        """
        ...

    def prepare(self, values: Sequence[Any], size: Size) -> Inputs:
        """Inputs for values as ``draw`` or a request gives them, for pictures of ``size``."""
        ...

    def __call__(self, inputs: Any) -> Context:
        """The roles that it fills."""
        ...

    def keep(self, folder: Path) -> None:
        """Writes into a new folder what ``restore`` needs besides the weights."""
        ...

    def remarks(self, value: Any) -> list[str]:
        """Sentences that a user should know of a request's value; UserError where it cannot be used."""
        ...


def dropped(seeds: Sequence[int], share: float, *, stream: int) -> list[bool]:
    """Which pictures of a batch train without the condition of this ``stream``: about ``share`` of all."""
    chosen: list[bool] = (sample_uniform(seeds, stream=16 * stream) < share).tolist()
    return chosen
