"""Latents: every picture encoded once, kept as a derived column of posterior means and spreads."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from carrara.data.derive import Progress, derive
from carrara.data.loader import Fetch
from carrara.data.order import Batch
from carrara.data.table import Dataset
from carrara.tensors import from_pixels

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder

CODE = 1  # raise it when the way from bytes to latents changes: old columns are then not used any more


def latent_key(autoencoder: StoredAutoencoder) -> Mapping[str, Any]:
    """What makes a latent what it is: the autoencoder's weights, the crop, the code."""
    return {"autoencoder": autoencoder.hash, "size": autoencoder.size, "crop": "centre", "code": CODE}


def encode(
    dataset: Dataset, autoencoder: StoredAutoencoder, device: torch.device
) -> Generator[Progress, None, None]:
    """Derives the column ``latent_…`` float16 [2c h w]: raw posterior means, then standard deviations."""
    module = autoencoder.module.to(device)

    def moments(columns: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        image = from_pixels(columns["image"]).to(device)
        with torch.inference_mode():
            encoding = module.encode(image)  # type: ignore[operator]
            both = torch.cat([encoding.mean, torch.exp(0.5 * encoding.logvar)], 1)
        return both.to("cpu", torch.float16).numpy()

    channels = autoencoder.config.image_channels
    yield from derive(
        dataset,
        "latent",
        latent_key(autoencoder),
        moments,
        batch=64,
        size=autoencoder.size,
        channels=channels,
    )


def moments_of(dataset: Dataset, column: str, *, split: str = "train", batch: int = 1024) -> Iterator[Tensor]:
    """The stored ``[b 2c h w]`` of a split, in order, for measuring the latent scale."""
    fetch = Fetch(dataset, [column], size=None, channels=3)
    rows = dataset.indices(split)
    for start in range(0, len(rows), batch):
        found = fetch(Batch(rows[start : start + batch], 0, np.empty(0, np.uint64))).columns[column]
        assert isinstance(found, Tensor)
        yield found
