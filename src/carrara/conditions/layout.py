"""A layout: boxes with what is in them: a token a box (Li et al. 2023, GLIGEN, eq. 5), and painted beside z if
wanted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from carrara.conditions import text
from carrara.conditions.condition import Columns, Contents, Derivation, Form, Latent, dropped
from carrara.config import Config as Base
from carrara.context import Context
from carrara.errors import UserError, nearest
from carrara.geometry import Box, Layout, Size, covered, read_boxes
from carrara.model_folder import read_names

_COLUMNS = ("boxes", "width", "height")
_LABELS = "labels.json"
_CORNERS = 4


class Phrases(Base):
    """A small text encoder for labels as phrases, trained beside the denoiser."""

    vocabulary: int = Field(
        2048, ge=258, description="Tokens learned from the labels; bytes are always known."
    )
    length: int = Field(16, ge=2, description="Longest label in tokens; longer ones are cut.")
    depth: int = Field(1, ge=1, description="Transformer layers.")
    heads: int = Field(4, ge=1, description="Attention heads.")


class Config(Base):
    """Where things are to be in the picture: boxes, each with a class or a phrase."""

    placed: ClassVar[bool] = True
    kind: Literal["layout"] = "layout"
    phrases: Phrases | None = Field(
        None, description="Read labels as phrases, also new ones; none means that each label is a class."
    )
    width: int = Field(256, ge=8, description="Width of the tokens.")
    frequencies: int = Field(8, ge=1, description="Sines and cosines of each side of a box.")
    most: int = Field(30, ge=1, description="Boxes a picture; of more the largest are taken.")
    visible: float = Field(
        0.3, ge=0, lt=1, description="A box counts where more than this share of it is shown."
    )
    paints: int = Field(
        0,
        ge=0,
        description="Channels of a coarse picture of the boxes beside z, which obeys much better; 0: none.",
    )
    dropout: float = Field(0.1, ge=0, le=1, description="Share of pictures trained without their boxes.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Config:
        if self.phrases and self.width % self.phrases.heads:
            raise ValueError(f"width is {self.width}, no multiple of {self.phrases.heads} heads")
        return self

    def reads(self, data: Columns) -> list[str]:
        """Boxes, and the sizes of the pictures that they lie in; UserError where the data has none."""
        if missing := [name for name in _COLUMNS if name not in data.names]:
            raise UserError(
                f"the data has no column {missing[0]!r}, which a layout needs: boxes are read from "
                "metadata.jsonl, Parquet or x.boxes.json beside x.png"
            )
        return list(_COLUMNS)

    def learn(self, data: Columns, latent: Latent) -> LayoutEncoder:
        """A new encoder for the labels in the data; UserError where no picture has a box."""
        counts = self._counted(data)
        if self.phrases is None:
            return LayoutEncoder(self, latent, sorted(counts), None)
        tokenizer = text.learn_tokenizer(counts.elements(), self.phrases.vocabulary)
        return LayoutEncoder(self, latent, [], text.TextEncoder(_phrase_config(self), tokenizer))

    def check(self, data: Contents) -> list[str]:
        """Says how many held-out boxes have a label that is not learned. UserError as from ``learn``."""
        return self.checked(data, None)

    def checked(self, data: Contents, labels: Sequence[str] | None) -> list[str]:
        """The same where the ``labels`` are known. UserError where a picture to train on has another."""
        counts = self._counted(data)
        if self.phrases is not None:
            return []
        known = set(counts if labels is None else labels)
        if strange := sorted(counts.keys() - known):
            raise UserError(
                f"the data has boxes of {strange[0]!r}, which the model does not know"
                f"{nearest(strange[0], sorted(known))}"
            )
        held_out = [box.label for value in data.held_out("boxes") if value for box in read_boxes(value)]
        if not (new := [label for label in held_out if label not in known]):
            return []
        return [
            f"{len(new)} boxes of held-out pictures have a label that is not learned, {new[0]!r} for example; "
            "they are left out"
        ]

    def _counted(self, data: Columns) -> Counter[str]:
        """How many boxes each label has in the data to train on."""
        self.reads(data)
        counts = Counter(box.label for value in data.values("boxes") if value for box in read_boxes(value))
        if not counts:
            raise UserError("no picture to train on has a box in the column 'boxes'")
        return counts

    def restore(self, folder: Path, latent: Latent) -> LayoutEncoder:
        """The encoder with the labels, or the tokens of phrases, that a model folder keeps."""
        if self.phrases is not None:
            return LayoutEncoder(self, latent, [], _phrase_config(self).restore(folder / "phrases"))
        return LayoutEncoder(self, latent, read_names(folder / _LABELS), None)


class LayoutEncoder(nn.Module):
    """Boxes to Context(tokens [b l d], mask [b l], image [b paints h w]); without boxes one token says so.

    A token is the perceptron of the label's embedding beside sines and cosines of left, top, right and bottom. In
    the picture each position sums, over boxes, the share of it that the box covers times the label's colours.
    """

    column = "boxes"
    form: Form = "boxes"
    vector = None

    def __init__(
        self, config: Config, latent: Latent, labels: Sequence[str], phrases: text.TextEncoder | None
    ) -> None:
        super().__init__()
        self.config, self.latent, self.labels = config, latent, list(labels)
        self.tokens, self.image = config.width, config.paints or None
        self.phrases = phrases
        self.table = nn.Embedding(
            1 if phrases else len(self.labels) + 1, config.width
        )  # row 0: there is no box
        given = config.width + 2 * _CORNERS * config.frequencies
        self.perceptron = nn.Sequential(
            nn.Linear(given, config.width),
            nn.SiLU(),
            nn.Linear(config.width, config.width),
            nn.SiLU(),
            nn.Linear(config.width, config.width),
        )
        self.colours = nn.Linear(config.width, config.paints) if config.paints else None

    def check(self, data: Contents) -> list[str]:
        """As the configuration's, against the labels that there are."""
        return self.config.checked(data, self.labels)

    def keep(self, folder: Path) -> None:
        """Writes the labels, or the tokens of phrases."""
        folder.mkdir(parents=True)
        if self.phrases is not None:
            self.phrases.keep(folder / "phrases")
        else:
            content = json.dumps(self.labels, ensure_ascii=False)
            (folder / _LABELS).write_text(content, encoding="utf-8")

    def derivations(self, columns: Sequence[str]) -> Sequence[Derivation]:
        """Nothing."""
        return ()

    def draw(
        self, columns: Mapping[str, Any], seeds: Sequence[int], *, stream: int
    ) -> Sequence[Layout | None]:
        """The boxes of each picture, None where it has none or goes without.

        A held-out picture may have a label that no picture to train on has; such a box is left out.
        """
        without = dropped(seeds, self.config.dropout, stream=stream)
        rows = zip(*(columns[name] for name in (*_COLUMNS, "mirrored")), without, strict=True)
        return [
            Layout(tuple(self._known(read_boxes(boxes))), int(width), int(height), bool(mirrored))
            if boxes and not drop
            else None
            for boxes, width, height, mirrored, drop in rows
        ]

    def cut(self, value: Any) -> int:
        """How many boxes are more than it takes, and are not read."""
        return max(0, len(read_boxes(value)) - self.config.most)

    def remarks(self, value: Any) -> list[str]:
        """Says which boxes are left out or cut off; UserError where one cannot be used."""
        boxes, found = read_boxes(value), []
        for box in boxes:
            if self.phrases is None and box.label not in self.labels:
                raise UserError(f"no box is called {box.label!r}{nearest(box.label, self.labels)}")
            inside = box.within(0, 0, 1, 1)
            if inside is None:
                raise UserError(f"the box of {box.label!r} lies outside the picture, which goes from 0 to 1")
            if inside.area < 0.999 * box.area:
                found.append(f"the box of {box.label!r} goes beyond the picture and is cut off")
        if cut := self.cut(value):
            found.append(f"the model reads {self.config.most} boxes at most: the {cut} smallest are left out")
        return found

    def prepare(self, values: Sequence[Any], size: Size) -> Mapping[str, Tensor]:
        """For each picture its boxes as they lie in what is shown at ``size``, padded to the most of them.

        ``labels [b l]`` (of phrases the number among them), ``corners [b l 4]`` in [0, 1], ``mask [b l]``; for
        painting ``across [b l w]`` and ``down [b l h]``, how far a box covers a column and a row of positions.
        """
        rows = [self._shown(value, size) for value in values]
        most = max(1, *map(len, rows)) if rows else 1
        labels = torch.zeros(len(rows), most, dtype=torch.long)
        corners = torch.zeros(len(rows), most, _CORNERS)
        names = sorted({box.label for boxes in rows for box in boxes}) if self.phrases else self.labels
        number = {name: number for number, name in enumerate(names, 1)}
        for index, boxes in enumerate(rows):
            for slot, box in enumerate(boxes):
                labels[index, slot] = number[box.label]
                corners[index, slot] = torch.tensor(box.corners)
        counts = torch.tensor([max(1, len(boxes)) for boxes in rows])
        inputs = {"labels": labels, "corners": corners, "mask": torch.arange(most) < counts[:, None]}
        if self.phrases is not None:
            inputs["phrases"] = self.phrases.prepare(names or [""])
        if self.config.paints:
            height, width = (side // self.latent.factor for side in size)
            inputs["across"] = covered(corners[..., 0], corners[..., 2], width)
            inputs["down"] = covered(corners[..., 1], corners[..., 3], height)
        return inputs

    def forward(self, inputs: Mapping[str, Tensor]) -> Context:
        table = self.table.weight
        if self.phrases is not None:
            meant = self.phrases(inputs["phrases"]).vector
            table = torch.cat([table, meant.to(table.dtype)])
        found = table[inputs["labels"]]  # b l d
        steps = torch.arange(self.config.frequencies, device=found.device, dtype=torch.float32)
        angles = inputs["corners"][..., None] * 100 ** (steps / self.config.frequencies)  # b l 4 f
        waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(2)
        tokens = self.perceptron(torch.cat([found, waves], -1))
        if self.colours is None:
            return Context(tokens=tokens, mask=inputs["mask"])
        # Slots without a box have no extent, so they paint nothing.
        painted = torch.einsum("blc,bly,blx->bcyx", self.colours(found), inputs["down"], inputs["across"])
        return Context(tokens=tokens, mask=inputs["mask"], image=painted)

    def _shown(self, value: Any, size: Size) -> list[Box]:
        """The boxes that are seen, the largest first where there are too many."""
        if isinstance(value, Layout):
            boxes = value.shown(size, self.config.visible)
        else:
            whole = [(box, box.within(0, 0, 1, 1)) for box in read_boxes(value)]
            boxes = [inside for _, inside in whole if inside is not None]
        if self.phrases is None and (strange := [b.label for b in boxes if b.label not in self.labels]):
            raise UserError(f"no box is called {strange[0]!r}{nearest(strange[0], self.labels)}")
        if len(boxes) > self.config.most:
            boxes = sorted(boxes, key=lambda box: -box.area)[: self.config.most]
        return boxes

    def _known(self, boxes: Iterable[Box]) -> list[Box]:
        return [box for box in boxes if self.phrases is not None or box.label in self.labels]


def _phrase_config(config: Config) -> text.Config:
    """The text encoder of phrases, as wide as the tokens."""
    assert config.phrases is not None
    sizes = config.phrases.model_dump()
    return text.Config(width=config.width, dropout=0, **sizes)
