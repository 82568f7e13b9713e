"""What an embedder is: pictures, texts or both become unit vectors, near each other where they mean alike.

A module of this folder with a function ``embedder`` is one. Where it is opened from a folder, it also has ``opens``,
which says whether a folder is its kind, and ``embedder`` takes that folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Vectors = npt.NDArray[np.float32]  # [n d], each of length one, or zero where there was nothing to embed


@dataclass(frozen=True)
class Lift:
    """How the vectors of one embedder become those of another that stands on it."""

    below: Embedder
    lift: Callable[[Vectors], Vectors]


@dataclass(frozen=True)
class Embedder:
    """``pictures`` takes ``uint8 [b 3 size size]``, ``texts`` takes words; None where it cannot.

    ``key`` says what makes its vectors what they are (weights, code), so that a stored column is known to be its
    own. ``joint`` is whether its pictures and its texts share a space. ``picture_lift`` and ``text_lift`` are there
    where it stands on another's vectors, which need not be computed again. ``where`` is the folder that it was opened
    from, None where it came with a package.
    """

    name: str
    key: Mapping[str, Any]
    width: int
    pictures: Callable[[Tensor], Vectors] | None = None
    texts: Callable[[Sequence[str]], Vectors] | None = None
    size: int | None = None
    joint: bool = False
    picture_lift: Lift | None = None
    text_lift: Lift | None = None
    where: str | None = None


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """``[n d]`` at length one; what has no length stays as it is."""
    found = np.asarray(vectors, np.float32)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    at_one: Vectors = np.divide(found, length, out=np.zeros_like(found), where=length > 1e-12)
    return at_one
