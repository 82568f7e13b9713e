"""DDPM with the direct predictor: the network is trained towards the clean picture instead of the noise."""

from carrara.recipes import ddpm
from carrara.training.recipe import DiffusionRecipe


def recipe() -> DiffusionRecipe:
    """``ddpm`` but for one line (Ho et al. 2020, section 3.2, found noise to be the better target)."""
    noise = ddpm.recipe()
    return noise.model_copy(update={"model": noise.model.model_copy(update={"parameterization": "x0"})})
