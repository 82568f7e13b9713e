"""Stage two for super-resolution: a U-Net on latents conditioned on the picture at a quarter of its size."""

from carrara.conditions import image
from carrara.denoisers import unet
from carrara.recipes.latent_diffusion import as_published, small
from carrara.training.recipe import DiffusionRecipe


def recipe() -> DiffusionRecipe:
    """For any pictures; with an autoencoder of factor 4 the small picture has the latent's resolution already."""
    network = unet.Config(channels=64, multipliers=(1, 2), blocks=2, attention=(2,), head_width=64)
    return small(network, {"low_resolution": image.Config(shows="low_resolution", factor=4, dropout=0.0)})


def published() -> DiffusionRecipe:
    """64 to 256 pixels on OpenImages with VQ-f4 (Rombach et al. 2022, table 15): 113,622,563 weights.

    Their degradation was BSRGAN's; here pictures are made small by a bicubic filter, as for their table 5.
    """
    return as_published(
        {"low_resolution": image.Config(shows="low_resolution", factor=4, dropout=0.0)},
        steps=860_000,
        batch=64,
        lr=5e-5,
        betas=(0.0015, 0.0155),
        channels=160,
        multipliers=(1, 2, 2, 4),
        attention=(8,),
        depth=0,
        head_width=32,
    )
