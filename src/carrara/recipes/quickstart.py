"""The quickstart: small pictures with captions that come inside a package, to a text-to-image model."""

from __future__ import annotations

from dataclasses import dataclass

from carrara.recipes import kl_autoencoder, text_ldm
from carrara.training.lr_and_budget import Budget
from carrara.training.recipe import AutoencoderRecipe, DiffusionRecipe

SOURCE = "emoji"
LANGUAGES = {
    "en": "English",
    "zh": "Chinese",
    "de": "German",
    "fr": "French",
}  # in the order they are taken up
AUTOENCODER_SHARE = 0.15  # of the time: reconstructions are good long before the denoiser is
LEAST = 100  # concepts
VIEWS, MEETINGS = 100, 50
"""How often stage two sees a concept, and besides each of its captions, until nearly all are obeyed (docs/log.md)."""

SHOWN = (
    "red heart", "panda", "hamburger", "cat face", "butterfly", "pineapple", "red apple", "dog face",
    "smiling face with sunglasses",
)  # fmt: skip
"""Concepts that are learned first, and shown in the grid."""
COLOURS = ("green apple", "yellow heart", "green heart", "blue heart", "purple heart", "black cat")
"""Learned next, so that colours and things can be told apart."""
COMBINATIONS = ("cat face with sunglasses", "purple apple", "dog face with sunglasses")
"""Shown after them: no caption says these."""


@dataclass(frozen=True)
class Choice:
    """What is learned: so many concepts, with their captions in some languages."""

    concepts: int
    languages: tuple[str, ...]

    @property
    def pictures(self) -> int:
        """How many pictures have to be seen for it."""
        return self.concepts * (VIEWS + MEETINGS * len(self.languages))

    def __str__(self) -> str:
        *first, last = (LANGUAGES[language] for language in self.languages)
        return f"{self.concepts} concepts in {', '.join(first)} and {last}"


def choose(seen: float, available: int) -> Choice:
    """What can be learned well of ``available`` concepts from so many pictures seen.

    Never fewer than a hundred in two languages; all four languages once they cost no more than half the concepts.
    """
    languages = tuple(LANGUAGES)
    two, four = Choice(1, languages[:2]), Choice(1, languages)
    kind = four if seen >= 1.5 * LEAST * four.pictures else two
    return Choice(min(available, max(LEAST, int(seen / kind.pictures))), kind.languages)


def autoencoder(budget: Budget) -> AutoencoderRecipe:
    """Stage one within its share of the budget."""
    recipe = kl_autoencoder.recipe()
    train = recipe.train.model_copy(update={"budget": str(budget.share(AUTOENCODER_SHARE))})
    return recipe.model_copy(update={"train": train})


def diffusion(budget: Budget, languages: tuple[str, ...]) -> DiffusionRecipe:
    """Stage two, on captions in these languages, a quarter narrower: half the time a picture, and wide enough."""
    recipe = text_ldm.recipe()
    caption = recipe.model.conditions["caption"].model_copy(update={"languages": languages, "width": 128})
    denoiser = recipe.model.denoiser.model_copy(update={"channels": 96, "head_width": 48})
    model = recipe.model.model_copy(update={"denoiser": denoiser, "conditions": {"caption": caption}})
    train = recipe.train.model_copy(update={"budget": str(budget), "warmup": 30})
    return recipe.model_copy(update={"model": model, "train": train})
