"""How well an autoencoder reconstructs pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.tensors import from_pixels, to_pixels

if TYPE_CHECKING:
    import numpy as np

    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.dataset import Dataset


TOPS = {torch.uint8: 255.0, torch.uint16: 65535.0}  # the largest value of each depth
PIXELS = 2**20  # of a batch: four pictures of 512 pixels a side

Autocast = Callable[[], AbstractContextManager[None]]
Pictures = TypeVar("Pictures", Tensor, "np.ndarray[Any, Any]")


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


def batches(pictures: Pictures, size: int) -> Iterator[Pictures]:
    """Pictures, or their rows, in parts of about a megapixel where each is ``size`` pixels a side; at most 64."""
    step = max(1, min(64, PIXELS // size**2))
    for start in range(0, len(pictures), step):
        yield pictures[start : start + step]


class Passage(NamedTuple):
    """Pictures, their posterior [b c h w] (-inf where it is a point), and what came back, in the same depth."""

    original: Tensor
    mean: Tensor
    logvar: Tensor
    again: Tensor


def there_and_back(
    module: Any, original: Tensor, device: torch.device, autocast: Autocast = nullcontext
) -> Passage:
    """One batch, ``uint8`` or ``uint16 [b c h w]``, through the posterior's mode and back.

    The module is on ``device``; it computes under ``autocast()``, for example in bfloat16.
    """
    with torch.inference_mode(), autocast():
        encoding = module.encode(from_pixels(original).to(device))
        again = module.decode(encoding.mode())
    bits = 8 if original.dtype == torch.uint8 else 16
    return Passage(original, encoding.mean, encoding.logvar, to_pixels(again, bits).cpu())


def reconstruct(
    module: nn.Module, pictures: Tensor, device: torch.device, autocast: Autocast = nullcontext
) -> Tensor:
    """``uint8`` or ``uint16 [n c h w]`` through an autoencoder and back, as `there_and_back`, batch by batch."""
    module.to(device)
    parts = batches(pictures, pictures.shape[-1])
    return torch.cat([there_and_back(module, part, device, autocast).again for part in parts])


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
    for part in batches(rows, autoencoder.size):
        pictures = dataset.pictures(
            part, autoencoder.size, autoencoder.config.image_channels, bits=autoencoder.bits
        )
        total += float(psnr(pictures, reconstruct(autoencoder.module, pictures, device)).clamp(max=100).sum())
    return MeanPsnr(total / len(rows), len(rows), held_out)


def nearest_picture(samples: Tensor, references: Tensor, size: int = 32) -> Sequence[int]:
    """For each sample ``uint8 [b c h w]`` the index of the reference whose pixels at ``size`` are nearest."""
    a, b = (F.adaptive_avg_pool2d(x.float(), size).flatten(1) for x in (samples, references))
    found: list[int] = torch.cdist(a, b).argmin(1).tolist()
    return found
