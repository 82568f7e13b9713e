"""Stage two by class: a U-Net on latents conditioned on the label, at 32 to 64 pixels on any machine."""

from carrara.conditions import label
from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.training.recipe import DiffusionRecipe, TrainConfig


def recipe() -> DiffusionRecipe:
    """For data whose pictures have a label; the class is a vector beside the time."""
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="flow",
            parameterization="flow",
            denoiser=unet.Config(
                channels=128, multipliers=(1,), blocks=2, patch=1, attention=(1,), head_width=64
            ),
            conditions={"label": label.Config(width=256)},
        ),
        times="logit_normal",
        times_shift=1.5,
        train=TrainConfig(budget="10m", batch=32, lr=4e-3, ema=0.03),
    )


def published() -> DiffusionRecipe:
    """LDM-4 of ImageNet at 256 pixels on VQ-f4 (Rombach et al. 2022, table 13): 400,920,579 weights, 1000 classes."""
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="scaled_linear",
            schedule_options={"start": 0.0015, "end": 0.0195},
            parameterization="eps",
            denoiser=unet.Config(
                channels=192,
                multipliers=(1, 2, 3, 5),
                blocks=2,
                attention=(2, 4, 8),
                depth=1,
                heads=1,
                scale_shift=False,
                projections="convolution",
                first_step=0,
            ),
            conditions={"label": label.Config(width=512, fills="token")},
        ),
        times="discrete",
        train=TrainConfig(
            budget="178000steps", batch=1200, optimizer="adamw", lr=1e-4, lr_schedule="constant", ema=0.01
        ),
    )
