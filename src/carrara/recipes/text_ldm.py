"""Stage two: text to picture, a U-Net on latents with a text encoder trained beside it."""

from carrara.conditions import text
from carrara.denoisers import unet
from carrara.recipes.latent_diffusion import as_published, small
from carrara.training.recipe import DiffusionRecipe


def recipe() -> DiffusionRecipe:
    """Flow matching on 8 x 8 positions; times lean to the noise, where the caption decides the picture."""
    network = unet.Config(channels=128, multipliers=(1,), blocks=2, patch=2, attention=(1,), head_width=64)
    return small(network, {"caption": text.Config()}, shift=2.0)


def published() -> DiffusionRecipe:
    """Text to picture at 256 pixels on KL-f8 (Rombach et al. 2022, table 15): a text transformer of 32 layers.

    Their U-Net has 872 million weights (of 1.45 billion with text encoder and autoencoder). Here the mean of the
    words is added to the time too, by 3 million more, and the encoder's attention is as wide as its rows.
    """
    return as_published(
        {"caption": text.Config(vocabulary=30522, length=77, width=1280, depth=32, heads=8)},
        steps=390_000,
        batch=680,
        lr=1e-4,
        betas=(0.00085, 0.012),
        channels=320,
        multipliers=(1, 2, 4, 4),
        attention=(1, 2, 4),
        depth=1,
        heads=8,
        projections="convolution",
    )
