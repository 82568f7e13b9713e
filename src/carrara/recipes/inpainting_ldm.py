"""Stage two for inpainting: a U-Net on latents conditioned on the picture without its hole, and on the hole."""

from carrara.conditions import image
from carrara.denoisers import unet
from carrara.recipes.latent_diffusion import as_published, small
from carrara.training.recipe import DiffusionRecipe


def recipe() -> DiffusionRecipe:
    """For any pictures; holes are drawn anew each time, and one in ten pictures is all hole."""
    network = unet.Config(channels=64, multipliers=(1, 2), blocks=2, attention=(2,), head_width=64)
    return small(network, {"masked": image.Config(shows="masked", through="autoencoder")}, shift=1.5)


def published() -> DiffusionRecipe:
    """Places at 256 pixels with VQ-f4 (Rombach et al. 2022, table 6, "big"): 3 + 3 + 1 channels.

    387,245,827 weights.
    """
    return as_published(
        {"masked": image.Config(shows="masked", through="autoencoder", dropout=0.0)},
        steps=360_000,
        batch=128,
        lr=1e-6,
        channels=256,
        multipliers=(1, 2, 3, 4),
        attention=(2, 4, 8),
        depth=0,
        heads=8,
        resample_blocks=True,
    )
