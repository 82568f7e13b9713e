"""DDPM in pixels, by the paper's two algorithms: a U-Net that predicts the noise, at 32 pixels on any machine."""

from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.training.diffusing import DiffusionRecipe, Pixels
from carrara.training.loop import TrainConfig


def recipe() -> DiffusionRecipe:
    """Ho et al. 2020 (section 4, appendix B), with a network that a CPU can train.

    Theirs for CIFAR-10, 35.7 million weights: channels 128, multipliers (1, 2, 2, 2), patch 1, blocks 2,
    attention at 16 x 16 (2,); Adam at 2e-4 with batches of 128 for 800 000 steps, an average over 10 000 steps
    (``ema`` 0.0125), dropout 0.1 (not here).
    """
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
