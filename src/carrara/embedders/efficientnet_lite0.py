"""Pictures by what an ImageNet classifier sees in them: the features of EfficientNet-Lite0."""

from __future__ import annotations

import torch
from torch import Tensor

from carrara.embedders.embedders import Embedder, Vectors, unit
from carrara.metrics.features import WIDTH, load_features

NAME = "efficientnet_lite0"
SIDE = 160  # pixels: half the time of 224
CODE = 1  # raise it when the way from pictures to vectors changes


def embedder() -> Embedder:
    """UserError where its weights are not installed."""
    features = load_features(side=SIDE)
    if torch.cuda.is_available():
        features.to(torch.device("cuda"))

    def pictures(images: Tensor) -> Vectors:
        return unit(features(images).numpy())

    return Embedder(
        NAME, {"weights": "57934424", "side": SIDE, "code": CODE}, WIDTH, pictures=pictures, size=SIDE
    )
