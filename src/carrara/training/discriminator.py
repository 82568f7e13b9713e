"""A patch discriminator: says of every patch of a picture how real it looks (Isola et al. 2017, section 3.2.2)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module):
    """image [b c h w] in [-1, 1] -> logits [b 1 h' w'], one for each patch; higher is more real.

    ``layers`` halvings (70 pixels a patch with three), ``channels`` features at first, doubled up to eight times.
    With 3, 64 and three image channels it has the published 2,765,633 weights.
    """

    def __init__(self, image_channels: int, layers: int = 3, channels: int = 64) -> None:
        super().__init__()
        widths = [channels * min(2**n, 8) for n in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(image_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for index, (inner, outer) in enumerate(itertools.pairwise(widths)):
            stride = 2 if index < layers - 1 else 1
            norm = nn.BatchNorm2d(outer)
            nn.init.normal_(norm.weight, 1.0, 0.02)
            parts += [nn.Conv2d(inner, outer, 4, stride, 1, bias=False), norm, nn.LeakyReLU(0.2)]
        parts.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*parts)
        for part in self.layers:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Logits, float32."""
        out: Tensor = self.layers(image).float()
        return out


def smallest_side(layers: int) -> int:
    """The smallest side in pixels that it can look at: two patches."""
    return int(2**layers * 3)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss (Lim & Ye 2017): real ones above 1, fakes below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def non_saturating(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss (Goodfellow et al. 2014): cross-entropy."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def fooled(kind: str, fake: Tensor) -> Tensor:
    """The autoencoder's loss against either: -logits for the hinge, -log(sigmoid) for the other."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


LOSSES = {"hinge": hinge, "non_saturating": non_saturating}


def gradient_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018, equation 9): half the squared gradient at real pictures, mean over them."""
    with torch.autocast(real.device.type, enabled=False):
        at = real.detach().float().requires_grad_(True)
        (slope,) = torch.autograd.grad(discriminator(at).mean((1, 2, 3)).sum(), at, create_graph=True)
    return 0.5 * slope.square().flatten(1).sum(1).mean()
