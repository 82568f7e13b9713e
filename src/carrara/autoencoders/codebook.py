"""A learned codebook: the nearest code stands for each vector (van den Oord et al. 2017, section 3.1 and appendix A.1).

Cosine codes are from Yu et al. 2022 (section 3.2), the return of dead codes from Dhariwal et al. 2020 (section 3.1).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.tensors import generator

# Distances are computed for this many (vector, code) pairs at a time: 128 MB of float32.
_PAIRS = 2**25


class Quantized(NamedTuple):
    """``latent`` [b c h w] of codes, with the gradient of what was quantized; ``indices`` int64 [b h w]; and the

    mean squared distances a picture [b]: ``commitment`` moves the vectors, ``codebook`` the codes.
    """

    latent: Tensor
    indices: Tensor
    commitment: Tensor
    codebook: Tensor


class Codebook(nn.Module):
    """``count`` codes of ``channels`` numbers; ``learning`` by "ema" (appendix A.1) or by "gradient" (equation 3).

    While training, the first batch's vectors become the first codes, and a code that was nearest to none of the
    last ``patience`` batches' vectors becomes one of this batch's.
    """

    codes: nn.Parameter
    steps: Tensor
    idle: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        count: int,
        channels: int,
        *,
        learning: Literal["ema", "gradient"],
        cosine: bool,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.learning, self.cosine, self.decay = learning, cosine, decay
        start = torch.empty(count, channels).uniform_(-1 / count, 1 / count)
        self.codes = nn.Parameter(start, requires_grad=learning == "gradient")
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer(
            "idle", torch.zeros(count, dtype=torch.int64)
        )  # batches since a code was nearest
        self.register_buffer("counts", torch.zeros(count))  # how often each is nearest, a moving average
        self.register_buffer("sums", torch.zeros(count, channels))  # of the vectors that it is nearest to

    def lookup(self, indices: Tensor) -> Tensor:
        """``int64 [b h w]`` to codes [b c h w]."""
        return F.embedding(indices, self._codes()).permute(0, 3, 1, 2)

    def nearest(self, latent: Tensor) -> Tensor:
        """``latent [b c h w]`` to the index of the nearest code, int64 [b h w]."""
        b, _, h, w = latent.shape
        return self._nearest(self._rows(latent)).view(b, h, w)

    def forward(self, latent: Tensor) -> Quantized:
        """Each position's nearest code, straight through: the gradient passes as if nothing had happened."""
        with torch.autocast(latent.device.type, enabled=False):
            latent = self.fit(latent.float())
            rows = self._rows(latent)
            if self.training and self.steps == 0:
                self._begin(rows)
            indices = self._nearest(rows)
            if self.training:
                self._follow(rows, indices)
            indices = indices.view(latent.shape[0], *latent.shape[2:])
            found = self.lookup(indices)
            commitment = (latent - found.detach()).square().flatten(1).mean(1)
            codebook = (latent.detach() - found).square().flatten(1).mean(1)
            return Quantized(latent + (found - latent).detach(), indices, commitment, codebook)

    def fit(self, latent: Tensor) -> Tensor:
        """The latent as codes are compared with it: on the unit sphere where they are cosine codes."""
        return F.normalize(latent, dim=1) if self.cosine else latent

    def _codes(self) -> Tensor:
        return F.normalize(self.codes, dim=1) if self.cosine else self.codes

    def _rows(self, latent: Tensor) -> Tensor:
        return latent.detach().float().permute(0, 2, 3, 1).reshape(-1, latent.shape[1])

    @torch.no_grad()
    def _nearest(self, rows: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):  # bfloat16 cannot tell near codes apart
            codes = self._codes()
            half = 0.5 * codes.square().sum(1)
            step = max(1, _PAIRS // len(codes))
            parts = [torch.addmm(half, part, codes.T, alpha=-1).argmin(1) for part in torch.split(rows, step)]
            return torch.cat(parts)

    @torch.no_grad()
    def _begin(self, rows: Tensor) -> None:
        """Codes from the first batch's vectors; where there are more codes than vectors, the rest lie near them."""
        draw = generator(0)
        chosen = rows[_drawn(len(self.codes), len(rows), draw).to(rows.device)]
        jitter = torch.randn(chosen.shape, generator=draw).to(chosen)
        self.codes.copy_(chosen + 0.01 * rows.std(0) * jitter)
        self.sums.copy_(self.codes)
        self.counts.fill_(1.0)

    @torch.no_grad()
    def _follow(self, rows: Tensor, indices: Tensor) -> None:
        """The moving averages, the codes where they follow them, and the return of dead codes."""
        count = len(self.codes)
        hits = torch.bincount(indices, minlength=count).to(rows.dtype)
        self.counts.lerp_(hits, 1 - self.decay)
        if self.learning == "ema":
            self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, indices, rows), 1 - self.decay)
            alive = self.counts > 1e-3  # a code that nothing is near to stays where it is
            self.codes[alive] = self.sums[alive] / self.counts[alive, None]
        self.idle.add_(1).masked_fill_(hits > 0, 0)
        self.steps.add_(1)
        dead = torch.nonzero(self.idle > self.patience(len(rows)))[:, 0]
        if len(dead):
            draw = generator(1, int(self.steps))
            self.codes[dead] = rows[_drawn(len(dead), len(rows), draw).to(rows.device)]
            self.sums[dead], self.counts[dead], self.idle[dead] = self.codes[dead], 1.0, 0

    def patience(self, vectors: int) -> int:
        """Batches of so many vectors after which an unused code counts as dead: eight hits were its fair share."""
        return max(50, 8 * len(self.codes) // max(1, vectors))

    @property
    def used(self) -> float:
        """Share of the codes that were nearest to something lately."""
        return float((self.counts > 1e-3 * self.counts.mean()).float().mean())

    @property
    def perplexity(self) -> float:
        """exp of the entropy of which code is nearest: as many codes, equally used, would say as much."""
        share = self.counts / self.counts.sum().clamp_min(1e-12)
        return float(torch.exp(-torch.special.xlogy(share, share).sum()))


def _drawn(count: int, among: int, draw: torch.Generator) -> Tensor:
    """``count`` numbers below ``among``, none twice before all were once."""
    rounds = [torch.randperm(among, generator=draw) for _ in range(-(-count // among))]
    return torch.cat(rounds)[:count]
