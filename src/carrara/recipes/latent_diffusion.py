"""Latent diffusion, what its recipes share: flow matching for any machine, and the training of Rombach et al. 2022."""

from collections.abc import Mapping
from typing import Any

from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.training.recipe import DiffusionRecipe, TrainConfig


def small(denoiser: Any, conditions: Mapping[str, Any], *, shift: float = 1.0) -> DiffusionRecipe:
    """Flow matching in ten minutes; ``shift`` above 1 leans the times to the noise, where conditions decide."""
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="flow", parameterization="flow", denoiser=denoiser, conditions=dict(conditions)
        ),
        times="logit_normal",
        times_shift=shift,
        train=TrainConfig(budget="10m", batch=32, lr=4e-3, ema=0.03),
    )


def as_published(
    conditions: Mapping[str, Any],
    *,
    steps: int,
    batch: int,
    lr: float,
    betas: tuple[float, float] = (0.0015, 0.0205),
    **network: Any,
) -> DiffusionRecipe:
    """Rombach et al. 2022: noise predicted at 1000 steps, their U-Net of the given shape, AdamW."""
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="scaled_linear",
            schedule_options={"start": betas[0], "end": betas[1]},
            parameterization="eps",
            denoiser=unet.Config(blocks=2, scale_shift=False, first_step=0, **network),
            conditions=dict(conditions),
        ),
        times="discrete",
        train=TrainConfig(
            budget=f"{steps}steps", batch=batch, optimizer="adamw", lr=lr, lr_schedule="constant", ema=0.01
        ),
    )
