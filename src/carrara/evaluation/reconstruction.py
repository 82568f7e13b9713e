"""How well an autoencoder gives pictures back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.tensors import from_pixels, to_pixels

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.data.table import Dataset


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of ``uint8 [b c h w]``, a picture each: [b]; infinite where equal."""
    error = (a.double() - b.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255.0**2 / error)


def reconstruct(
    autoencoder: StoredAutoencoder, pictures: Tensor, device: torch.device, batch: int = 64
) -> Tensor:
    """``uint8 [b c h w]`` through the autoencoder (posterior mode) and back."""
    module = autoencoder.module.to(device)
    with torch.inference_mode():
        parts = [
            to_pixels(module.decode(module.encode(from_pixels(part).to(device)).mode())).cpu()  # type: ignore[operator]
            for part in torch.split(pictures, batch)
        ]
    return torch.cat(parts)


class MeanPsnr(NamedTuple):
    """Mean PSNR in dB, over how many pictures, and whether training never saw them."""

    db: float
    pictures: int
    held_out: bool

    def __str__(self) -> str:
        return (
            f"{self.db:.2f} dB PSNR on {self.pictures} {'held-out' if self.held_out else 'training'} pictures"
        )


def mean_psnr(autoencoder: StoredAutoencoder, dataset: Dataset, device: torch.device) -> MeanPsnr:
    """Over the held-out pictures; over those trained on where none are held out."""
    rows = dataset.indices("held_out")
    if not (held_out := len(rows) > 0):
        rows = dataset.indices("train")
    total = 0.0
    for start in range(0, len(rows), 256):
        pictures = dataset.pictures(
            rows[start : start + 256], autoencoder.size, autoencoder.config.image_channels
        )
        total += float(psnr(pictures, reconstruct(autoencoder, pictures, device)).clamp(max=100).sum())
    return MeanPsnr(total / len(rows), len(rows), held_out)


def nearest_picture(samples: Tensor, references: Tensor, size: int = 32) -> Sequence[int]:
    """For each sample ``uint8 [b c h w]`` the index of the reference whose pixels at ``size`` are nearest."""
    a, b = (F.adaptive_avg_pool2d(x.float(), size).flatten(1) for x in (samples, references))
    found: list[int] = torch.cdist(a, b).argmin(1).tolist()
    return found
