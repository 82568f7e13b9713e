"""Mirroring half of the pictures of a training: said before it begins, and done to the columns beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carrara.dataset.picture_columns import mirror


def setting(recipe: Any) -> str:
    """The setting by which a recipe mirrors half of the pictures; "" where it mirrors none."""
    pixels = getattr(recipe, "pixels", None)
    if pixels is not None:
        return "pixels.flip" if pixels.flip else ""
    return "flip" if getattr(recipe, "flip", False) else ""


def note(recipe: Any) -> str:
    """A sentence for a user where pictures are mirrored, else ""."""
    if not (name := setting(recipe)):
        return ""
    return (
        f"half of the pictures are mirrored, also writing, clock faces and what captions call left and right; "
        f"--set {name}=false keeps them as they are"
    )


def as_seen(name: str, column: Any, mirrored: Tensor) -> Any:
    """The column ``name`` of pictures ``[b ... h w]`` with those mirrored whose latents are; any other as it is."""
    if not isinstance(column, Tensor) or column.ndim < 3 or column.is_floating_point():
        return column
    turned = mirror(name, column) if mirrored.any() else column
    bits, other = (c.view(torch.int16) if c.dtype == torch.uint16 else c for c in (column, turned))
    return torch.where(mirrored.reshape(-1, *(1,) * (bits.ndim - 1)), other, bits).view(column.dtype)
