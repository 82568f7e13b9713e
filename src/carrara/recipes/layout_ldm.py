"""Stage two from a layout: a U-Net on latents conditioned on labelled boxes."""

from carrara.conditions import layout
from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.training.recipe import DiffusionRecipe, TrainConfig


def recipe() -> DiffusionRecipe:
    """For `carrara data import scenes`; boxes are attended to and painted beside the latent, which obeys sooner."""
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="flow",
            parameterization="flow",
            denoiser=unet.Config(
                channels=128, multipliers=(1,), blocks=2, patch=2, attention=(1,), head_width=64
            ),
            conditions={"boxes": layout.Config(width=128, paints=16)},
        ),
        times="logit_normal",
        times_shift=2.0,
        train=TrainConfig(budget="10m", batch=32, lr=4e-3, ema=0.03),
    )


def published() -> DiffusionRecipe:
    """OpenImages and COCO at 256 pixels with VQ-f4, three channels of latent (Rombach et al. 2022, table 15).

    There a transformer of 16 layers reads a box as three words; here a box is one token of the same width, 512.
    """
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="scaled_linear",
            schedule_options={"start": 0.0015, "end": 0.0205},
            parameterization="eps",
            denoiser=unet.Config(
                channels=128,
                multipliers=(1, 2, 3, 4),
                blocks=2,
                attention=(2, 4, 8),
                depth=3,
                head_width=32,
                scale_shift=False,
                first_step=0,
            ),
            conditions={"boxes": layout.Config(width=512, most=30)},
        ),
        times="discrete",
        train=TrainConfig(
            budget="4400000steps", batch=24, optimizer="adamw", lr=4.8e-5, lr_schedule="constant", ema=0.01
        ),
    )
