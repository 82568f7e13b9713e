"""Stage one with rounded latents: a small FSQ autoencoder of factor 4 for 32 to 128 pixels on any machine."""

from carrara.autoencoders import fsq
from carrara.recipes import kl_autoencoder
from carrara.training.recipe import AutoencoderRecipe


def recipe() -> AutoencoderRecipe:
    """``kl_autoencoder`` with eight values a channel instead of a Gaussian: 4096 codes, none of which can die."""
    plain = kl_autoencoder.recipe()
    network = fsq.Config(**plain.network.model_dump(exclude={"kind", "kl"}), levels=(8, 8, 8, 8))
    return plain.model_copy(update={"autoencoder": network})
