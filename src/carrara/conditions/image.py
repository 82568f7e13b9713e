"""An image beside z, concatenated to its channels (Saharia et al. 2021; Rombach et al. 2022, section 4.3.2).

A low-resolution picture, a masked one, a map of classes, any other picture of the row, or its own edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from carrara.conditions.condition import Columns, Contents, Derivation, Form, Latent, dropped
from carrara.conditions.random_holes import Masked, draw_hole, hole_remarks
from carrara.config import Config as Base
from carrara.context import Context
from carrara.errors import UserError, nearest
from carrara.geometry import Size, central, edges, fit_map, fit_mask, fit_picture, resize, shrink
from carrara.tensors import from_pixels, mix, sample_noise, sample_uniform

UNLABELLED = 255
"""In maps the number of "no class", as most data sets have it (where there are not that many classes)."""

_HOLE, _LEVEL, _NOISE = 1, 2, 3  # which of the condition's sixteen streams
_LEVEL_FEATURES = 64
_MAPS = 1000  # looked at before training; more would take minutes
_NULL = -2.0  # darker than black: a null that no picture looks like
_CLASSES = ("map", "mask")  # columns of whole numbers
_SETTINGS = {  # those that mean something in one form alone
    "low_resolution": ("factor", "noise"),
    "map": ("classes",),
    "column": ("channels",),
}


class Config(Base):
    """What is shown, and how it comes to the latent's resolution."""

    placed: ClassVar[bool] = True
    kind: Literal["image"] = "image"
    shows: Literal["low_resolution", "masked", "map", "column", "edges"] = Field(
        "low_resolution",
        description="The picture made small (super-resolution), with a hole in it (inpainting) or as edges; "
        "the row's map of classes; another picture of the row.",
    )
    through: Literal["pixels", "resize", "autoencoder"] = Field(
        "resize",
        description="To the latent's resolution: all pixels of a position through a learned layer, the picture "
        "made small, or its latent.",
    )
    column: str = Field(
        "", description="The column of the other picture (depth, edges, normal, …); of a map, if not map."
    )
    channels: int = Field(1, ge=1, le=4096, description="Channels of that picture.")
    classes: int = Field(0, ge=0, description="Classes of the map, numbered from 0; 255 is no class.")
    factor: int = Field(4, ge=2, description="How many times smaller the low-resolution picture is.")
    noise: float = Field(
        0.0, ge=0, lt=1, description="Strongest noise on the low-resolution picture (its level is told)."
    )
    width: int = Field(16, ge=1, description="Channels that a learned layer gives (pixels, maps).")
    dropout: float = Field(0.1, ge=0, le=1, description="Share of pictures trained without it.")

    @property
    def learned(self) -> bool:
        """Whether a layer of its own brings it to ``width`` channels."""
        return self.through == "pixels" or self.shows == "map"

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        for form, names in _SETTINGS.items():
            for name in names:
                if self.shows != form and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name!r} belongs to shows = {form!r}; here it is {self.shows!r}")
        if self.shows == "map" and not self.classes:
            raise ValueError("a map needs 'classes', their number")
        if self.shows == "map" and self.through == "autoencoder":
            raise ValueError(
                "an autoencoder knows pictures, no maps of classes; take through = 'pixels' or 'resize'"
            )
        if self.column and self.shows not in ("column", "map"):
            raise ValueError(f"'column' belongs to shows = 'column' or 'map'; here it is {self.shows!r}")
        if self.column in ("", "image") and (self.column or self.shows == "column"):
            raise ValueError(
                "'column' must name the picture that is shown, another one than the picture to be made"
            )
        if self.shows == "column" and self.column in _CLASSES:
            raise ValueError(f"{self.column!r} holds classes: take shows = 'map', with their number")
        if not self.learned and self.width != type(self).model_fields["width"].default:
            raise ValueError(f"'width' is for what is learned; through {self.through!r} nothing is")
        return self

    def reads(self, data: Columns) -> list[str]:
        """The picture's own column, or the other. UserError where the data lacks it."""
        column = self.column or ("map" if self.shows == "map" else "image")
        if column not in data.names:
            raise UserError(f"the data has no column {column!r} to show{nearest(column, data.names)}")
        return [column]

    def check(self, data: Contents) -> list[str]:
        """Says where not all maps were looked at. UserError where a picture lacks the column, or a map is beyond."""
        (column,) = self.reads(data)
        if column == "image":  # the pictures themselves
            return []
        lacking, every = data.missing(column)
        if lacking:
            raise UserError(
                f"{lacking} of {every} pictures have nothing in the column {column!r}, which this condition shows; "
                f"""leave them out with `carrara data filter DATA NEW --where "{column} IS NOT NULL"`"""
            )
        if self.shows != "map":
            return []
        for name, numbers in data.numbers(column, _MAPS):
            known = range(self.classes)
            if wrong := [n for n in numbers if n not in known and (n != UNLABELLED or n < self.classes)]:
                raise UserError(
                    f"the map of {name!r} has the class {wrong[0]}; with classes = {self.classes} expected 0 to "
                    f"{self.classes - 1}, or 255 for none"
                )
        return [f"the classes of {_MAPS} maps of {every} were looked at"] if every > _MAPS else []

    def learn(self, data: Columns, latent: Latent) -> ImageEncoder:
        """A new encoder; nothing of the data has to be known."""
        return ImageEncoder(self, latent)

    def restore(self, folder: Path, latent: Latent) -> ImageEncoder:
        """The same; all that there is are weights."""
        return ImageEncoder(self, latent)


@dataclass(frozen=True, eq=False)
class Noised:
    """A low-resolution picture ``uint8`` or ``uint16 [c h w]`` that gets noise of a ``level`` from 0 to below 1."""

    picture: Tensor
    level: float
    seed: int


class ImageEncoder(nn.Module):
    """picture [b c h w] (and mask, level) or classes [b H W] -> Context(image [b k h w], perhaps vector [b 64]).

    A mask comes first and is 1 in the hole. ``column`` of a request holds a picture ``uint8`` or ``uint16
    [channels h w]`` of any size and ``bits``, a `Masked`, or a map of whole numbers ``[h w]``.
    """

    form: Form = "picture"
    tokens = None

    def __init__(self, config: Config, latent: Latent) -> None:
        super().__init__()
        self.config, self.latent = config, latent
        self.bits = 16 if config.shows == "column" else latent.bits  # depth needs them, no other minds
        self.column = config.column or config.shows
        self.channels = {"column": config.channels, "map": 1}.get(config.shows, latent.image_channels)
        self.shown = {"edges": 1, "map": config.classes}.get(config.shows, self.channels)
        self.vector = _LEVEL_FEATURES if config.noise else None
        masks = int(config.shows == "masked")
        if config.through == "autoencoder" and self.shown not in (1, latent.image_channels):
            raise UserError(
                f"{self.column!r} has {self.shown} channels; the autoencoder takes {latent.image_channels} "
                "(or 1, repeated)"
            )
        if config.shows == "map":
            self.image = config.width
            positions = latent.factor**2 if config.through == "pixels" else 1
            self.table = nn.Embedding(positions * (config.classes + 1), config.width)  # the last: no class
            nn.init.normal_(self.table.weight, std=positions**-0.5)  # so that their sum is about 1
            return
        if config.through == "pixels":
            self.image = config.width
            self.conv_in = nn.Conv2d((self.shown + masks) * latent.factor**2, 2 * config.width, 1)
            self.conv_out = nn.Conv2d(2 * config.width, config.width, 3, padding=1)
        else:
            self.image = masks + (self.shown if config.through == "resize" else latent.channels)
        if not masks:  # there, nothing known is a hole everywhere
            self.null = nn.Parameter(torch.full((self.image,), _NULL))

    def check(self, data: Contents) -> list[str]:
        """As the configuration's."""
        return self.config.check(data)

    def keep(self, folder: Path) -> None:
        """Nothing besides the weights."""
        folder.mkdir(parents=True)

    def derivations(self, columns: Sequence[str]) -> Sequence[Derivation]:
        """Nothing."""
        return ()

    def draw(self, columns: Mapping[str, Any], seeds: Sequence[int], *, stream: int) -> Sequence[Any]:
        """What is shown of each picture (which comes mirrored already), None where it is dropped or absent."""
        without = dropped(seeds, self.config.dropout, stream=stream)
        found = self._drawn(next(v for name, v in columns.items() if name != "mirrored"), seeds, 16 * stream)
        return [None if drop else value for drop, value in zip(without, found, strict=True)]

    def _drawn(self, pictures: Any, seeds: Sequence[int], first: int) -> Iterable[Any]:
        if self.config.shows == "low_resolution":
            small = shrink(torch.stack(tuple(pictures)), self.config.factor)
            if not self.config.noise:
                return small.unbind()
            levels = (self.config.noise * sample_uniform(seeds, stream=first + _LEVEL)).tolist()
            return [
                Noised(one, level, mix(int(seed), first + _NOISE))
                for one, level, seed in zip(small, levels, seeds, strict=True)
            ]
        if self.config.shows == "masked":
            return [
                Masked(one, draw_hole(mix(int(seed), first + _HOLE), *one.shape[-2:]))
                for one, seed in zip(pictures, seeds, strict=True)
            ]
        return list(pictures)

    def prepare(self, values: Sequence[Any], size: Size) -> dict[str, Tensor]:
        """Each brought to ``size`` or to the latent's. UserError where one cannot be shown."""
        known = torch.tensor([value is not None for value in values])
        if self.config.shows == "map":
            return {"classes": torch.stack([self._classes(value, size) for value in values])}
        if self.config.shows == "masked":
            both = [self._masked(value, size) for value in values]
            holes, pictures = (torch.stack(part) for part in zip(*both, strict=True))
            return {"picture": pictures, "mask": holes, "known": known}
        inputs = {"picture": torch.stack([self._picture(value, size) for value in values]), "known": known}
        if self.vector:
            inputs["level"] = torch.tensor([_level(value) for value in values])
        return inputs

    def remarks(self, value: Any) -> list[str]:
        """Where a mask hides nothing or all; UserError of a value that cannot be shown, or lacks where it must not."""
        if value is None:
            if not self.config.dropout:
                raise UserError(f"this model was always shown {self.column!r}; give one")
            return []
        if self.config.shows == "map":
            self._classes(value)
        elif self.config.shows == "masked":
            return hole_remarks(self._checked_hole(value))
        else:
            self._checked(value.picture if isinstance(value, Noised) else value)
        return []

    def forward(self, inputs: Mapping[str, Tensor]) -> Context:
        if self.config.shows == "map":
            return Context(image=self._embedded(inputs["classes"]))
        picture, mask = inputs["picture"], inputs.get("mask")
        if self.config.through == "autoencoder":
            picture = self.latent.encode(picture.expand(-1, self.latent.image_channels, -1, -1))
        if mask is not None:
            picture = torch.cat([mask, picture], 1)
        if self.config.through == "pixels":
            picture = self.conv_out(F.silu(self.conv_in(F.pixel_unshuffle(picture, self.latent.factor))))
        if mask is None:
            picture = torch.where(inputs["known"][:, None, None, None], picture, self.null[:, None, None])
        return Context(image=picture, vector=_level_features(inputs["level"]) if self.vector else None)

    def _picture(self, value: Any, size: Size) -> Tensor:
        """``float32 [c *size]``, or at the latent's resolution where it is resized to that; zeros of None."""
        at = self._resolution(size) if self.config.through == "resize" else size
        if value is None:
            return torch.zeros(self.shown, *at)
        if self.config.shows == "edges":
            return resize(edges(fit_picture(self._checked(value), size)), at)
        if self.config.shows == "column":
            return fit_picture(self._checked(value), at)
        picture = self._checked(value.picture if isinstance(value, Noised) else value)
        factor = self.config.factor
        small = fit_picture(picture, (max(1, round(size[0] / factor)), max(1, round(size[1] / factor))))
        if level := _level(value):
            noise = sample_noise([value.seed], small.shape)[0]
            small = math.sqrt(1 - level**2) * small + level * noise
        return resize(small, at)

    def _masked(self, value: Masked | None, size: Size) -> tuple[Tensor, Tensor]:
        """Hole and picture, emptied before anything else: no filter carries what is hidden to what is seen."""
        if value is None:
            hole, image = torch.ones(size, dtype=torch.bool), torch.zeros(self.shown, *size)
        else:
            hole = self._checked_hole(value)
            image = from_pixels(value.picture).masked_fill(hole, 0.0)
            image, hole = resize(central(image, size), size).clamp(-1, 1), fit_mask(hole, size)
            image = image.masked_fill(hole, 0.0)
        if self.config.through != "pixels":
            hole = fit_mask(hole, self._resolution(size))
        if self.config.through == "resize":
            image = resize(image, self._resolution(size))
        return hole[None].float(), image

    def _classes(self, value: Any, size: Size | None = None) -> Tensor:
        """``int64 size`` (without one, the map's own); the number after the last class is none."""
        classes = self.config.classes
        if value is None and size is not None:
            return torch.full(size, classes)
        if not isinstance(value, Tensor):
            raise UserError(f"{self.column!r} holds no maps of classes")
        if value.ndim == 3 and len(value) == 1:
            value = value[0]
        if value.ndim != 2 or value.is_floating_point():
            raise UserError(f"a map of classes holds one whole number a pixel; this one is {_told(value)}")
        ids = fit_map(value, size or (value.shape[0], value.shape[1]))
        none = (ids == UNLABELLED) & (classes <= UNLABELLED)
        if (wrong := ids[~none & ((ids < 0) | (ids >= classes))]).numel():
            raise UserError(
                f"the map has the class {int(wrong[0])}; expected 0 to {classes - 1}, or 255 for none"
            )
        return ids.masked_fill(none, classes)

    def _embedded(self, ids: Tensor) -> Tensor:
        """A row of the table for every pixel and, of "pixels", its place; summed or averaged over a position.

        That is a convolution of the map in one-hot form, which is never written out.
        """
        f, (b, h, w) = self.latent.factor, ids.shape
        cells = ids.reshape(b, h // f, f, w // f, f).transpose(2, 3).reshape(-1, f * f)
        if self.config.through == "pixels":
            cells = cells + torch.arange(f * f, device=ids.device) * (self.config.classes + 1)
        mode = "sum" if self.config.through == "pixels" else "mean"
        rows = F.embedding_bag(cells, self.table.weight, mode=mode)
        return rows.view(b, h // f, w // f, -1).permute(0, 3, 1, 2)

    def _checked(self, picture: Any) -> Tensor:
        if not isinstance(picture, Tensor):
            raise UserError(f"{self.column!r} holds no pictures")
        if (
            picture.ndim != 3
            or len(picture) != self.channels
            or picture.dtype not in (torch.uint8, torch.uint16)
        ):
            raise UserError(
                f"{self.column!r} must be a picture of {self.channels} channels with 8 or 16 bits; "
                f"this one is {_told(picture)}"
            )
        return picture

    def _checked_hole(self, value: Masked) -> Tensor:
        if not isinstance(value, Masked):
            raise UserError(f"{self.column!r} needs a picture and a mask of what is to be filled")
        hole, picture = value.hole, self._checked(value.picture)
        if hole.shape != picture.shape[-2:]:
            raise UserError(
                f"the mask is {_told(hole)}, its picture {_told(picture)}; they must have one size"
            )
        return hole

    def _resolution(self, size: Size) -> Size:
        return size[0] // self.latent.factor, size[1] // self.latent.factor


def _told(picture: Tensor) -> str:
    *channels, h, w = (1, 1, *picture.shape)[-3:] if picture.ndim < 3 else picture.shape
    return f"{w} x {h} with {channels[0]} channels of {str(picture.dtype).removeprefix('torch.')}"


def _level(value: Any) -> float:
    return value.level if isinstance(value, Noised) else 0.0


def _level_features(level: Tensor) -> Tensor:
    """Cosines and sines of a level [b]: [b 64]."""
    half = _LEVEL_FEATURES // 2
    frequencies = 1000.0 * torch.exp(torch.arange(half, device=level.device) * (-math.log(1e4) / half))
    angles = level.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)
