"""A reconstruction: what one training pass of any autoencoder gives: the picture again, its latent, the latent's own
loss terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Reconstruction(NamedTuple):
    """``picture`` [b c H W], ``latent`` [b c h w] as the decoder saw it, ``terms``: weighted scalars by name."""

    picture: Tensor
    latent: Tensor
    terms: Mapping[str, Tensor]
