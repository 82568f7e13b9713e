"""Stage two by text, in parts that diffusers has: the model can be exported as a StableDiffusionPipeline."""

from carrara.conditions import text
from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.recipes import text_ldm
from carrara.training.recipe import DiffusionRecipe


def recipe() -> DiffusionRecipe:
    """`text_ldm` with Stable Diffusion's noise levels, a U-Net without patches, and its words read as CLIP reads them.

    Its autoencoder has to be exportable too: ``carrara train kl_autoencoder DATASET --set autoencoder.patch=1
    --set autoencoder.multipliers=[1,2,2] --set autoencoder.channels=32``.
    """
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="scaled_linear",
            schedule_options={"start": 0.00085, "end": 0.012},
            parameterization="v",
            denoiser=unet.Config(
                channels=64,
                multipliers=(1, 2),
                blocks=2,
                attention=(2,),
                head_width=32,
                scale_shift=False,
            ),
            conditions={"caption": text.Config(causal=True)},
        ),
        times="discrete",
        train=text_ldm.recipe().train,
    )
