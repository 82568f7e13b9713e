"""Stage two for super-resolution: a U-Net on latents conditioned on the picture at a quarter of its size."""

from carrara.conditions import image
from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.training.recipe import DiffusionRecipe, TrainConfig


def recipe() -> DiffusionRecipe:
    """For any pictures; with an autoencoder of factor 4 the small picture has the latent's resolution already."""
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="flow",
            parameterization="flow",
            denoiser=unet.Config(channels=64, multipliers=(1, 2), blocks=2, attention=(2,), head_width=64),
            conditions={"low_resolution": image.Config(shows="low_resolution", factor=4, dropout=0.0)},
        ),
        times="logit_normal",
        train=TrainConfig(budget="10m", batch=32, lr=4e-3, ema=0.03),
    )


def published() -> DiffusionRecipe:
    """64 to 256 pixels on OpenImages with VQ-f4 (Rombach et al. 2022, table 15): 113,622,563 weights.

    Their degradation was BSRGAN's; here pictures are made small by a bicubic filter, as for their table 5.
    """
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="scaled_linear",
            schedule_options={"start": 0.0015, "end": 0.0155},
            parameterization="eps",
            denoiser=unet.Config(
                channels=160,
                multipliers=(1, 2, 2, 4),
                blocks=2,
                attention=(8,),
                depth=0,
                head_width=32,
                scale_shift=False,
                first_step=0,
            ),
            conditions={"low_resolution": image.Config(shows="low_resolution", factor=4, dropout=0.0)},
        ),
        times="discrete",
        train=TrainConfig(
            budget="860000steps", batch=64, optimizer="adamw", lr=5e-5, lr_schedule="constant", ema=0.01
        ),
    )
