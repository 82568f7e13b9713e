"""Samplers: generators that carry z from noise to data, asking one callable for the clean estimate.

``SAMPLERS[name](denoise, z, times, schedule, *, noise, **own options) -> Iterator[Step]``. Progress bars,
previews, saving and cancelling are the caller's ``for`` body.
A new sampler is one function with the decorator ``sampler`` in one of the files here.
"""

from carrara.diffusion.samplers import multistep, several_stage, single_step
from carrara.diffusion.samplers.path import SAMPLERS, Denoise, Noise, Sampler, Step

__all__ = ["SAMPLERS", "Denoise", "Noise", "Sampler", "Step", "multistep", "several_stage", "single_step"]
