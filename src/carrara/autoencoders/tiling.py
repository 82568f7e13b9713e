"""Pictures larger than memory, tile by tile and without seams: every tile is normalized by the whole picture's moments.

Group norms (Wu & He 2018) and attention look at all of a picture, so tiles by themselves drift in colour and
contrast. Here the moments of the whole picture are found by passes over its tiles. Replaying the last pass's
moments does not converge: an error at one norm is multiplied at every norm behind it. So a mosaic, a tile put
together from small pieces of everywhere, goes through the network first and sets the moments, each corrected by
what the last pass found the picture's to be beside the mosaic's (a control variate). Errors above then move
both alike, and a few corrections are enough. After as many passes as there are norms it would be exact.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carrara.autoencoders.trunk import SpatialAttention, check_size
from carrara.errors import UserError
from carrara.layers import GroupNorm

TILE, OVERLAP = 512, 128  # pixels
LARGE = 1024 * 1024  # pixels of a picture from which on it is better tiled
PASSES, CLOSE = 6, 0.005  # at most so many; enough where no moment is further off, in standard deviations
PIECE = 4  # latents a side of the mosaic's pieces
# Positions that attention looks at; where a picture has more, the means of neighbouring ones.
KEYS = 512 * 512


@dataclass(frozen=True)
class Moments:
    """A posterior over raw latents, ``mean`` and ``logvar`` both [b c h w] (-inf where there is no spread)."""

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        """The most likely latent."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise, ``noise`` standard normal and of the latent's shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


class Span(NamedTuple):
    """Along one axis, in latents: a tile sees start to stop and fills first to last."""

    start: int
    stop: int
    first: int
    last: int

    def kept(self, length: int) -> slice:
        """What it fills, of ``length`` positions that cover all that it sees."""
        seen = self.stop - self.start
        return slice((self.first - self.start) * length // seen, (self.last - self.start) * length // seen)


class Grid(NamedTuple):
    """The tiles of a picture: every pair of a row and a column."""

    rows: list[Span]
    columns: list[Span]

    @property
    def single(self) -> bool:
        """Whether one tile is the whole picture."""
        return len(self.rows) * len(self.columns) == 1


def grid(height: int, width: int, factor: int, tile: int = TILE, overlap: int = OVERLAP) -> Grid:
    """The tiles of a picture of ``height`` x ``width`` pixels; ``tile`` and ``overlap`` are rounded to the factor.

    UserError where tiles are too small to share that much.
    """
    side, shared = tile // factor, -(-overlap // factor)
    tall, wide = height // factor, width // factor
    if shared < 0:
        raise UserError(f"neighbouring tiles cannot share {overlap} pixels; expected at least 0")
    if side <= shared and side < max(tall, wide):
        raise UserError(
            f"tiles of {tile} pixels are too small to share {overlap} with their neighbours; "
            f"expected at least {(shared + 1) * factor}"
        )
    return Grid(_spans(tall, side, shared), _spans(wide, side, shared))


def encode(autoencoder: Any, image: Tensor, tile: int = TILE, overlap: int = OVERLAP) -> Moments:
    """``image [b c H W]`` to raw latents, as ``autoencoder.encode`` does, in the memory of a tile; no gradients.

    ``tile`` and ``overlap`` (what neighbours share) are in pixels of the picture. Where one tile is enough it
    is the same to the bit. ValueError where a side is no multiple of the factor.
    """
    factor = autoencoder.factor
    check_size(image, factor)
    height, width = image.shape[-2:]
    tiles = grid(height, width, factor, tile, overlap)

    def moments(network: Any, part: Tensor) -> Tensor:
        encoding = network.encode(part)
        return torch.cat([encoding.mode(), encoding.logvar], 1)

    with torch.no_grad():
        if tiles.single:
            whole = moments(autoencoder, image)
        else:
            whole = torch.cat(
                [_Whole(autoencoder, moments, tiles, factor, 1)(x) for x in torch.split(image, 1)]
            )
    return Moments(*whole.chunk(2, 1))


def decode(autoencoder: Any, latent: Tensor, tile: int = TILE, overlap: int = OVERLAP) -> Tensor:
    """Raw ``latent [b c h w]`` to an image [b c H W], as ``autoencoder.decode`` does; all else as in `encode`."""
    factor = autoencoder.factor
    height, width = latent.shape[-2:]
    tiles = grid(height * factor, width * factor, factor, tile, overlap)

    def picture(network: Any, part: Tensor) -> Tensor:
        image: Tensor = network.decode(part)
        return image

    with torch.no_grad():
        if tiles.single:
            return picture(autoencoder, latent)
        return torch.cat([_Whole(autoencoder, picture, tiles, 1, factor)(z) for z in torch.split(latent, 1)])


def encode_any_size(
    autoencoder: Any, image: Tensor, limit: int = LARGE, *, tile: int | None = None
) -> Moments:
    """`encode`, in tiles only where the picture has more than ``limit`` pixels or a ``tile`` is given."""
    height, width = image.shape[-2:]
    return encode(autoencoder, image, *tile_for(height, width, limit, tile=tile))


def decode_any_size(
    autoencoder: Any, latent: Tensor, limit: int = LARGE, *, tile: int | None = None
) -> Tensor:
    """`decode`, in tiles only where the picture will have more than ``limit`` pixels or a ``tile`` is given."""
    height, width = (side * autoencoder.factor for side in latent.shape[-2:])
    return decode(autoencoder, latent, *tile_for(height, width, limit, tile=tile))


def tile_for(height: int, width: int, limit: int = LARGE, *, tile: int | None = None) -> tuple[int, int]:
    """A tile's side and what neighbours share, in pixels: all of a picture of up to ``limit`` pixels is one tile.

    With a ``tile`` given that is the side; neighbours never share more than half of it.
    """
    side = tile or (TILE if height * width > limit else max(height, width))
    return side, min(OVERLAP, side // 2)


def _spans(size: int, tile: int, shared: int) -> list[Span]:
    """Tiles of equal size, evenly along the axis; each fills up to the middle of what it shares."""
    if tile >= size:
        return [Span(0, size, 0, size)]
    count = -(-(size - shared) // (tile - shared))
    starts = [(size - tile) * k // (count - 1) for k in range(count)]
    cuts = [0, *((a + tile + b) // 2 for a, b in itertools.pairwise(starts)), size]
    return [
        Span(start, start + tile, *cut) for start, cut in zip(starts, itertools.pairwise(cuts), strict=True)
    ]


class _Whole:
    """One picture's passage through a network, and what its tiles have to know of each other meanwhile."""

    def __init__(
        self, network: nn.Module, work: Callable[[Any, Tensor], Tensor], tiles: Grid, inner: int, outer: int
    ) -> None:
        self.work, self.tiles, self.inner, self.outer = work, tiles, inner, outer
        self.height, self.width = tiles.rows[-1].stop, tiles.columns[-1].stop
        self.row, self.column = tiles.rows[0], tiles.columns[0]
        self.mosaic = False  # whether the mosaic is on its way rather than a tile
        # A copy in structure only: the weights stay where they are, and the network itself is never touched.
        weights = itertools.chain(network.parameters(), network.buffers())
        self.network = copy.deepcopy(network, {id(tensor): tensor for tensor in weights})
        for parent in list(self.network.modules()):
            if isinstance(parent, SpatialAttention):
                parent.key = _SharedRows(parent.key, self)  # type: ignore[assignment]
                parent.value = _SharedRows(parent.value, self)  # type: ignore[assignment]
            for name, child in list(parent.named_children()):
                if isinstance(child, GroupNorm):
                    setattr(parent, name, _SharedNorm(child, self))
        self.shared = [p for p in self.network.modules() if isinstance(p, _SharedNorm | _SharedRows)]

    def __call__(self, picture: Tensor) -> Tensor:
        """``picture [1 c …]`` through the network; the last pass is the result."""
        if not self.shared:
            return self._tile_by_tile(picture)
        small = self._mosaic(picture)
        for _ in range(PASSES):
            self.mosaic = True
            self.work(self.network, small)
            self.mosaic = False
            out = self._tile_by_tile(picture)
            if max([part.settle() for part in self.shared]) < CLOSE:
                break
        return out

    def _tile_by_tile(self, picture: Tensor) -> Tensor:
        i, o = self.inner, self.outer
        out: Tensor | None = None
        for row, column in itertools.product(*self.tiles):
            self.row, self.column = row, column
            seen = picture[..., row.start * i : row.stop * i, column.start * i : column.stop * i]
            done = self.work(self.network, seen)
            if out is None:
                out = done.new_empty(1, done.shape[1], self.height * o, self.width * o)
            kept = done[..., row.kept(done.shape[2]), column.kept(done.shape[3])]
            out[..., row.first * o : row.last * o, column.first * o : column.last * o] = kept
        assert out is not None
        return out

    def _mosaic(self, picture: Tensor) -> Tensor:
        """A tile of pieces that lie evenly over the picture."""
        rows = self._pieces(self.height, self.row.stop - self.row.start)
        columns = self._pieces(self.width, self.column.stop - self.column.start)
        return picture[..., rows[:, None].to(picture.device), columns.to(picture.device)]

    def _pieces(self, size: int, side: int) -> Tensor:
        count = -(-side // PIECE)
        starts = [(size - PIECE) * k // max(1, count - 1) for k in range(count)] if side < size else []
        latents = [s + k for s in starts for k in range(PIECE)][:side] or list(range(size))
        return (torch.tensor(latents)[:, None] * self.inner + torch.arange(self.inner)).flatten()


class _SharedNorm(nn.Module):
    """A group norm whose moments are the whole picture's."""

    def __init__(self, norm: GroupNorm, whole: _Whole) -> None:
        super().__init__()
        self.norm, self.whole = norm, [whole]  # in a list: the picture's passage is no part of the network
        self.shift, self.ratio = torch.zeros(()), torch.ones(())  # of the picture's moments to the mosaic's
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        """``x [1 c h w]``, normalized."""
        whole, groups = self.whole[0], self.norm.groups
        x_kept = x
        if not whole.mosaic:
            x_kept = x[..., whole.row.kept(x.shape[2]), whole.column.kept(x.shape[3])]
        variance, mean = torch.var_mean(x_kept.float(), (0, 2, 3), correction=0)  # c
        mean = mean.double().view(groups, -1)
        square = (variance.double().view(groups, -1) + mean.square()).mean(1)
        mean = mean.mean(1)
        if whole.mosaic:
            self.mosaic = mean, square - mean.square() + self.norm.eps
            self.used = mean + self.shift.to(mean), self.mosaic[1] * self.ratio.to(mean)
            self.count, self.total, self.squares = 0, torch.zeros_like(mean), torch.zeros_like(mean)
        else:
            positions = x_kept[0, 0].numel()
            self.count += positions
            self.total += positions * mean
            self.squares += positions * square
        mean, variance = (v.repeat_interleave(x.shape[1] // groups) for v in self.used)
        gain = self.norm.weight.double() * variance.rsqrt()
        offset = self.norm.bias.double() - mean * gain
        return torch.addcmul(offset.to(x.dtype)[:, None, None], x, gain.to(x.dtype)[:, None, None])

    def settle(self) -> float:
        """After a pass: corrects the next one's moments, and tells how far this one's were off."""
        if not self.count:  # of the other half of the autoencoder
            return 0.0
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp_min(0) + self.norm.eps
        used_mean, used_variance = self.used
        self.shift, self.ratio = mean - self.mosaic[0], variance / self.mosaic[1]
        off = torch.maximum(
            (mean - used_mean).abs() / variance.sqrt(), (used_variance / variance).log().abs() / 2
        )
        return float(off.max())


class _SharedRows(nn.Module):
    """Keys or values of an attention: a tile gets the whole picture's, and adds its own for the next pass."""

    def __init__(self, linear: nn.Module, whole: _Whole) -> None:
        super().__init__()
        self.linear, self.whole = linear, [whole]
        self.known: Tensor | None = None
        self.sums: Tensor | None = None

    def forward(self, rows: Tensor) -> Tensor:
        """``rows [1 n c]`` to [1 l d] over the picture; in the first pass over the mosaic."""
        mine: Tensor = self.linear(rows)
        if self.whole[0].mosaic:
            self.known = mine if self.known is None else self.known
        else:
            self._gather(mine[0])
        assert self.known is not None
        return self.known

    def _gather(self, mine: Tensor) -> None:
        whole = self.whole[0]
        tall, wide = (span.stop - span.start for span in (whole.row, whole.column))
        scale = math.sqrt(len(mine) / (tall * wide))  # positions of this level a latent
        h, w, height, width = (round(n * scale) for n in (tall, wide, whole.height, whole.width))
        pool = math.ceil(math.sqrt(height * width / KEYS))
        across = -(-width // pool)
        if self.sums is None:
            self.sums = mine.new_zeros(-(-height // pool) * across, mine.shape[1], dtype=torch.float32)
            self.counts = self.sums.new_zeros(len(self.sums))
        rows, columns = whole.row.kept(h), whole.column.kept(w)
        y = torch.arange(rows.start, rows.stop, device=mine.device) + round(whole.row.start * scale)
        x = torch.arange(columns.start, columns.stop, device=mine.device) + round(whole.column.start * scale)
        cells = ((y // pool)[:, None] * across + x // pool).flatten()
        kept = mine.view(h, w, -1)[rows, columns].flatten(0, 1).float()
        self.sums.index_add_(0, cells, kept)
        self.counts.index_add_(0, cells, self.counts.new_ones(len(cells)))

    def settle(self) -> float:
        """After a pass: what was gathered is what the next one sees; infinity where that is not yet comparable."""
        if self.sums is None:
            return 0.0
        before, now = self.known, (self.sums / self.counts[:, None])[None]
        self.known, self.sums = now.to(before.dtype if before is not None else now.dtype), None
        if before is None or before.shape != now.shape:
            return math.inf
        return float((now - before).square().mean().sqrt() / now.std())
