"""Editing pictures: sampling that starts from one, and fills a hole of it with any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carrara.autoencoders.tiling import encode_any_size
from carrara.conditions.random_holes import blend, hole_remarks
from carrara.errors import UserError
from carrara.generation.model import Model
from carrara.geometry import Size, central, fit_mask, fit_picture

_PART = 0.5  # the strength of a picture without a hole, where none is given


@dataclass(frozen=True, eq=False)
class Original:
    """The picture to start from, ``uint8`` or ``uint16 [c h w]`` of any size, and its mask, ``[h w]`` or ``[1 h w]``.

    Where the mask is not zero a hole is filled, and the rest is kept; without a mask all of the picture changes.
    """

    picture: Tensor
    mask: Tensor | None = None

    @property
    def hole(self) -> Tensor:
        """``bool [h w]``, everything without a mask."""
        if self.mask is None:
            return torch.ones(self.picture.shape[-2:], dtype=torch.bool)
        return self.mask.reshape(self.mask.shape[-2:]) != 0

    def check(self, model: Model) -> None:
        """UserError where this is no picture that the model could have made, or no mask of it."""
        channels, picture = int(model.autoencoder.config.image_channels), self.picture
        if not isinstance(picture, Tensor) or picture.dtype not in (torch.uint8, torch.uint16) or (
            picture.ndim != 3 or len(picture) != channels
        ):  # fmt: skip
            raise UserError(
                f"the picture to start from is {_kind(picture)}; expected uint8 or uint16 [{channels} h w]"
            )
        if self.mask is not None and (
            not isinstance(self.mask, Tensor) or self.mask.squeeze(0).shape != picture.shape[-2:]
        ):
            raise UserError(
                f"the mask is {_kind(self.mask)}, its picture {_kind(picture)}; expected one size"
            )

    def remarks(self, size: Size) -> list[str]:
        """What a user should know: the hole is nothing or everything, or the picture is cut to be of ``size``."""
        found = hole_remarks(self.hole) if self.mask is not None else []
        height, width = self.picture.shape[-2:]
        tall, wide = central(self.picture, size).shape[-2:]
        if (tall, wide) != (height, width):
            found.append(
                f"of the picture's {width} x {height} pixels the middle {wide} x {tall} are used; --size changes that"
            )
        return found

    def finish(self, made: Tensor) -> Tensor:
        """The picture as it is handed over ``[c H W]``: outside of a hole the given pixels stay as they are."""
        return made if self.mask is None else blend(self.picture, made, self.mask)


def originals(model: Model, count: int, pictures: Any, masks: Any) -> list[Original] | None:
    """One for each of ``count`` pictures: ``[c h w]`` and ``[h w]`` are for all, a further axis holds one each."""
    if pictures is None:
        if masks is not None:
            raise UserError("a mask says what to fill of a picture: give that as start")
        return None
    several = [_each(count, value, axes) for value, axes in ((pictures, 3), (masks, 2))]
    found = [Original(picture, mask) for picture, mask in zip(*several, strict=True)]
    for one in found:
        one.check(model)
    return found


def strength_for(strength: float | None, given: Sequence[Original] | None) -> float | None:
    """The strength, by default 1 where there is a hole; UserError where there is nothing to start from."""
    if not given:
        if strength is not None:
            raise UserError(
                "a strength says how far to go from a picture; give the picture to start from too"
            )
        return None
    if strength is None:
        return 1.0 if any(one.mask is not None for one in given) else _PART
    return strength


def encoded_originals(model: Model, given: Sequence[Original], size: Size) -> tuple[Tensor, Tensor]:
    """Scaled latents ``[n c h w]``, and ``[n 1 h w]``: 1 where a position has any part in the hole, else 0."""
    autoencoder, scale = model.autoencoder, model.autoencoder.scale
    assert scale is not None
    _, *sides = model.latent_of(size)
    latents: dict[int, Tensor] = {}
    for one in given:
        if id(one.picture) not in latents:
            image = fit_picture(one.picture, size)[None].to(model.device)
            latents[id(one.picture)] = scale.scale(encode_any_size(autoencoder.module, image).mode())
    holes = [fit_mask(fit_mask(one.hole, size), (sides[0], sides[1]))[None].float() for one in given]
    return torch.cat([latents[id(one.picture)] for one in given]), torch.stack(holes).to(model.device)


def _each(count: int, value: Any, axes: int) -> list[Any]:
    if getattr(value, "ndim", 0) != axes + 1 or (axes == 2 and len(value) == 1):
        return [value] * count
    if len(value) != count:
        raise UserError(f"{count} rows need a start, or a mask, for all or one each; got {len(value)}")
    return list(value)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"a {type(value).__name__}"
