"""The size a picture had and where it was cut, so that small or cut pictures do no harm (Podell et al. 2023, 2.2)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from carrara.conditions.condition import Columns, Derivation, Form, Latent, dropped
from carrara.config import Config as Base
from carrara.context import Context
from carrara.errors import UserError, nearest
from carrara.geometry import Size, shown

_COLUMNS = ("width", "height")
_NUMBERS = 6  # original height and width, top and left of the cut, height and width that are made
_MOST = 2**20  # pixels a side
_KEYS = ("original", "crop")
_EXPECTED = '"1024x768" (width x height), or {"original": [height, width], "crop": [top, left]}'


class Config(Base):
    """Six numbers as cosines and sines, a vector beside the time; nothing is learned here."""

    placed: ClassVar[bool] = True
    kind: Literal["size"] = "size"
    features: int = Field(256, ge=2, multiple_of=2, description="Cosines and sines for each of the numbers.")
    dropout: float = Field(
        0.0, ge=0, le=1, description="Share of pictures trained as if they had the size that is made."
    )

    def reads(self, data: Columns) -> list[str]:
        """The columns of the pictures' own width and height; UserError where the data has none."""
        if missing := [name for name in _COLUMNS if name not in data.names]:
            raise UserError(
                f"the data has no column {missing[0]!r} for the size{nearest(missing[0], data.names)}"
            )
        return list(_COLUMNS)

    def learn(self, data: Columns, latent: Latent | None = None) -> SizeEncoder:
        """The encoder."""
        self.reads(data)
        return SizeEncoder(self)

    def restore(self, folder: Path, latent: Latent | None = None) -> SizeEncoder:
        """The encoder."""
        return SizeEncoder(self)


@dataclass(frozen=True)
class Original:
    """Height and width in pixels before scaling; ``crop`` is (top, left) after it, None of the central one."""

    height: float
    width: float
    crop: tuple[float, float] | None = None


class SizeEncoder(nn.Module):
    """numbers [b 6] -> Context(vector [b 6*features]); None is a picture of the size that is made, not cut."""

    column = "size"
    form: Form = "size"
    tokens = None
    image = None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.vector = _NUMBERS * config.features

    def keep(self, folder: Path) -> None:
        """Nothing but the folder: its configuration says it all."""
        folder.mkdir(parents=True)

    def derivations(self, columns: Sequence[str]) -> Sequence[Derivation]:
        """Nothing."""
        return ()

    def draw(
        self, columns: Mapping[str, Any], seeds: Sequence[int], *, stream: int
    ) -> Sequence[Original | None]:
        """The size of each picture, None where it goes without; mirrored or not, the middle is the middle."""
        without = dropped(seeds, self.config.dropout, stream=stream)
        sides = zip(columns["height"], columns["width"], without, strict=True)
        return [None if drop else Original(int(height), int(width)) for height, width, drop in sides]

    def prepare(self, values: Sequence[Any], size: Size) -> Tensor:
        """``float32 [b 6]``: heights before widths, in pixels."""
        rows = []
        for value in values:
            given = value if isinstance(value, Original) else _read(value, size)
            crop = given.crop
            if crop is None:
                part = shown(int(given.width), int(given.height), size)
                crop = (
                    round(part.top * given.height * part.ratio),
                    round(part.left * given.width * part.ratio),
                )
            rows.append([given.height, given.width, *crop, *size])
        return torch.tensor(rows, dtype=torch.float32)

    def remarks(self, value: Any) -> list[str]:
        """Nothing to say of a size; UserError where it is none."""
        _read(value, (1, 1))
        return []

    def forward(self, numbers: Tensor) -> Context:
        half = self.config.features // 2
        steps = torch.arange(half, device=numbers.device, dtype=torch.float32)
        angles = numbers[..., None].float() * torch.exp(-math.log(10_000) / half * steps)  # b 6 half
        return Context(vector=torch.cat([angles.cos(), angles.sin()], -1).flatten(1))


def _read(value: Any, size: Size) -> Original:
    """A request's size; what it leaves out is as in a picture made at ``size`` and not cut."""
    if value is None or value == "":
        return Original(*size, (0, 0))
    if isinstance(value, str):
        if sides := re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", value):
            value = {"original": [int(sides[2]), int(sides[1])]}
        else:
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise UserError(f"{value[:80]!r} is no size; expected {_EXPECTED}") from None
    if not isinstance(value, Mapping):
        raise UserError(f"{str(value)[:80]} is no size; expected {_EXPECTED}")
    if strange := [str(key) for key in value if key not in _KEYS]:
        raise UserError(f"a size has no {strange[0]!r}{nearest(strange[0], _KEYS)}; expected {_EXPECTED}")
    height, width = _pair(value.get("original", size), least=1)
    return Original(height, width, _pair(value.get("crop", (0, 0)), least=0))


def _pair(value: Any, least: int) -> tuple[float, float]:
    numbers = [n for n in value if isinstance(n, int | float)] if isinstance(value, list | tuple) else []
    if len(numbers) != 2 or len(value) != 2 or not all(least <= n <= _MOST for n in numbers):
        raise UserError(f"{str(value)[:80]} are no two numbers from {least} to {_MOST}; expected {_EXPECTED}")
    return numbers[0], numbers[1]
