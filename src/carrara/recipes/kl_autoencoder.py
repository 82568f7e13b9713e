"""Stage one at 32 to 128 pixels on any machine: a small KL autoencoder of factor 4."""

from carrara.autoencoders import kl
from carrara.training.recipe import AutoencoderRecipe, TrainConfig


def recipe() -> AutoencoderRecipe:
    """All work happens at a quarter of the size, where convolutions are cheapest for what they see."""
    return AutoencoderRecipe(
        size=64,
        autoencoder=kl.Config(
            channels=96,
            multipliers=(1,),
            blocks=1,
            patch=4,
            middle_attention=False,
            projections=False,
            latent_channels=4,
            kl=0.01,
        ),
        train=TrainConfig(budget="3m", batch=8, lr=4e-3, ema=0.02),
    )
