"""The diffusion task, stage two: a denoiser learns the distribution of latents given the conditions (Rombach et al.
2022, eq. 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from carrara.diffusion.learnt_variance import variance_loss
from carrara.diffusion.process import Diffusion
from carrara.diffusion.times import TIMES
from carrara.diffusion.weightings import WEIGHTINGS, output_weight
from carrara.generation.model import bind, joined
from carrara.tensors import from_pixels, sample_noise, sample_uniform
from carrara.training.mirroring import as_seen
from carrara.training.task import Task

if TYPE_CHECKING:
    from carrara.autoencoders.scale import LatentScale
    from carrara.context import Context
    from carrara.dataset.loader import Loaded
    from carrara.geometry import Size
    from carrara.training.batches import LatentColumns
    from carrara.training.recipe import DiffusionRecipe


# Streams of a sample's randomness; conditions use 16 and on, sixteen each.
_POSTERIOR, _NOISE, _TIME, _FLIP, _VARIANT = 1, 2, 3, 4, 5


class DiffusionTask(Task):
    """The error of the denoiser's output at random times, on stored latents or on pictures."""

    divisible = True

    def __init__(
        self,
        recipe: DiffusionRecipe,
        network: nn.Module,
        conditions: nn.ModuleDict,
        *,
        latents: LatentColumns,
        scale: LatentScale,
        words: Mapping[str, Mapping[str, str]],
        device: torch.device,
        factor: int = 1,
    ) -> None:
        """``words`` are what each condition reads and the column that holds it; ``factor`` is the autoencoder's."""
        self.recipe, self.device, self.scale, self.factor = recipe, device, scale, factor
        self.latents, self.mirrored = latents, torch.tensor(latents.mirrored)
        self.network, self.conditions, self.words = network, conditions, words
        self.modules = {"denoiser": nn.ModuleDict({"network": network, "conditions": conditions})}
        self.diffusion = bind(recipe.model, network)
        self.columns = (
            *latents.names,
            *sorted({c for held in words.values() for c in held.values()} - set(latents.names)),
        )

    def losses(self, update: str, batch: Loaded) -> Mapping[str, Tensor]:
        """The mean squared error against the parameterization's target, and the bound of a learned variance."""
        seeds = [int(s) for s in batch.seeds]
        raw, mirrored = self.raw(batch, seeds)
        size = (raw.shape[2] * self.factor, raw.shape[3] * self.factor)
        latent = self.scale.scale(raw).to(self.device)
        noise = sample_noise(seeds, raw.shape[1:], stream=_NOISE).to(self.device)
        times, context = self.draw_times(seeds), self.context(batch, mirrored, size)
        diffusion, heard = self._listening()
        loss = diffusion.loss(latent, noise, times, context)
        if self.recipe.weighting:
            loss = loss * self.weight(times)
        terms = {"denoising": loss.mean()}
        if getattr(self.recipe.model.denoiser, "learnt_variance", False):
            said = Diffusion(lambda z, t, c: heard[-1], diffusion.schedule, diffusion.parameterization)
            terms["variance"] = variance_loss(said, latent, noise, times, context).mean()
        return terms

    def _listening(self) -> tuple[Diffusion, list[Tensor]]:
        """The process, and what its network answers, so that a second loss needs no second pass."""
        heard: list[Tensor] = []

        def network(z: Tensor, t: Tensor, context: Context, /) -> Tensor:
            heard.append(self.diffusion.network(z, t, context))
            return heard[-1]

        return Diffusion(network, self.diffusion.schedule, self.diffusion.parameterization), heard

    def weight(self, times: Tensor) -> Tensor:
        """What the error of the output at ``times [b]`` counts."""
        schedule = self.diffusion.schedule
        weight = WEIGHTINGS[str(self.recipe.weighting)](
            times.double(), schedule, **self.recipe.weighting_options
        )
        return output_weight(weight, times, schedule, self.diffusion.parameterization).float()

    def raw(self, batch: Loaded, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Raw latents ``float32 [b c h w]``: the pictures, some of them mirrored, or draws from the posteriors;

        and which are mirrored, ``bool [b]``. Where a picture is stored in several variants, one is drawn.
        """
        variants = [torch.as_tensor(batch.columns[column]) for column in self.latents.names]
        if self.recipe.pixels is None:
            drawn = (sample_uniform(seeds, stream=_VARIANT) * len(variants)).long()
            stored = torch.empty(variants[0].shape)
            for index, variant in enumerate(variants):  # only what was drawn becomes floats
                stored[drawn == index] = variant[drawn == index].float()
            mean, std = stored.chunk(2, 1)
            return mean + std * sample_noise(seeds, mean.shape[1:], stream=_POSTERIOR), self.mirrored[drawn]
        image = from_pixels(variants[0])
        mirrored = sample_uniform(seeds, stream=_FLIP) < 0.5
        if not self.recipe.pixels.flip:
            mirrored = torch.zeros_like(mirrored)
        image[mirrored] = image[mirrored].flip(-1)
        return image, mirrored

    def draw_times(self, seeds: list[int]) -> Tensor:
        """Training times ``float32 [b]``."""
        u = sample_uniform(seeds, stream=_TIME)
        t = TIMES[self.recipe.times](u, self.diffusion.schedule, **self.recipe.times_options)
        shift = self.recipe.times_shift
        return (shift * t / (1 + (shift - 1) * t)).float().to(self.device)

    def context(self, batch: Loaded, mirrored: Tensor, size: Size) -> Context:
        """Each condition draws from its columns, pictures mirrored as z is, and sometimes drops what it drew."""
        seeds = [int(s) for s in batch.seeds]
        drawn: dict[str, Any] = {}
        for stream, (name, encoder) in enumerate(self.conditions.items(), 1):
            drawn[name] = encoder.draw(self.read_by(name, batch, mirrored), seeds, stream=stream)  # type: ignore[operator]
        return joined(self.conditions, drawn, size, self.device)

    def read_by(self, name: str, batch: Loaded, mirrored: Tensor) -> dict[str, Any]:
        """What a condition draws from: its columns, pictures mirrored as z is, and which those are."""
        columns = {c: as_seen(c, batch.columns[held], mirrored) for c, held in self.words[name].items()}
        return {**columns, "mirrored": mirrored}
