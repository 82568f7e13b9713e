"""Stage two from a semantic map: a U-Net on latents conditioned, pixel by pixel, on the class."""

from carrara.conditions import image
from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.training.recipe import DiffusionRecipe, TrainConfig


def recipe() -> DiffusionRecipe:
    """For `carrara data import scenes`, whose maps have twelve things and the ground; set ``classes`` for others."""
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="flow",
            parameterization="flow",
            denoiser=unet.Config(channels=64, multipliers=(1, 2), blocks=2, attention=(2,), head_width=64),
            conditions={"map": image.Config(shows="map", through="pixels", classes=13)},
        ),
        times="logit_normal",
        times_shift=1.5,
        train=TrainConfig(budget="10m", batch=32, lr=4e-3, ema=0.03),
    )


def published() -> DiffusionRecipe:
    """182 classes of COCO-Stuff or Flickr landscapes at 256 pixels with VQ-f4: 3 + 3 channels, 215,229,315 weights.

    Rombach et al. 2022, table 15 and their configuration: the map's shares of classes at each position become
    three channels by a matrix that is learned with the network; attention is in the middle alone.
    """
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="scaled_linear",
            schedule_options={"start": 0.0015, "end": 0.0205},
            parameterization="eps",
            denoiser=unet.Config(
                channels=128,
                multipliers=(1, 4, 8),
                blocks=2,
                attention=(),
                middle_attention=True,
                depth=0,
                heads=8,
                scale_shift=False,
                first_step=0,
            ),
            conditions={
                "map": image.Config(shows="map", through="resize", classes=182, width=3, dropout=0.0)
            },
        ),
        times="discrete",
        train=TrainConfig(
            budget="360000steps", batch=48, optimizer="adamw", lr=4.8e-5, lr_schedule="constant", ema=0.01
        ),
    )
