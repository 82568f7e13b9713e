"""Stage two: text to picture, a U-Net on latents with a text encoder trained beside it."""

from carrara.conditions import text
from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.training.recipe import DiffusionRecipe, TrainConfig


def recipe() -> DiffusionRecipe:
    """Flow matching on 8 x 8 positions; times lean to the noise, where the caption decides the picture."""
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="flow",
            parameterization="flow",
            denoiser=unet.Config(
                channels=128, multipliers=(1,), blocks=2, patch=2, attention=(1,), head_width=64
            ),
            conditions={"caption": text.Config()},
        ),
        times="logit_normal",
        times_shift=2.0,
        train=TrainConfig(budget="10m", batch=32, lr=4e-3, ema=0.03),
    )


def published() -> DiffusionRecipe:
    """Text to picture at 256 pixels on KL-f8 (Rombach et al. 2022, table 15): a text transformer of 32 layers.

    Their U-Net has 872 million weights (of 1.45 billion with text encoder and autoencoder). Here the mean of the
    words is added to the time too, by 3 million more, and the encoder's attention is as wide as its rows.
    """
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="scaled_linear",
            schedule_options={"start": 0.00085, "end": 0.012},
            parameterization="eps",
            denoiser=unet.Config(
                channels=320,
                multipliers=(1, 2, 4, 4),
                blocks=2,
                attention=(1, 2, 4),
                depth=1,
                heads=8,
                scale_shift=False,
                projections="convolution",
                first_step=0,
            ),
            conditions={"caption": text.Config(vocabulary=30522, length=77, width=1280, depth=32, heads=8)},
        ),
        times="discrete",
        train=TrainConfig(
            budget="390000steps", batch=680, optimizer="adamw", lr=1e-4, lr_schedule="constant", ema=0.01
        ),
    )
