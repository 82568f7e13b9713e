"""Stage two by class with a transformer: a DiT on latents with later improvements."""

from carrara.conditions import label
from carrara.denoisers import dit
from carrara.generation.model import ModelConfig
from carrara.recipes.latent_diffusion import small
from carrara.training.recipe import DiffusionRecipe, TrainConfig


def recipe() -> DiffusionRecipe:
    """Flow matching on 8 x 8 positions: 32 pixels at factor 4, 64 with ``--set model.denoiser.patch=2``.

    DiT-B/2 at 256 pixels (Peebles & Xie 2023) on latents of factor 8, changed by flow matching (Ma et al. 2024,
    "SiT"): ``--set model.denoiser={kind="dit",width=768,depth=12,heads=12,vector_layers="none"}``
    ``--set model.conditions.label.width=768 --set times=uniform --set times_shift=1.0``
    ``--set train.batch=256 --set train.optimizer=adamw --set train.lr=1e-4 --set train.lr_schedule=constant``
    ``--set train.weight_decay=0.0 --set train.budget=400000steps``; 24 GB hold it with ``train.accumulate=8``.

    Without an autoencoder (Li & He 2025, "Just image Transformers"): large patches of pixels, of which the network
    predicts the clean ones: ``--set pixels.size=32 --set model.denoiser.patch=4 --set model.denoiser.bottleneck=32``
    ``--set model.denoiser.positions=both --set model.parameterization=x0 --set weighting=velocity``; their B/16 at
    256 pixels is patch 16, bottleneck 128, width 768, depth 12, heads 12.
    """
    network = dit.Config(
        patch=1,
        width=256,
        depth=6,
        heads=4,
        positions="rotary",
        qk_norm=True,
        norm="rms",
        feed_forward="swiglu",
    )
    return small(network, {"label": label.Config(width=256)}, shift=1.5)


def published() -> DiffusionRecipe:
    """DiT-XL/2 of ImageNet, 256 pixels, KL-f8 (Peebles & Xie 2023): 675,129,632 weights with table and positions."""
    return DiffusionRecipe(
        model=ModelConfig(
            schedule="linear",
            parameterization="eps",
            denoiser=dit.Config(
                patch=2,
                width=1152,
                depth=28,
                heads=16,
                vector_layers="none",
                learnt_variance=True,
                first_step=0,
            ),
            conditions={"label": label.Config(width=1152)},
        ),
        times="discrete",
        train=TrainConfig(
            budget="7000000steps",
            batch=256,
            optimizer="adamw",
            lr=1e-4,
            betas=(0.9, 0.999),
            weight_decay=0.0,
            lr_schedule="constant",
            warmup=0,
            ema=0.005,
        ),
    )
