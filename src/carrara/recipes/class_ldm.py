"""Stage two by class: a U-Net on latents that is told the label, at 32 to 64 pixels on any machine."""

from carrara.conditions import label
from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.training.diffusing import DiffusionRecipe
from carrara.training.loop import TrainConfig


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
