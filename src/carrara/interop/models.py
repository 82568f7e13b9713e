"""Models by their folder or by the run that made them, ours or in the layout of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from carrara.model_place import model_in

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.generation.model import Model


def open_autoencoder(path: Path) -> StoredAutoencoder:
    """From a model folder, from the run that made it, or from a folder in the layout of diffusers."""
    from carrara.interop.diffusers import autoencoder

    return autoencoder.open_autoencoder(model_in(path))


def is_diffusion(path: Path) -> bool:
    """Whether a folder, or the run that made it, holds a diffusion model."""
    from carrara.model_folder import ABOUT, read_about

    found = model_in(path)
    return (found / ABOUT).is_file() and read_about(found).get("kind") == "diffusion"


def open_model(path: Path, device: str = "auto") -> Model:
    """A diffusion model from its folder or its run, on the GPU where there is one; UserError of an absent device."""
    from carrara.generation.model import load_model
    from carrara.training.devices import Placement

    placement = Placement.choose(device)
    return load_model(model_in(path)).to(placement.device)
