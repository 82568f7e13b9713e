"""Pictures of any size brought to the size that is made: cut to its ratio about their centre, then resampled.

The data room does the same on the way from a file to a training picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.conditions.contract import Size
from carrara.tensors import from_pixels, to_pixels


def central(picture: Tensor, size: Size) -> Tensor:
    """The largest part of ``picture [... h w]`` about its centre that has the ratio of ``size``."""
    h, w = picture.shape[-2:]
    high = min(h, max(1, round(w * size[0] / size[1])))
    wide = min(w, max(1, round(h * size[1] / size[0])))
    top, left = (h - high) // 2, (w - wide) // 2
    return picture[..., top : top + high, left : left + wide]


def resize(image: Tensor, size: Size) -> Tensor:
    """``float32 [c h w]`` to ``[c *size]``: bicubic, antialiased; steep edges overshoot a little."""
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]


def fit_picture(picture: Tensor, size: Size) -> Tensor:
    """``uint8`` or ``uint16 [c h w]`` to an image ``float32 [c *size]`` in [-1, 1]."""
    return resize(from_pixels(central(picture, size)), size).clamp(-1, 1)


def fit_mask(mask: Tensor, size: Size) -> Tensor:
    """``bool [h w]`` to ``bool size``: True wherever any of what a pixel was made from is."""
    part = central(mask, size)
    return part if part.shape == size else F.adaptive_max_pool2d(part[None].float(), size)[0] > 0


def fit_map(ids: Tensor, size: Size) -> Tensor:
    """Whole numbers ``[h w]`` to ``int64 size``, each the nearest one's: classes have no values between them."""
    part = central(ids, size).long()
    if part.shape == size:
        return part
    return F.interpolate(part[None, None].double(), size, mode="nearest-exact")[0, 0].long()


def shrink(pictures: Tensor, factor: int) -> Tensor:
    """``uint8`` or ``uint16 [b c h w]`` made ``factor`` times smaller, as a file of that size would hold it."""
    h, w = pictures.shape[-2:]
    size = (max(1, round(h / factor)), max(1, round(w / factor)))
    small = F.interpolate(from_pixels(pictures), size, mode="bicubic", antialias=True)
    return to_pixels(small, 8 * pictures.element_size())


def edges(image: Tensor) -> Tensor:
    """Of an image [c h w] in [-1, 1] the steepness (Sobel), the channels' largest: [1 h w], flat -1, a step 1."""
    near = F.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    rows = (near[:, :-2] + 2 * near[:, 1:-1] + near[:, 2:]) / 4  # smoothed downwards
    columns = (near[..., :-2] + 2 * near[..., 1:-1] + near[..., 2:]) / 4
    across, down = rows[..., 2:] - rows[..., :-2], columns[:, 2:] - columns[:, :-2]
    steepness = torch.hypot(across, down).amax(0, keepdim=True) / 2
    return steepness.clamp(max=1) * 2 - 1
