"""Stage two: text to picture, a U-Net on latents with a text encoder trained beside it."""

from carrara.conditions import text
from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.training.diffusing import DiffusionRecipe
from carrara.training.loop import TrainConfig


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
