"""Stage one from an existing autoencoder, your own or an adopted one: small steps, no network of its own."""

from carrara.training.recipe import AutoencoderRecipe, TrainConfig


def recipe() -> AutoencoderRecipe:
    """Used as `carrara train finetune_autoencoder DATA --start MODEL --out RUN`."""
    return AutoencoderRecipe(
        size=64,
        train=TrainConfig(budget="20m", batch=8, optimizer="adamw", lr=1e-4, ema=0.05),
    )
