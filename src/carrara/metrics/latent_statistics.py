"""What the latents of many pictures are like, channel by channel, from running sums: no latent is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LAGS = (1, 2, 4)
_BINS, _REACH = 48, 4.0  # of the histograms: bars, and standard deviations on either side of the mean


@dataclass(frozen=True)
class Channel:
    """One channel of the raw latents, as a denoiser meets them before they are scaled.

    ``std`` is that of samples: spread of the posterior means and of the posteriors themselves. ``spread`` is the
    posteriors' own standard deviation (root mean square), ``noise_share`` its square in that of ``std``; ``kl`` is
    in nats for one position of the latent. All three are None where latents are points. ``histogram`` is the
    density of the posterior means at ``_BINS`` places from -4 to 4 standard deviations (``edges``).
    ``correlation`` is between positions 1, 2 and 4 apart, across and down; None where the latent is too small.
    """

    mean: float
    std: float
    spread: float | None
    noise_share: float | None
    kl: float | None
    correlation: tuple[float | None, ...]
    edges: tuple[float, float]
    histogram: tuple[float, ...]


class LatentStatistics:
    """Sums over posteriors, in float64."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.positions = 0
        self._total = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)
        self._variance = torch.zeros(channels, dtype=torch.float64)
        self._kl = torch.zeros(channels, dtype=torch.float64)
        self._shift = torch.zeros(channels, dtype=torch.float64)
        self._points = False
        # Of the pairs of positions at each lag: how many, and the sums of a, b, a^2, b^2, a*b.
        self._pairs = dict.fromkeys(LAGS, 0)
        self._pair_sums = {lag: torch.zeros(5, channels, dtype=torch.float64) for lag in LAGS}
        self._low = self._high = torch.empty(0)
        self._counts = torch.zeros(channels, _BINS, dtype=torch.float64)

    def add(self, mean: Tensor, logvar: Tensor) -> None:
        """A batch of posteriors, both [b c h w]; ``logvar`` is -inf where a latent is a point."""
        z, logvar = mean.detach().cpu().double(), logvar.detach().cpu().double()
        flat = z.movedim(1, 0).flatten(1)
        if not self.positions:  # the first pictures fix what sums are taken around, and where histograms lie
            self._shift = flat.mean(1)
            reach = (_REACH * flat.std(1, correction=0)).clamp_min(1e-6)
            self._low, self._high = self._shift - reach, self._shift + reach
        self.positions += flat.shape[1]
        self._count(flat)
        z, flat = z - self._shift[:, None, None], flat - self._shift[:, None]
        self._total += flat.sum(1)
        self._products += flat @ flat.T
        if torch.isneginf(logvar).all():
            self._points = True
        else:
            variance = logvar.exp()
            self._variance += variance.sum((0, 2, 3))
            square = (z + self._shift[:, None, None]).square()
            self._kl += 0.5 * (square + variance - 1 - logvar).sum((0, 2, 3))
        for lag in LAGS:
            for a, b in ((z[..., lag:], z[..., :-lag]), (z[..., lag:, :], z[..., :-lag, :])):
                one, other = a.movedim(1, 0).flatten(1), b.movedim(1, 0).flatten(1)
                self._pairs[lag] += one.shape[1]
                sums = [one, other, one * one, other * other, one * other]
                self._pair_sums[lag] += torch.stack([part.sum(1) for part in sums])

    def _count(self, flat: Tensor) -> None:
        """Into the bars; what lies beyond four standard deviations goes into the outermost."""
        low, high = self._low[:, None], self._high[:, None]
        bars = ((flat - low) / (high - low) * _BINS).long().clamp(0, _BINS - 1)
        self._counts.scatter_add_(1, bars, torch.ones_like(flat))

    @property
    def found(self) -> list[Channel]:
        """Each channel; ValueError before anything was added."""
        if not self.positions:
            raise ValueError("no latents were added")
        mean = self._total / self.positions
        of_means = (self._products.diagonal() / self.positions - mean.square()).clamp_min(0)
        own = self._variance / self.positions
        whole = of_means + own
        width = (self._high - self._low) / _BINS
        return [
            Channel(
                mean=float(mean[c] + self._shift[c]),
                std=float(whole[c].sqrt()),
                spread=None if self._points else float(own[c].sqrt()),
                noise_share=None if self._points else float(own[c] / whole[c].clamp_min(1e-30)),
                kl=None if self._points else float(self._kl[c] / self.positions),
                correlation=tuple(self._correlation(lag, c) for lag in LAGS),
                edges=(float(self._low[c]), float(self._high[c])),
                histogram=tuple((self._counts[c] / self.positions / width[c]).tolist()),
            )
            for c in range(self.channels)
        ]

    @property
    def across(self) -> Tensor:
        """Correlation of the channels' posterior means with each other: float64 [c c]; 0 with a constant channel."""
        mean = self._total / self.positions
        covariance = self._products / self.positions - torch.outer(mean, mean)
        std = covariance.diagonal().clamp_min(0).sqrt()
        scale = torch.outer(std, std)
        found = torch.where(scale > 1e-12, covariance / scale.clamp_min(1e-12), 0.0)
        return found.fill_diagonal_(1.0)

    def _correlation(self, lag: int, channel: int) -> float | None:
        if not (count := self._pairs[lag]):
            return None
        a, b, aa, bb, ab = (self._pair_sums[lag][:, channel] / count).tolist()
        scale = ((aa - a * a) * (bb - b * b)) ** 0.5 if min(aa - a * a, bb - b * b) > 1e-12 else 0.0
        return (ab - a * b) / scale if scale else 0.0


@dataclass(frozen=True)
class CodebookUse:
    """How a codebook is used over ``positions`` of latents.

    ``used`` codes of ``codes`` were met, where even use would have met ``expected`` (fewer than ``codes`` if
    positions are few). ``perplexity``: e to the entropy of the codes' shares, as many codes as even use would need.
    """

    codes: int
    positions: int
    used: int
    expected: float
    perplexity: float

    @staticmethod
    def of(counts: Tensor) -> CodebookUse:
        """From how often each code was met: int64 [codes]."""
        positions, codes = int(counts.sum()), len(counts)
        share = counts.double() / max(positions, 1)
        entropy = -(share * share.clamp_min(1e-300).log()).sum()
        expected = codes * (1 - (1 - 1 / codes) ** positions)
        return CodebookUse(codes, positions, int((counts > 0).sum()), expected, float(entropy.exp()))
