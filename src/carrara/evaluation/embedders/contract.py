"""What an embedder is: pictures, texts or both become unit vectors, near each other where they mean alike.

A module of this folder with a function ``embedder(where)`` is one; ``where`` is the folder that it is opened from, for
those that need one. Where one has both, its pictures and its texts share a space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Vectors = npt.NDArray[np.float32]  # [n d], each of length one


@dataclass(frozen=True)
class Embedder:
    """``pictures`` takes ``uint8 [b 3 size size]``, ``texts`` takes words; None where it cannot.

    ``key`` says what makes its vectors what they are (weights, code), so that a stored column is known to be
    its own; ``where`` is the folder that it was opened from, None where it came with a package.
    """

    name: str
    key: Mapping[str, Any]
    width: int
    pictures: Callable[[Tensor], Vectors] | None = None
    texts: Callable[[Sequence[str]], Vectors] | None = None
    size: int | None = None
    where: str | None = None


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """``[n d]`` at length one; what has no length stays as it is."""
    found = np.asarray(vectors, np.float32)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return np.divide(found, length, out=np.zeros_like(found), where=length > 1e-12)
