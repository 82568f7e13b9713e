"""Latents: every picture encoded once, kept as a derived column of posterior means and spreads.

A picture may be kept in several variants, mirrored or cropped elsewhere; each is a column of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from carrara.autoencoders.scale import LatentScale
from carrara.dataset.channels import check_channels
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, Derive, Progress, Rows, derive, derived
from carrara.dataset.loader import Bucket, Fetch, Reading
from carrara.dataset.order import Batch
from carrara.errors import UserError
from carrara.geometry import SideOrSize, extent
from carrara.tensors import from_pixels

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.images.decode import Crop

CODE = 3  # raise it when the way from bytes to latents changes: old columns are then not used any more
PIXELS = 64 * 64 * 64  # of a batch on a CPU; larger ones fall out of its caches
_CROPS: Mapping[int, Sequence[Crop]] = {1: ("centre",), 3: ("centre", "start", "end")}

Autocast = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Variant:
    """Which square of a picture was encoded, and whether it was mirrored first; "centre+flip" in words."""

    crop: Crop = "centre"
    flip: bool = False

    def __str__(self) -> str:
        return f"{self.crop}+flip" if self.flip else self.crop


CENTRE = Variant()


def variants(flip: bool, crops: int) -> list[Variant]:
    """What a picture is kept as: of 1 or 3 ``crops`` (centre, start, end of the long side), also mirrored."""
    if crops not in _CROPS:
        raise UserError(
            f"crops is {crops}; expected 1 (the centre) or 3 (also the start and end of the long side)"
        )
    return [
        Variant(crop, mirrored) for mirrored in ([False, True] if flip else [False]) for crop in _CROPS[crops]
    ]


def latent_key(
    autoencoder: StoredAutoencoder, variant: Variant = CENTRE, size: SideOrSize | None = None
) -> Mapping[str, Any]:
    """What makes a latent what it is: the autoencoder's weights, the picture's size, depth and crop, the code.

    ``size`` is a bucket's, where it is not the autoencoder's own.
    """
    height, width = extent(size or autoencoder.size)
    return {
        "autoencoder": autoencoder.hash,
        "size": height if height == width else [height, width],
        "bits": autoencoder.bits,
        "crop": variant.crop,
        "flip": variant.flip,
        "code": CODE,
    }


def encoded(
    dataset: Dataset,
    autoencoder: StoredAutoencoder,
    wanted: Sequence[Variant],
    *,
    rows: Rows | None = None,
    size: SideOrSize | None = None,
) -> list[str] | None:
    """The columns of all ``wanted`` variants; None where one is not there for all ``rows``, or was made otherwise.

    ``rows`` and ``size`` are those of a bucket; without them every row and the autoencoder's own size.
    """
    keys = [latent_key(autoencoder, variant, size) for variant in wanted]
    found = [derived(dataset, "latent", key, rows) for key in keys]
    columns = [column for column in found if column is not None]
    return columns if len(columns) == len(found) else None


def encode(
    dataset: Dataset,
    autoencoder: StoredAutoencoder,
    device: torch.device,
    *,
    variant: Variant = CENTRE,
    autocast: Autocast = contextlib.nullcontext,
    rows: Rows | None = None,
    size: SideOrSize | None = None,
    by: Derive = derive,
) -> Generator[Progress, None, None]:
    """Derives the column ``latent_…`` float16 [2c h w]: raw posterior means, then standard deviations.

    ``rows`` and ``size`` are those of a bucket; without them every row and the autoencoder's own size.
    The network computes under ``autocast()``, for example in bfloat16. UserError where the pictures cannot have
    the autoencoder's channels.
    """
    check_channels(dataset, int(autoencoder.config.image_channels), autoencoder.bits)
    yield from by(
        dataset, derivation(autoencoder, device, variant=variant, autocast=autocast, size=size), rows
    )


def derivation(
    autoencoder: StoredAutoencoder,
    device: torch.device,
    *,
    variant: Variant = CENTRE,
    autocast: Autocast = contextlib.nullcontext,
    size: SideOrSize | None = None,
) -> Derivation:
    """What `encode` derives."""
    module: Any = autoencoder.module.to(device)

    def moments(columns: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        image = _to_device(columns["image"], device)
        image = image.flip(-1) if variant.flip else image
        with torch.inference_mode(), autocast():
            encoding = module.encode(image)
        both = torch.cat([encoding.mean.float(), torch.exp(0.5 * encoding.logvar.float())], 1)
        return both.to("cpu", torch.float16).numpy()

    most = PIXELS if device.type == "cpu" else 8 * PIXELS
    height, width = extent(size or autoencoder.size)
    channels = int(autoencoder.config.image_channels)
    return Derivation(
        "latent",
        latent_key(autoencoder, variant, size),
        moments,
        batch=max(1, min(512, most // (height * width))),
        reading=Reading(("image",), (height, width), channels, autoencoder.bits, variant.crop),
        title="latents"
        + ("" if variant == CENTRE else f" {variant}")
        + (f" {width} x {height}" if width != height else ""),
    )


def encode_missing(
    dataset: Dataset,
    autoencoder: StoredAutoencoder,
    device: torch.device,
    wanted: Sequence[Variant],
    *,
    autocast: Autocast = contextlib.nullcontext,
    rows: Rows | None = None,
    size: tuple[int, int] | None = None,
    by: Callable[[Variant], Derive] = lambda variant: derive,
) -> Generator[Progress]:
    """Encodes each variant, of some rows at (height, width) or of all, as far as it is not there already."""
    for variant in wanted:
        yield from encode(
            dataset,
            autoencoder,
            device,
            variant=variant,
            autocast=autocast,
            rows=rows,
            size=size,
            by=by(variant),
        )


def keep_scale(autoencoder: StoredAutoencoder, measured: Callable[[], LatentScale]) -> str:
    """Measures the latent scale for an autoencoder that has none, and keeps it in its folder; a note if it cannot."""
    if autoencoder.scale or not autoencoder.path:
        return ""
    try:
        autoencoder.with_scale(measured()).keep_scale()
    except UserError as error:
        return f"note: the latent scale is not kept: {error}"
    return ""


def _to_device(pixels: Tensor, device: torch.device) -> Tensor:
    """The image there; bytes travel while the device computes, and become floats only there."""
    if device.type == "cuda" and pixels.dtype == torch.uint8:
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    return from_pixels(pixels).to(device)


def measured_scale(dataset: Dataset, columns: Sequence[str], buckets: Sequence[Bucket] = ()) -> LatentScale:
    """Mean and standard deviation of each channel over the stored latents to train on, all ``columns`` together.

    With ``buckets``, ``columns`` are the names that these share, and their rows are measured.
    """
    train = () if buckets else (dataset.indices("train"),)
    parts = [(column, rows) for column in columns for rows in train]
    parts += [(bucket.columns[column], bucket.rows) for bucket in buckets for column in columns]
    return LatentScale.measure(batch for column, rows in parts for batch in moments_of(dataset, column, rows))


def moments_of(dataset: Dataset, column: str, rows: Rows, *, batch: int = 1024) -> Iterator[Tensor]:
    """The stored ``[b 2c h w]`` of these rows, in order, for measuring the latent scale."""
    fetch = Fetch(dataset, Reading([column]))
    for start in range(0, len(rows), batch):
        found = fetch(Batch(rows[start : start + batch], 0, np.empty(0, np.uint64))).columns[column]
        assert isinstance(found, Tensor)
        yield found


def scale_note(stored: LatentScale, measured: LatentScale) -> str | None:
    """A line where a scale that came with an autoencoder is far from the one of this data; None where it is near.

    Far is a mean that is off by more than one standard deviation, or a spread twice or half as large.
    """
    ratio = stored.std / measured.std
    shift = (stored.mean - measured.mean).abs() / measured.std
    if ((ratio < 2) & (ratio > 0.5) & (shift < 1)).all():
        return None
    worst = int(torch.maximum(torch.maximum(ratio, 1 / ratio) / 2, shift).argmax())
    return (
        f"the autoencoder's own latent scale does not fit this data (channel {worst}: mean "
        f"{float(stored.mean[worst]):.3g} and std {float(stored.std[worst]):.3g} there, "
        f"{float(measured.mean[worst]):.3g} and {float(measured.std[worst]):.3g} here); the measured one is used"
    )
