"""Models as a command names them: by their folder or by the run that made them, and what is said of them."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from carrara.errors import UserError
from carrara.files import check_writable
from carrara.model_folder import model_in

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.generation.model import Model


def example(run: Path) -> str:
    """How a request to a run's model may be stated, e.g. " --label cat"."""
    return example_for(open_model(run))


def example_for(model: Model) -> str:
    """How a request to a model may be stated."""
    words = {
        "text": ' "a prompt"',
        "boxes": ' --boxes \'[{"label": …, "box": [0.1, 0.1, 0.5, 0.5]}]\'',
    }
    found = ""
    pictures = {str(encoder.column) for encoder in model.conditions.values() if encoder.form == "picture"}
    for encoder in model.conditions.values():
        form = str(encoder.form)
        if form == "picture":
            found += " --picture FILE" if len(pictures) == 1 else f" --picture {encoder.column}=FILE"
        found += f" --label {encoder.classes[0]!r}" if form == "label" else words.get(form, "")  # type: ignore[index]
        found += " --mask FILE" if form == "picture" and encoder.config.shows == "masked" else ""  # type: ignore[union-attr]
    return found


def open_autoencoder(path: Path) -> StoredAutoencoder:
    """From a model folder, from the run that made it, or from a folder in the layout of diffusers."""
    from carrara.interop import diffusers_autoencoder

    return diffusers_autoencoder.open_autoencoder(model_in(path))


def is_diffusion(path: Path) -> bool:
    """Whether a folder, or the run that made it, holds a diffusion model."""
    from carrara.model_folder import ABOUT, read_about

    found = model_in(path)
    return (found / ABOUT).is_file() and read_about(found).get("kind") == "diffusion"


def open_model(path: Path, device: str = "auto") -> Model:
    """A diffusion model from its folder or its run, on the GPU where there is one; UserError of an absent device."""
    from carrara.generation.model import load_model
    from carrara.training.parallel import Placement

    placement = Placement.choose(device)
    return load_model(model_in(path)).to(placement.device)


def say_about(model: Model, prompt: str) -> None:
    """What a user should know of this prompt and this model, on standard error."""
    from carrara.evaluation.prompts import remarks

    for remark in remarks(model, prompt):
        sys.stderr.write(f"note: {remark}\n")


def make_folder(path: Path) -> None:
    """The folder, made where it is missing; UserError where it cannot be."""
    check_writable(path)
    path.mkdir(parents=True, exist_ok=True)


def writable(path: Path | None) -> Path | None:
    """Of an option that says where results go: UserError, before any work, where nothing can be written there."""
    if path is not None and not str(path).startswith("s3:/"):
        check_writable(path)
    return path


def number(value: float | None) -> float | None:
    """Of an option with a range: UserError for nan, which is in every range."""
    if value is not None and not math.isfinite(value):
        raise UserError(f"{value} is no number that can be used here")
    return value
