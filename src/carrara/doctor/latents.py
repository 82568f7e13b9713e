"""Whether the latents are what the denoiser takes them for: their scale, and the pictures that come back from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carrara.dataset.derived import column_name
from carrara.dataset.latents import latent_key
from carrara.doctor.finding import Check, Finding, not_looked
from carrara.doctor.opened_run import Patient
from carrara.metrics.reconstruction import psnr, reconstruct
from carrara.tensors import to_pixels

_COMPARED = 8  # pictures
_LOST = 3.0  # dB between a picture through its stored latent and through a fresh one
_POOR = 18.0  # dB: below it nothing that a denoiser makes can look like a picture


def scale(patient: Patient) -> Check:
    """Scaled latents should have a mean of 0 and a standard deviation of 1 in every channel."""
    name = "latent scale"
    if patient.trouble:
        return not_looked(name, patient.trouble)
    kept = patient.model.autoencoder.scale
    assert kept is not None
    if patient.recipe.pixels:
        latent = patient.pictures.latent
        std, mean, low = latent.std((0, 2, 3)), latent.mean((0, 2, 3)), 0.05
    else:
        measured = patient.feed.measured()
        std, mean, low = measured.std / kept.std, (measured.mean - kept.mean) / kept.std, 0.5
    worst = int(torch.maximum(torch.maximum(std, 1 / std).log() / 0.693, mean.abs()).argmax())
    saw = f"scaled latents: std {_list(std)}, mean {_list(mean)}"
    if ((std > low) & (std < 2) & (mean.abs() < 1)).all():
        return Check(name, saw)
    words = (
        f"channel {worst} of the scaled latents has mean {float(mean[worst]):.3g} and standard deviation "
        f"{float(std[worst]):.3g}; expected 0 and 1"
    )
    fix = (
        "the scale kept with the model is not that of this data: train a new run on it (the scale is measured then), "
        "or give the data set that the model was trained on"
    )
    return Check(name, saw, [Finding("latent_scale", words, fix)])


def cache(patient: Patient) -> Check:
    """Stored latents, decoded, should be the pictures they were made from."""
    name = "stored latents"
    if patient.dataset is None:
        return not_looked(name, "give the data set to look at it")
    if patient.recipe.pixels:
        return not_looked(name, "the model works on pixels")
    if patient.trouble:
        others = [c for c in patient.dataset.columns if c.startswith("latent_")]
        words = f"the data has no latents of this model's autoencoder ({patient.trouble})"
        if others:
            words += f"; {len(others)} columns of latents are of another autoencoder, size or crop"
        fix = "run `carrara data encode` with the autoencoder that the run was trained with"
        return Check(name, f"columns {', '.join(others) or 'none'}", [Finding("stale_latents", words, fix)])
    rows, stored = _stored(patient)
    autoencoder = patient.model.autoencoder
    module: Any = autoencoder.module
    channels, device = int(autoencoder.config.image_channels), patient.placement.device
    pictures = patient.dataset.pictures(rows, autoencoder.size, channels, bits=autoencoder.bits)
    module.eval()
    with torch.inference_mode():
        kept = to_pixels(module.decode(stored.to(device)).cpu(), autoencoder.bits)
    fresh = reconstruct(module, pictures, device, patient.placement.autocast)
    through_store = float(psnr(pictures, kept).clamp(max=100).mean())
    through_fresh = float(psnr(pictures, fresh).clamp(max=100).mean())
    saw = f"PSNR of {len(rows)} pictures {through_store:.1f} dB through stored latents, {through_fresh:.1f} dB afresh"
    found = []
    if through_store < through_fresh - _LOST:
        words = f"stored latents give back other pictures: {through_store:.1f} dB instead of {through_fresh:.1f} dB"
        column = column_name("latent", latent_key(autoencoder))
        fix = f"remove the column {column} (or import the data again) and run `carrara data encode` again"
        found.append(Finding("broken_latents", words, fix))
    if through_fresh < _POOR:
        words = f"the autoencoder itself gives back pictures at {through_fresh:.1f} dB: nothing better can be made"
        fix = "train the autoencoder longer; `carrara inspect autoencoder` says how good it is"
        found.append(Finding("poor_autoencoder", words, fix))
    return Check(name, saw, found)


def _stored(patient: Patient) -> tuple[list[int], Tensor]:
    """Rows with raw latents as squares, and their means [b c h w]."""
    split = "held_out" if patient.feed.parts[-1].buckets else "train"
    rows = list(patient.rows(split, _COMPARED))
    loaded = patient.loaded(rows)
    mean, _ = torch.as_tensor(loaded.columns[patient.feed.names[0]]).float().chunk(2, 1)
    return rows, mean


def _list(values: Tensor) -> str:
    few = values.tolist()[:8]
    return ", ".join(f"{value:.2f}" for value in few) + (" …" if len(values) > len(few) else "")
