"""Stage two by class: a U-Net on latents conditioned on the label, at 32 to 64 pixels on any machine."""

from carrara.conditions import label
from carrara.denoisers import unet
from carrara.recipes.latent_diffusion import as_published, small
from carrara.training.recipe import DiffusionRecipe


def recipe() -> DiffusionRecipe:
    """For data whose pictures have a label; the class is a vector beside the time."""
    network = unet.Config(channels=128, multipliers=(1,), blocks=2, patch=1, attention=(1,), head_width=64)
    return small(network, {"label": label.Config(width=256)}, shift=1.5)


def published() -> DiffusionRecipe:
    """LDM-4 of ImageNet at 256 pixels on VQ-f4 (Rombach et al. 2022, table 13): 400,920,579 weights, 1000 classes."""
    return as_published(
        {"label": label.Config(width=512, fills="token")},
        steps=178_000,
        batch=1200,
        lr=1e-4,
        betas=(0.0015, 0.0195),
        channels=192,
        multipliers=(1, 2, 3, 5),
        attention=(2, 4, 8),
        depth=1,
        heads=1,
        projections="convolution",
    )
