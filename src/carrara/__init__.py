"""Carrara: train, search, measure and serve your own latent diffusion model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.generation.model import Model

# Before torch is there: threads that wait for each other sleep soon, so that a busy neighbour gets the core and the
# thread that is waited for is not kept off it (with the library's own setting an operation takes many times as long).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"


def load(path: str | Path) -> Model | StoredAutoencoder:
    """Opens any model folder: a diffusion model, or an autoencoder on its own.

    UserError, in one line, where a file is missing, damaged, or written by a newer Carrara.
    """
    from carrara.model_folder import read_about

    if read_about(Path(path)).get("kind") == "autoencoder":
        from carrara.autoencoders.stored import load_autoencoder

        return load_autoencoder(path)
    from carrara.generation.model import load_model

    return load_model(path)
