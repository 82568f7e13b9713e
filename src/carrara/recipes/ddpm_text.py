"""DDPM in pixels with text: the same, guided by a text encoder trained beside it."""

from carrara.conditions import text
from carrara.recipes import ddpm
from carrara.training.recipe import DiffusionRecipe


def recipe() -> DiffusionRecipe:
    """``ddpm`` with a condition; nothing is mirrored, since captions know left from right."""
    plain = ddpm.recipe()
    model = plain.model.model_copy(update={"conditions": {"caption": text.Config()}})
    pixels = plain.pixels.model_copy(update={"flip": False}) if plain.pixels else None
    return plain.model_copy(update={"model": model, "pixels": pixels})
