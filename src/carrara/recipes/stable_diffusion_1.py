"""Stable Diffusion 1, whole: a U-Net of 860 million weights on KL-f8, the text read by a frozen CLIP; random start."""

from carrara.conditions import pretrained_text
from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.training.recipe import DiffusionRecipe, Resolution, TrainConfig


def recipe() -> DiffusionRecipe:
    """Rombach et al. 2022 and the model card of v1-5: 859,520,964 weights, at 256 and then at 512 pixels.

    It wants KL-f8 as ``--autoencoder`` and CLIP ViT-L/14's text encoder:
    ``--set 'model.conditions.caption.paths=["clip-vit-large-patch14"]'``. A batch is computed in parts of 16
    pictures; their captions' 10 % without words, which came last there, are there throughout.
    """
    return DiffusionRecipe(
        resolutions=(Resolution(size=256, share=237), Resolution(size=512, share=1304)),
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
                projections="convolution",
                scale_shift=False,
                transformer_eps=1e-6,
                first_step=0,
            ),
            conditions={
                "caption": pretrained_text.Config(length=77, layer=-1, norm=True, padding="read", dropout=0.1)
            },
        ),
        times="discrete",
        train=TrainConfig(
            budget="1541000steps",
            batch=2048,
            accumulate=128,
            optimizer="adamw",
            lr=1e-4,
            betas=(0.9, 0.999),
            weight_decay=0.01,
            lr_schedule="constant",
            warmup=10000,
            ema=0.01,
            checkpointing=True,
        ),
    )
