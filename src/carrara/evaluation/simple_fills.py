"""Holes filled without a model, and what is inside a hole compared: what inpainting has to be better than.

The smooth fill averages what is known at ever coarser scales (push and pull, Gortler et al. 1996, section 3.4).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.metrics.reconstruction import TOPS
from carrara.tensors import from_pixels, to_pixels


def mean_fill(pictures: Tensor, holes: Tensor) -> Tensor:
    """``uint8`` or ``uint16 [n c h w]``, each with its hole ``bool [n h w]`` in the mean colour of what is left."""
    image, known = from_pixels(pictures), (~holes)[:, None].float()
    mean = (image * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1)
    return _pasted(pictures, mean.expand_as(image), holes)


def smooth_fill(pictures: Tensor, holes: Tensor) -> Tensor:
    """The same with colours that go over smoothly from one edge of the hole to the other."""
    known = (~holes)[:, None].float()
    return _pasted(pictures, _pulled(from_pixels(pictures) * known, known), holes)


def _pulled(weighted: Tensor, weight: Tensor) -> Tensor:
    """Colours times weights, and weights in [0, 1]: the colours where the weight is 1, from coarser ones elsewhere."""
    here = weighted / weight.clamp_min(1e-6)
    if max(weight.shape[-2:]) == 1:
        return here
    size = weight.shape[-2:]
    # Odd sides: what is padded weighs nothing.
    pad = (0, size[1] % 2, 0, size[0] % 2)
    less_weighted, less = (4 * F.avg_pool2d(F.pad(part, pad), 2) for part in (weighted, weight))
    full = less.clamp(max=1)  # where all is known, finer detail has been used up
    coarse = _pulled(less_weighted * (full / less.clamp_min(1e-6)), full)
    high, wide = size[0] + pad[3], size[1] + pad[1]
    fine = F.interpolate(coarse, (high, wide), mode="bilinear")[..., : size[0], : size[1]]
    return weight * here + (1 - weight) * fine


def _pasted(pictures: Tensor, filling: Tensor, holes: Tensor) -> Tensor:
    made = to_pixels(filling, 8 * pictures.element_size())
    return torch.where(holes[:, None], made, pictures)


def psnr_where(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """PSNR in dB over the pixels ``bool [n h w]`` of pictures ``uint8`` or ``uint16 [n c h w]``, at most 100: [n].

    NaN for a picture without such a pixel.
    """
    top, chosen = TOPS[a.dtype], where[:, None].double()
    error = ((a.double() - b.double()).square() * chosen).sum((1, 2, 3)) / (
        chosen.sum((1, 2, 3)) * a.shape[1]
    )
    return (10 * torch.log10(top**2 / error)).clamp(max=100)


def square_around(hole: Tensor, *, margin: float = 0.125, smallest: int = 16) -> tuple[int, int, int]:
    """Top, left and side of a square about a hole ``bool [h w]`` with some of what surrounds it, as far as it goes.

    ``margin`` is in sides of the hole's box. ValueError where there is no hole.
    """
    down, across = (hole.any(axis).nonzero() for axis in (1, 0))
    if not len(down):
        raise ValueError("there is no hole")
    top, bottom, left, right = (int(n) for n in (down[0], down[-1], across[0], across[-1]))
    high, wide = bottom - top + 1, right - left + 1
    side = min(*hole.shape, max(smallest, round(max(high, wide) * (1 + 2 * margin))))
    first = [
        min(max(0, round(start + (length - side) / 2)), whole - side)
        for start, length, whole in ((top, high, hole.shape[0]), (left, wide, hole.shape[1]))
    ]
    return first[0], first[1], side


def cut_around(pictures: Tensor, holes: Tensor, side: int) -> Tensor:
    """What `square_around` names of every picture, resampled to one side: ``[n c side side]`` of the same depth."""
    found = []
    for picture, hole in zip(pictures, holes, strict=True):
        top, left, size = square_around(hole)
        part = from_pixels(picture[:, top : top + size, left : left + size])[None]
        if size != side:
            part = F.interpolate(part, (side, side), mode="bicubic", antialias=True)
        found.append(to_pixels(part[0], 8 * picture.element_size()))
    return torch.stack(found)
