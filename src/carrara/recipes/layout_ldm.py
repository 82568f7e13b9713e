"""Stage two from a layout: a U-Net on latents conditioned on labelled boxes."""

from carrara.conditions import layout
from carrara.denoisers import unet
from carrara.recipes.latent_diffusion import as_published, small
from carrara.training.recipe import DiffusionRecipe


def recipe() -> DiffusionRecipe:
    """For `carrara data import scenes`; boxes are attended to and painted beside the latent, which obeys sooner."""
    network = unet.Config(channels=128, multipliers=(1,), blocks=2, patch=2, attention=(1,), head_width=64)
    return small(network, {"boxes": layout.Config(width=128, paints=16)}, shift=2.0)


def published() -> DiffusionRecipe:
    """OpenImages and COCO at 256 pixels with VQ-f4, three channels of latent (Rombach et al. 2022, table 15).

    There a transformer of 16 layers reads a box as three words; here a box is one token of the same width, 512.
    """
    return as_published(
        {"boxes": layout.Config(width=512, most=30)},
        steps=4_400_000,
        batch=24,
        lr=4.8e-5,
        channels=128,
        multipliers=(1, 2, 3, 4),
        attention=(2, 4, 8),
        depth=3,
        head_width=32,
    )
