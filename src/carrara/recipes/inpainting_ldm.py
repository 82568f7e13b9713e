"""Stage two for inpainting: a U-Net on latents conditioned on the picture without its hole, and on the hole."""

from carrara.conditions import image
from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.training.recipe import DiffusionRecipe, TrainConfig


def recipe() -> DiffusionRecipe:
    """For any pictures; holes are drawn anew each time, and one in ten pictures is all hole."""
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="flow",
            parameterization="flow",
            denoiser=unet.Config(channels=64, multipliers=(1, 2), blocks=2, attention=(2,), head_width=64),
            conditions={"masked": image.Config(shows="masked", through="autoencoder")},
        ),
        times="logit_normal",
        times_shift=1.5,
        train=TrainConfig(budget="10m", batch=32, lr=4e-3, ema=0.03),
    )


def published() -> DiffusionRecipe:
    """Places at 256 pixels with VQ-f4 (Rombach et al. 2022, table 6, "big"): 3 + 3 + 1 channels.

    387,245,827 weights.
    """
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="scaled_linear",
            schedule_options={"start": 0.0015, "end": 0.0205},
            parameterization="eps",
            denoiser=unet.Config(
                channels=256,
                multipliers=(1, 2, 3, 4),
                blocks=2,
                attention=(2, 4, 8),
                depth=0,
                heads=8,
                scale_shift=False,
                resample_blocks=True,
                first_step=0,
            ),
            conditions={"masked": image.Config(shows="masked", through="autoencoder", dropout=0.0)},
        ),
        times="discrete",
        train=TrainConfig(
            budget="360000steps", batch=128, optimizer="adamw", lr=1e-6, lr_schedule="constant", ema=0.01
        ),
    )
