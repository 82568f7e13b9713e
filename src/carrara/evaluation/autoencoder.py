"""An autoencoder measured: how well pictures come back, and what its latents are like for a denoiser to learn."""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from carrara.errors import UserError
from carrara.metrics.features import Features, kernel_distance, load_features
from carrara.metrics.latent_statistics import LAGS, Channel, CodebookUse, LatentStatistics
from carrara.metrics.lpips import Lpips, load_lpips
from carrara.metrics.pretrained_weights import VISIBLE_CHANNELS
from carrara.metrics.reconstruction import (
    Autocast,
    Passage,
    batches,
    colour_shift,
    psnr,
    ssim,
    there_and_back,
)
from carrara.progress import Progress
from carrara.tensors import from_pixels

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.dataset import Dataset

WORST = 32  # pictures kept for the page
_COMPARED = 256  # training pictures, at most, that tell whether training pictures come back better
_ENOUGH = 30  # held-out pictures, from which a gap to training pictures is more than chance
_POSITIONS = 10  # positions a code, from which an unused code is more than chance
_COUNTED = 2**24  # codes, at most, that are counted one by one: 128 MiB
_DEAD_NATS, _DEAD_SHARE = 0.01, 0.01  # a channel with less KL, or less of the largest spread, carries nothing


class Figure(NamedTuple):
    """A number with its unit and how it was measured; where ``value`` is None, ``protocol`` says why not."""

    value: float | None
    unit: str
    protocol: str


@dataclass(frozen=True)
class Case:
    """One picture and what came back: ``uint8`` or ``uint16 [c h w]``, PSNR in dB, its caption or its file's name."""

    row: int
    psnr: float
    words: str
    original: Tensor
    again: Tensor


@dataclass(frozen=True)
class Inspection:
    """All that was found. ``model`` and ``data`` are words and numbers about what was measured, and on what."""

    model: dict[str, Any]
    data: dict[str, Any]
    figures: dict[str, Figure]
    shift: tuple[float, ...]
    channels: Sequence[Channel]
    across: Tensor
    codebook: CodebookUse | str | None  # words say why it was not measured
    worst: Sequence[Case]

    @property
    def numbers(self) -> dict[str, float]:
        """What a verdict is made from, by name; what was not measured is not there."""
        found = {name: figure.value for name, figure in self.figures.items() if figure.value is not None}
        if self.data["pictures"] < _ENOUGH:
            found.pop("gap", None)
        found["colour_shift"] = max(abs(step) for step in self.shift)
        kl = [channel.kl for channel in self.channels if channel.kl is not None]
        noise = [channel.noise_share for channel in self.channels if channel.noise_share is not None]
        near = [channel.correlation[0] for channel in self.channels if channel.correlation[0] is not None]
        found["dead_channels"] = float(len(self.dead))
        if kl:
            found["latent_std_smallest"] = min(channel.std for channel in self.channels)
            found["latent_std_largest"] = max(channel.std for channel in self.channels)
            found["posterior_noise"] = float(np.median(noise))
        if near:
            found["smoothness"] = float(np.mean(near))
        use = self.codebook
        if isinstance(use, CodebookUse) and use.positions >= _POSITIONS * use.codes:
            found["codebook_use"] = use.used / use.codes
        return found

    @property
    def dead(self) -> list[int]:
        """The channels that carry nothing: next to no KL, or, of points, next to no spread."""
        most = max(channel.std for channel in self.channels)
        return [
            index
            for index, channel in enumerate(self.channels)
            if (channel.std < _DEAD_SHARE * most if channel.kl is None else channel.kl < _DEAD_NATS)
        ]

    def document(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON."""
        figures = {
            name: {"value": f.value, "unit": f.unit, "protocol": f.protocol}
            if f.value is not None
            else {"not measured": f.protocol}
            for name, f in self.figures.items()
        }
        latents = {
            "protocol": "raw latents of the same pictures; std is that of samples (means and posteriors); kl in "
            f"nats per position; correlation between positions {', '.join(map(str, LAGS))} apart",
            "channels": [asdict(channel) for channel in self.channels],
            "across": self.across.tolist(),
            "dead": self.dead,
        }
        return {
            "model": self.model,
            "data": self.data,
            "reconstruction": figures
            | {"colour_shift": {"value": list(self.shift), "unit": "steps of 0..255, a channel each"}},
            "latents": latents,
            "codebook": asdict(self.codebook)
            if isinstance(self.codebook, CodebookUse)
            else self.codebook and {"not measured": self.codebook},
            "worst": [{"row": case.row, "psnr": case.psnr, "words": case.words} for case in self.worst],
        }


def inspect(
    autoencoder: StoredAutoencoder,
    dataset: Dataset,
    device: torch.device,
    *,
    autocast: Autocast = nullcontext,
    count: int = 1000,
    lpips: Path | None = None,
    features: Path | None = None,
) -> Generator[Progress, None, Inspection]:
    """Measures on at most ``count`` pictures, spread evenly over those held out (those trained on where none are).

    ``lpips`` and ``features`` are files of weights, instead of those found on this machine. UserError for a model
    in pixels, a data set without pictures, or files that do not fit.
    """
    module = autoencoder.module
    if not list(module.parameters()):
        raise UserError("this model works on the pixels themselves: there is no autoencoder to inspect")
    rows = dataset.indices("held_out")
    if not (held_out := len(rows) > 0):
        rows = dataset.indices("train")
    if not len(rows):
        raise UserError(f"{dataset.path} holds no pictures")
    own = autoencoder.passport.get("data") == dataset.fingerprint() if autoencoder.passport else None
    chosen = _spread(rows, count)
    compared = _spread(dataset.indices("train"), min(_COMPARED, count)) if held_out and own else rows[:0]
    meter = _Meter(autoencoder, device, _lpips(autoencoder, lpips), _features(autoencoder, features))
    total, done = len(chosen) + len(compared), 0
    for part, passage in _passages(autoencoder, dataset, chosen, device, autocast):
        meter.add(part, passage)
        done += len(part)
        yield Progress.of(done, total, title="inspecting")
    of_training: list[Tensor] = []
    for part, passage in _passages(autoencoder, dataset, compared, device, autocast):
        meter.count_codes(passage.mean)
        of_training.append(psnr(passage.original, passage.again).clamp(max=100))
        done += len(part)
        yield Progress.of(done, total, title="inspecting")
    gap = None
    if of_training:
        gap = float(torch.cat(of_training).mean() - torch.cat(meter.psnr).mean())
    model = {
        "kind": autoencoder.config.kind,
        "hash": autoencoder.hash,
        "size": autoencoder.size,
        "bits": autoencoder.bits,
        "image_channels": autoencoder.config.image_channels,
        "latent_channels": int(cast(int, module.channels)),
        "factor": int(cast(int, module.factor)),
        "weights": sum(weight.numel() for weight in module.parameters()),
    }
    data = {
        "path": str(dataset.path),
        "fingerprint": dataset.fingerprint(),
        "pictures": len(chosen),
        "of": len(rows),
        "split": "held_out" if held_out else "train",
        "the model's own": own,
    }
    return meter.inspection(dataset, model, data, gap, len(compared))


def _spread(rows: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """At most ``count`` of them, at even distances, in an order that is always the same but not theirs.

    Neighbours in a data set are often alike, and the first batch fixes where histograms lie.
    """
    if len(rows) > count:
        rows = rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
    return np.random.default_rng(0).permutation(rows)


def _passages(
    autoencoder: StoredAutoencoder,
    dataset: Dataset,
    rows: np.ndarray[Any, Any],
    device: torch.device,
    autocast: Autocast,
) -> Iterator[tuple[np.ndarray[Any, Any], Passage]]:
    """Batch by batch the rows and their pictures' way there and back; UserError where latents are not finite."""
    module, channels = autoencoder.module.to(device), autoencoder.config.image_channels
    for part in batches(rows, autoencoder.size):
        original = dataset.pictures(part, autoencoder.size, channels, bits=autoencoder.bits)
        passage = there_and_back(module, original, device, autocast)
        if not passage.mean.isfinite().all():
            raise UserError("the autoencoder gives latents that are not finite; its weights are damaged")
        yield part, passage


class _Meter:
    """Running figures: the pictures themselves go, but for the worst."""

    def __init__(
        self,
        autoencoder: StoredAutoencoder,
        device: torch.device,
        lpips: Lpips | str,
        features: Features | str,
    ) -> None:
        module = autoencoder.module
        self.indices = getattr(module, "indices", None)
        self.counts = _counters(int(cast(int, module.codes))) if self.indices else None
        self.latents = LatentStatistics(int(cast(int, module.channels)))
        self.lpips = lpips.to(device) if isinstance(lpips, Lpips) else lpips
        self.features = features.to(device) if isinstance(features, Features) else features
        self.device = device
        self.psnr: list[Tensor] = []
        self._ssim: list[Tensor] = []
        self._shift: list[Tensor] = []
        self._lpips: list[Tensor] = []
        self._features: list[tuple[Tensor, Tensor]] = []
        self._worst: list[tuple[float, int, Tensor, Tensor]] = []

    def add(self, rows: np.ndarray[Any, Any], seen: Passage) -> None:
        """One batch."""
        of_each = psnr(seen.original, seen.again).clamp(max=100)
        self.psnr.append(of_each)
        self._ssim.append(ssim(seen.original, seen.again))
        self._shift.append(colour_shift(seen.original, seen.again))
        self.count_codes(seen.mean)
        with torch.inference_mode():
            self.latents.add(seen.mean, seen.logvar)
            if isinstance(self.lpips, Lpips):
                for part in range(0, len(rows), 16):
                    a, b = (
                        from_pixels(x[part : part + 16]).to(self.device) for x in (seen.original, seen.again)
                    )
                    self._lpips.append(self.lpips(a, b).cpu())
        if isinstance(self.features, Features):
            self._features.append((self.features(seen.original), self.features(seen.again)))
        for index, db in enumerate(of_each.tolist()):
            row = int(rows[index])
            if len(self._worst) < WORST or -db > self._worst[0][0]:
                keep = heapq.heappush if len(self._worst) < WORST else heapq.heapreplace
                keep(self._worst, (-db, row, seen.original[index].clone(), seen.again[index].clone()))

    def count_codes(self, latent: Tensor) -> None:
        """Where there is a codebook: which codes these latents are made of."""
        if self.indices and isinstance(self.counts, Tensor):
            with torch.inference_mode():
                found = self.indices(latent).flatten().cpu()
            self.counts += torch.bincount(found, minlength=len(self.counts))

    def inspection(
        self, dataset: Dataset, model: dict[str, Any], data: dict[str, Any], gap: float | None, compared: int
    ) -> Inspection:
        """What all batches together say."""
        every = torch.cat(self.psnr)
        bits, side = model["bits"], model["size"]
        through = f"posterior mode, rounded to {bits} bits, {side} pixels a side, {len(every)} pictures"
        peak = f"peak {2**bits - 1}, mean over pictures of each one's (at most 100); {through}"
        figures = {
            "psnr": Figure(float(every.mean()), "dB", peak),
            "psnr_median": Figure(float(every.median()), "dB", peak.replace("mean", "median", 1)),
            "psnr_worst": Figure(float(every.min()), "dB", "the worst picture's"),
            "ssim": Figure(
                float(torch.cat(self._ssim).mean()),
                "",
                f"Gaussian window of 11 pixels, sigma 1.5, border mirrored (torchmetrics); {through}",
            ),
            "lpips": self._lpips_figure(through),
            "kernel_distance": self._distance(through),
            "gap": Figure(gap, "dB", f"PSNR of {compared} training pictures less that of the held-out ones")
            if gap is not None
            else Figure(None, "dB", _why_no_gap(data)),
        }
        return Inspection(
            model,
            data,
            figures,
            tuple(torch.cat(self._shift).mean(0).tolist()),
            self.latents.found,
            self.latents.across,
            CodebookUse.of(self.counts) if isinstance(self.counts, Tensor) else self.counts,
            self._cases(dataset),
        )

    def _cases(self, dataset: Dataset) -> list[Case]:
        """The worst first."""
        kept = sorted(self._worst, key=lambda case: (-case[0], case[1]))
        captions = dataset.captions
        columns = [captions["en"]] if "en" in captions else list(captions.values())[:1]
        words = dataset.take([row for _, row, _, _ in kept], [*columns, "source"])
        names = [
            next((str(word) for word in of_one if word), "") for of_one in zip(*words.values(), strict=True)
        ]
        return [Case(row, -db, name, *both) for (db, row, *both), name in zip(kept, names, strict=True)]

    def _lpips_figure(self, through: str) -> Figure:
        if isinstance(self.lpips, str):
            return Figure(None, "", self.lpips)
        value = float(torch.cat(self._lpips).mean())
        return Figure(value, "", f"{self.lpips.name}, weights {self.lpips.source}; {through}")

    def _distance(self, through: str) -> Figure:
        if isinstance(self.features, str):
            return Figure(None, "", self.features)
        a, b = (torch.cat(part) for part in zip(*self._features, strict=True))
        if len(a) < 2:
            return Figure(None, "", "it compares sets, and there is one picture")
        return Figure(
            kernel_distance(a, b, paired=True),
            "thousandths",
            f"originals against reconstructions, unbiased cubic kernel, pairs left out; {self.features.protocol}; "
            f"{through}; not FID, not KID",
        )


def _counters(codes: int) -> Tensor | str:
    """One for each code, or why there are none."""
    if codes > _COUNTED:
        return f"{codes:,} codes are too many to count each one (at most {_COUNTED:,})"
    return torch.zeros(codes, dtype=torch.int64)


def _why_no_gap(data: dict[str, Any]) -> str:
    if data["split"] != "held_out":
        return "no pictures are held out"
    return "the model's passport does not say that it was trained on this data set"


def _lpips(autoencoder: StoredAutoencoder, path: Path | None) -> Lpips | str:
    """The network, or why there is none; a file that the user named and that does not fit is an error."""
    if autoencoder.config.image_channels not in VISIBLE_CHANNELS:
        return f"it sees pictures of 1, 3 or 4 channels, not of {autoencoder.config.image_channels}"
    try:
        return load_lpips("alexnet", path)
    except UserError as error:
        if path:
            raise
        return str(error)


def _features(autoencoder: StoredAutoencoder, path: Path | None) -> Features | str:
    if autoencoder.config.image_channels not in VISIBLE_CHANNELS:
        return f"its network sees pictures of 1, 3 or 4 channels, not of {autoencoder.config.image_channels}"
    try:
        return load_features(path)
    except UserError as error:
        if path:
            raise
        return str(error)
