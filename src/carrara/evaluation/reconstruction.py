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


TOPS = {torch.uint8: 255.0, torch.uint16: 65535.0}  # the largest value of each depth


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of two ``uint8`` or two ``uint16 [b c h w]``: [b]; infinite where equal.

    The peak is the depth's: 255 or 65535. ValueError where the depths differ.
    """
    top = _top(a, b)
    error = (a.double() - b.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(top**2 / error)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of pictures as in `psnr`, at least 6 pixels a side: [b], at most 1.

    Gaussian window of 11 pixels (sigma 1.5), the border mirrored, each channel by itself.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    top = _top(a, b)
    # In float64 the convolutions take thirty times as long and move the figure by less than 1e-6.
    found = structural_similarity_index_measure(
        a.float() / top, b.float() / top, data_range=1.0, reduction="none"
    )
    assert isinstance(found, Tensor)
    return found.reshape(len(a))


def colour_shift(original: Tensor, again: Tensor) -> Tensor:
    """How much lighter each channel has become on average, in steps of 0..255, a picture each: float64 [b c]."""
    top = _top(original, again)
    return (again.double() - original.double()).mean((2, 3)) * (255 / top)


def _top(a: Tensor, b: Tensor) -> float:
    if a.dtype != b.dtype or a.dtype not in TOPS:
        raise ValueError(f"expected two uint8 or two uint16 sets of pictures, not {a.dtype} and {b.dtype}")
    return TOPS[a.dtype]


def reconstruct(
    autoencoder: StoredAutoencoder, pictures: Tensor, device: torch.device, batch: int = 64
) -> Tensor:
    """``uint8`` or ``uint16 [b c h w]`` through the autoencoder (posterior mode) and back, in the same depth."""
    module = autoencoder.module.to(device)
    bits = 8 if pictures.dtype == torch.uint8 else 16
    with torch.inference_mode():
        parts = [
            to_pixels(module.decode(module.encode(from_pixels(part).to(device)).mode()), bits).cpu()  # type: ignore[operator]
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
            rows[start : start + 256],
            autoencoder.size,
            autoencoder.config.image_channels,
            bits=autoencoder.bits,
        )
        total += float(psnr(pictures, reconstruct(autoencoder, pictures, device)).clamp(max=100).sum())
    return MeanPsnr(total / len(rows), len(rows), held_out)


def nearest_picture(samples: Tensor, references: Tensor, size: int = 32) -> Sequence[int]:
    """For each sample ``uint8 [b c h w]`` the index of the reference whose pixels at ``size`` are nearest."""
    a, b = (F.adaptive_avg_pool2d(x.float(), size).flatten(1) for x in (samples, references))
    found: list[int] = torch.cdist(a, b).argmin(1).tolist()
    return found
