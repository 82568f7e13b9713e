"""Stage one: an autoencoder learns to give its pictures back (Rombach et al. 2022, section 3.1 and appendix G)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from carrara.errors import UserError
from carrara.tensors import from_pixels, sample_noise, sample_uniform
from carrara.training.looks import Looks
from carrara.training.losses import reconstruction_terms
from carrara.training.recipe import LOG_EVERY
from carrara.training.task import Task
from carrara.training.validation import LOOKED_AT

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.loader import Loaded
    from carrara.training import discriminator as adversary
    from carrara.training.checkpoint import TrainingState
    from carrara.training.recipe import AutoencoderRecipe


_DRAWINGS = 5  # of reconstructions in a run
_NOISE, _FLIP = 1, 2  # streams of a sample's randomness
LOOKS = Looks("held_out", count=20, passes=LOOKED_AT)


def with_network(recipe: AutoencoderRecipe, start: StoredAutoencoder | None) -> AutoencoderRecipe:
    """The recipe with its network, or with ``start``'s where it has none. UserError where there is none or two."""
    if start is None:
        if recipe.autoencoder is None:
            raise UserError(
                "this recipe has no network of its own: give the autoencoder to start from as --start"
            )
        return recipe
    if recipe.autoencoder is None:
        return recipe.model_copy(update={"autoencoder": start.config})
    ours, theirs = recipe.autoencoder.model_dump(), start.config.model_dump()
    # What only weighs losses may differ: the recipe's counts.
    learning: frozenset[str] = getattr(start.config, "LEARNING", frozenset())
    different = [
        k for k in ("kind", *sorted(ours | theirs)) if ours.get(k) != theirs.get(k) and k not in learning
    ]
    if key := next(iter(different), None):
        raise UserError(
            f"the recipe's network has {key} = {ours.get(key)!r}, the one to start from {theirs.get(key)!r}; "
            "the recipe finetune_autoencoder takes any network"
        )
    return recipe


class AutoencoderTask(Task):
    """Reconstruction, the latent's own terms and, where the recipe has one, a discriminator to fool."""

    columns = ("image",)

    def __init__(
        self,
        recipe: AutoencoderRecipe,
        autoencoder: Any,
        device: torch.device,
        judge: adversary.Judge,
        opponent: adversary.Adversary | None = None,
    ) -> None:
        self.recipe, self.autoencoder, self.device = recipe, autoencoder, device
        self.judge, self.opponent = judge, opponent
        self.modules = {"autoencoder": autoencoder}
        if opponent:
            self.modules = {**self.modules, "discriminator": opponent.module}
        self.terms = reconstruction_terms(recipe.losses, device)
        self._measures: dict[str, float] = {}
        self._held_out: float | None = None
        self._pair: tuple[Tensor, Tensor] | None = None  # this step's pictures and reconstructions
        self._logged: int | None = None  # the pictures seen before the step whose terms are measured

    @property
    def divisible(self) -> bool:
        """Not with a codebook, whose counts are of a whole batch, nor with a discriminator to be balanced with."""
        return self.opponent is None and not any(True for _ in self.autoencoder.buffers())

    def losses(self, update: str, batch: Loaded) -> Mapping[str, Tensor]:
        """The recipe's terms, each times its weight; for the discriminator what tells real from reconstructed."""
        if update == "discriminator":
            if not self.opponent or not self.opponent.factor or self._pair is None:
                return {}
            return self.opponent.losses(*self._pair)
        image, noise = self._inputs(batch)
        out = self.autoencoder(image, noise)
        terms = {name: term(out.picture, image) for name, term in self.terms.items()}
        everything = {**terms, **out.terms}
        if self.opponent:
            self._pair = (image, out.picture.detach())
        if self.opponent and self.opponent.factor:
            reconstruction = torch.stack(list(terms.values())).sum()
            last = self.autoencoder.ends[1]
            everything["adversarial"] = self.opponent.fooling(out.picture, reconstruction, last)
            self._measures["adaptive_weight"] = self.opponent.scale
        if batch.seen == self._logged:
            self._measures |= self._gradients(everything) | self.autoencoder.measures()
        return everything

    def pending(self, state: TrainingState) -> str:
        """Whether held-out PSNR is measured now."""
        return "validating" if state.fraction < 1 and LOOKS.due(state) else ""

    def between(self, state: TrainingState) -> str:
        """Every twentieth of the budget held-out PSNR is measured; the adversary may begin or be undone.

        Every fifth of it some held-out pictures and their reconstructions are drawn for the run's page.
        """
        numbers, psnr, note = state.numbers, None, ""
        if LOOKS.due(state):
            with LOOKS.look(state):
                psnr = self.judge.psnr(state)
                if (part := int(state.fraction * _DRAWINGS)) > numbers.get("drawn", 0):
                    self.judge.show(state)
                    numbers["drawn"] = part
        if self.opponent:
            note = self.opponent.between(state, psnr)
        if psnr is not None:
            numbers["psnr"] = psnr
        self._held_out = numbers.get("psnr") if state.unlogged(numbers.get(f"{LOOKS.name}.at", 0)) else None
        self._measures, self._logged = {}, state.seen if (state.step + 1) % LOG_EVERY == 0 else None
        return note

    def last(self, state: TrainingState) -> str:
        """The last drawing; the adversary has its own end."""
        self.judge.show(state)
        return ""

    def measures(self) -> Mapping[str, float]:
        """Every tenth step: the norm of each term's gradient at the last weights it meets, and codebook use.

        And the held-out PSNR of the averaged weights as last measured, until it is logged.
        """
        held_out = {} if self._held_out is None else {"held_out_psnr": self._held_out}
        return {**self._measures, **held_out}

    def _inputs(self, batch: Loaded) -> tuple[Tensor, Tensor]:
        pixels = batch.columns["image"]
        assert isinstance(pixels, Tensor)
        seeds = [int(s) for s in batch.seeds]
        image = from_pixels(pixels)
        if self.recipe.flip:
            mirrored = sample_uniform(seeds, stream=_FLIP) < 0.5
            image[mirrored] = image[mirrored].flip(-1)
        image = image.to(self.device)
        side = self.recipe.size // self.autoencoder.factor
        noise = sample_noise(seeds, (self.autoencoder.channels, side, side), stream=_NOISE)
        return image, noise.to(self.device)

    def _gradients(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """At the decoder's last weights; for terms of the latent alone at the encoder's."""
        found = {}
        inner, outer = self.autoencoder.ends
        for name, term in terms.items():
            if not term.requires_grad:
                continue
            slopes = torch.autograd.grad(term, (outer, inner), retain_graph=True, allow_unused=True)
            slope = next((s for s in slopes if s is not None), None)
            if slope is not None:
                found[f"gradient_{name}"] = float(slope.norm())
        return found
