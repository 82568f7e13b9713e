"""The quickstart: small pictures with captions that come inside a package, to a text-to-image model."""

from __future__ import annotations

from carrara.recipes import kl_autoencoder, text_ldm
from carrara.training.autoencoding import AutoencoderRecipe
from carrara.training.budget import Budget
from carrara.training.diffusing import DiffusionRecipe

SOURCE = "emoji"
LANGUAGES = ("en", "de", "zh", "fr")  # of the 14 it comes with: each caption has to be met some 30 times
AUTOENCODER_SHARE = 0.15  # of the time: reconstructions are good long before the denoiser is

PROMPTS = (
    "red heart", "panda", "hamburger", "grinning face with sunglasses",
    "rotes herz", "katzengesicht", "Schmetterling", "Ananas",
    "红苹果", "狗脸", "blue cat face", "green heart with sunglasses",
)  # fmt: skip
"""Seen ones, German and Chinese ones, and two that no caption says."""


def autoencoder(budget: Budget) -> AutoencoderRecipe:
    """Stage one within its share of the budget."""
    recipe = kl_autoencoder.recipe()
    train = recipe.train.model_copy(update={"budget": str(budget.share(AUTOENCODER_SHARE))})
    return recipe.model_copy(update={"train": train})


def diffusion(budget: Budget) -> DiffusionRecipe:
    """Stage two with the rest, on four of the languages."""
    recipe = text_ldm.recipe()
    caption = recipe.model.conditions["caption"].model_copy(update={"languages": LANGUAGES})
    model = recipe.model.model_copy(update={"conditions": {"caption": caption}})
    train = recipe.train.model_copy(update={"budget": str(budget.share(1 - AUTOENCODER_SHARE))})
    return recipe.model_copy(update={"model": model, "train": train})
