"""A label: one of a list of names, as a vector beside the time (Dhariwal & Nichol 2021) or a token to attend to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from carrara.conditions.condition import Columns, Contents, Derivation, Form, Latent, dropped
from carrara.config import Config as Base
from carrara.context import Context
from carrara.errors import UserError, nearest
from carrara.geometry import Size
from carrara.model_folder import read_names

_CLASSES = "classes.json"


class Config(Base):
    """A table of embeddings, a row a class and one for none."""

    kind: Literal["label"] = "label"
    column: str = Field("label", min_length=1, description="The column of the data with the class.")
    classes: tuple[str, ...] = Field(
        (), description="Names in the order of the table; none takes the data's, sorted."
    )
    width: int = Field(256, ge=1, description="Width of an embedding.")
    fills: Literal["vector", "token", "both"] = Field(
        "vector", description="Where it goes: a vector added to the time, a token to attend to, or both."
    )
    dropout: float = Field(0.1, ge=0, le=1, description="Share of pictures trained without their class.")

    @field_validator("classes")
    @classmethod
    def _differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in classes if classes.count(name) > 1}):
            raise ValueError(f"the class {twice[0]!r} is there twice")
        return classes

    def reads(self, data: Columns) -> list[str]:
        """The column of classes. UserError where the data lacks it or has no class in it."""
        if self.column not in data.names:
            raise UserError(
                f"the data has no column {self.column!r} for the classes{nearest(self.column, data.names)}"
            )
        if not any(value is not None for value in data.values(self.column)):
            how = ": put each class into a folder of its own, or name it in a table, and import again"
            raise UserError(
                f"no picture to train on has a class in the column {self.column!r}"
                + (how if self.column == "label" else "")
            )
        return [self.column]

    def learn(self, data: Columns, latent: Latent | None = None) -> LabelEncoder:
        """A new encoder for the classes of the data, or for its own. UserError where the data has others."""
        return LabelEncoder(self, self._found(data, self.classes))

    def check(self, data: Contents) -> list[str]:
        """Says what has no class, or one that is not learned. UserError as from ``learn``."""
        return self.checked(data, self._found(data, self.classes))

    def checked(self, data: Contents, classes: Sequence[str]) -> list[str]:
        """The same where the ``classes`` are known. UserError where a picture to train on has another."""
        known = set(self._found(data, classes))
        strange = [str(v) for v in data.held_out(self.column) if v is not None and str(v) not in known]
        notes = []
        if strange:
            notes.append(
                f"{len(strange)} held-out pictures have a class that is not learned, {strange[0]!r} for example; "
                "they are validated without it"
            )
        values = list(data.values(self.column))
        if without := sum(value is None for value in values):
            notes.append(
                f"{without} of {len(values)} pictures to train on have no class in the column {self.column!r}: they "
                "are learned as pictures without a class"
            )
        return notes

    def _found(self, data: Columns, classes: Sequence[str]) -> Sequence[str]:
        """``classes``, or the data's where these are none. UserError where the data to train on has others."""
        (column,) = self.reads(data)
        found = sorted({str(value) for value in data.values(column) if value is not None}, key=_natural)
        if classes and (strange := [name for name in found if name not in classes]):
            raise UserError(
                f"the data has a class {strange[0]!r}, which is none of the classes"
                f"{nearest(strange[0], classes)}"
            )
        return classes or found

    def restore(self, folder: Path, latent: Latent | None = None) -> LabelEncoder:
        """The encoder with the names that a model folder keeps."""
        return LabelEncoder(self, read_names(folder / _CLASSES))


class LabelEncoder(nn.Module):
    """indices [b] -> Context(vector [b d]) or (tokens [b 1 d], mask [b 1]) or both; the last row means none."""

    form: Form = "label"
    image = None

    def __init__(self, config: Config, classes: Sequence[str]) -> None:
        super().__init__()
        self.config, self.classes, self.column = config, list(classes), config.column
        self._number = {name: index for index, name in enumerate(self.classes)}
        self.vector = None if config.fills == "token" else config.width
        self.tokens = None if config.fills == "vector" else config.width
        self.table = nn.Embedding(len(self.classes) + 1, config.width)
        nn.init.normal_(self.table.weight, std=0.02)

    def check(self, data: Contents) -> list[str]:
        """As the configuration's, against the classes that there are."""
        return self.config.checked(data, self.classes)

    def keep(self, folder: Path) -> None:
        """Writes the names."""
        folder.mkdir(parents=True)
        (folder / _CLASSES).write_text(json.dumps(self.classes, ensure_ascii=False), encoding="utf-8")

    def derivations(self, columns: Sequence[str]) -> Sequence[Derivation]:
        """Nothing."""
        return ()

    def draw(
        self, columns: Mapping[str, Any], seeds: Sequence[int], *, stream: int
    ) -> Sequence[str | int | None]:
        """The class of each picture, None where it has none or goes without.

        A held-out picture may have a class that no picture to train on has; then it has none.
        """
        without = dropped(seeds, self.config.dropout, stream=stream)
        values = columns[self.column]
        found = values.tolist() if isinstance(values, Tensor) else values
        return [
            None if drop or str(value) not in self._number else value
            for value, drop in zip(found, without, strict=True)
        ]

    def prepare(self, values: Sequence[str | int | None], size: Size | None = None) -> Tensor:
        """indices [b]; UserError for a name that is none of the classes."""
        return torch.tensor([self._index(value) for value in values])

    def remarks(self, value: str | int | None) -> list[str]:
        """Nothing to say of a class that there is; UserError of any other."""
        self._index(value)
        return []

    def forward(self, indices: Tensor) -> Context:
        found = self.table(indices)  # b d
        if self.config.fills == "vector":
            return Context(vector=found)
        mask = torch.ones(len(found), 1, dtype=torch.bool, device=found.device)
        return Context(
            tokens=found[:, None], mask=mask, vector=found if self.config.fills == "both" else None
        )

    def _index(self, value: str | int | None) -> int:
        if value is None or value == "":
            return len(self.classes)
        if (index := self._number.get(str(value))) is not None:
            return index
        raise UserError(f"no class is called {str(value)!r}{nearest(str(value), self.classes)}")


def _natural(name: str) -> tuple[bool, int, str]:
    """Numbers in their own order, before words."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
