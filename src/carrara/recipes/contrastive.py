"""A joint, contrastive space of texts and pictures, to search by words that no caption has: two small towers on your
own pairs."""

from carrara.training.recipe import ContrastiveRecipe, TrainConfig


def recipe() -> ContrastiveRecipe:
    """Large batches, since each pair is told apart from all others of its batch. Muon's steps would cost more here."""
    return ContrastiveRecipe(
        train=TrainConfig(budget="1m", batch=256, optimizer="adamw", lr=1e-3, weight_decay=0.1, ema=0.1)
    )
