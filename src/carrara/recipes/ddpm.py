"""DDPM in pixels, by the paper's two algorithms: a U-Net that predicts the noise, at 32 pixels on any machine."""

from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.training.recipe import DiffusionRecipe, Pixels, TrainConfig


def recipe() -> DiffusionRecipe:
    """Ho et al. 2020 (section 4, appendix B), with a network that a CPU can train."""
    return DiffusionRecipe(
        pixels=Pixels(size=32),
        model=ModelConfig(
            schedule="linear",  # 1000 betas from 1e-4 to 0.02
            parameterization="eps",
            denoiser=unet.Config(
                channels=64, multipliers=(1, 2, 2), blocks=1, patch=2, attention=(4,), head_width=64
            ),
        ),
        times="discrete",  # Algorithm 1, line 3: one of the steps 1 ... T, all alike
        train=TrainConfig(budget="20m", batch=32, lr=2e-3, ema=0.03),
    )


def published() -> DiffusionRecipe:
    """CIFAR-10 as in the paper (appendix B): 35,746,307 weights, 800 000 steps of 128 pictures."""
    small = recipe()
    network = unet.Config(
        channels=128,
        multipliers=(1, 2, 2, 2),
        blocks=2,
        attention=(2,),
        depth=0,
        heads=1,
        scale_shift=False,
        dropout=0.1,
        asymmetric=True,
        frequency_shift=1,
        first_step=0,
    )
    return small.model_copy(
        update={
            "model": small.model.model_copy(update={"denoiser": network}),
            "train": TrainConfig(
                budget="800000steps",
                batch=128,
                optimizer="adamw",
                lr=2e-4,
                betas=(0.9, 0.999),
                weight_decay=0.0,
                lr_schedule="constant",
                warmup=5000,
                ema=0.0125,  # theirs averages over 10 000 steps
            ),
        }
    )
