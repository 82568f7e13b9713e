"""Stage one with a codebook: a small VQ autoencoder of factor 4 for 32 to 128 pixels on any machine."""

from carrara.autoencoders import vq
from carrara.recipes import kl_autoencoder
from carrara.training.recipe import AutoencoderRecipe


def recipe() -> AutoencoderRecipe:
    """``kl_autoencoder`` with codes instead of a Gaussian."""
    plain = kl_autoencoder.recipe()
    network = vq.Config(**plain.network.model_dump(exclude={"kind", "kl"}), codes=1024)
    return plain.model_copy(update={"autoencoder": network})
