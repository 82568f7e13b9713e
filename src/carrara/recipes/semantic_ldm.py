"""Stage two from a semantic map: a U-Net on latents conditioned, pixel by pixel, on the class."""

from carrara.conditions import image
from carrara.denoisers import unet
from carrara.recipes.latent_diffusion import as_published, small
from carrara.training.recipe import DiffusionRecipe


def recipe() -> DiffusionRecipe:
    """For `carrara data import scenes`, whose maps have twelve things and the ground; set ``classes`` for others."""
    network = unet.Config(channels=64, multipliers=(1, 2), blocks=2, attention=(2,), head_width=64)
    return small(network, {"map": image.Config(shows="map", through="pixels", classes=13)}, shift=1.5)


def published() -> DiffusionRecipe:
    """182 classes of COCO-Stuff or Flickr landscapes at 256 pixels with VQ-f4: 3 + 3 channels, 215,229,315 weights.

    Rombach et al. 2022, table 15 and their configuration: the map's shares of classes at each position become
    three channels by a matrix that is learned with the network; attention is in the middle alone.
    """
    return as_published(
        {"map": image.Config(shows="map", through="resize", classes=182, width=3, dropout=0.0)},
        steps=360_000,
        batch=48,
        lr=4.8e-5,
        channels=128,
        multipliers=(1, 4, 8),
        attention=(),
        middle_attention=True,
        depth=0,
        heads=8,
    )
