"""LPIPS: how different two pictures look, as a distance between a network's features (Zhang et al. 2018)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.metrics.pretrained_weights import LOOKS, VISIBLE_CHANNELS, Net, Perceptual, perceptual_weights

SMALLEST = 32  # pixels: from here on every layer of both networks has something to look at

# ImageNet's mean and standard deviation, for pictures in [-1, 1] (the published code's figures).
_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_STRIDES = {"alexnet": (4, 1, 1, 1, 1), "vgg16": (1,) * 13}
_POOL_BEFORE = {"alexnet": (1, 2), "vgg16": (2, 4, 7, 10)}
_POOL = {"alexnet": 3, "vgg16": 2}


class Lpips(nn.Module):
    """Equation 1: unit-normalised features of five layers, their squared differences weighted by channel.

    Frozen; gradients flow to both pictures. ``name`` and ``source`` say which network and whose weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Net, weights: Perceptual) -> None:
        super().__init__()
        self.net = net
        self.name = f"LPIPS ({'AlexNet' if net == 'alexnet' else 'VGG16'})"
        self.source = weights.source
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)
        self.convolutions = nn.ModuleList()
        for (weight, bias), stride in zip(weights.convolutions, _STRIDES[net], strict=True):
            out, into, side, _ = weight.shape
            padding = 2 if side == 11 else side // 2
            layer = nn.Conv2d(into, out, side, stride, padding, device="meta")
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
            self.convolutions.append(layer)
        self.heads = nn.ParameterList(head[:, None, None] for head in weights.heads)
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances ``[b]``, 0 for equal pictures, of two ``[b c h w]`` in [-1, 1] with 1, 3 or 4 channels.

        One channel is shown as grey, a fourth one is left out; sides below 32 pixels are enlarged to 32.
        ValueError for other channel counts and for two shapes.
        """
        if a.shape != b.shape or a.ndim != 4:
            raise ValueError(f"LPIPS compares two [b c h w] of one shape, not {[*a.shape]} and {[*b.shape]}")
        both = self.features(torch.cat([a, b]))
        total = a.new_zeros(len(a), dtype=torch.float32)
        for feature, head in zip(both, self.heads, strict=True):
            # Unlike sqrt(sum(x^2)), this norm has a gradient (zero) where no channel responds.
            norm = torch.linalg.vector_norm(feature, dim=1, keepdim=True)
            one, other = (feature / (norm + 1e-10)).chunk(2)
            total = total + ((one - other).square() * head).sum(1).mean((1, 2))
        return total

    def features(self, image: Tensor) -> list[Tensor]:
        """What the five layers that LPIPS looks at respond, float32 [b c h w] each."""
        x = (_as_colour(image).float() - self.mean) / self.std
        if (short := min(x.shape[2:])) < SMALLEST:
            sides = [round(side * SMALLEST / short) for side in x.shape[2:]]
            x = F.interpolate(x, size=sides, mode="bilinear", align_corners=False)
        found = []
        for index, layer in enumerate(self.convolutions):
            if index in _POOL_BEFORE[self.net]:
                x = F.max_pool2d(x, _POOL[self.net], 2)
            x = F.relu(layer(x))
            if index in LOOKS[self.net]:
                found.append(x.float())
        return found


def load_lpips(net: Net = "vgg16", path: Path | None = None) -> Lpips:
    """LPIPS with weights from ``path`` or from where this machine has them; UserError where it has none."""
    return Lpips(net, perceptual_weights(net, path)).eval()


def _as_colour(image: Tensor) -> Tensor:
    if image.shape[1] not in VISIBLE_CHANNELS:
        raise ValueError(f"LPIPS sees pictures of 1, 3 or 4 channels, not of {image.shape[1]}")
    return image[:, :3].expand(-1, 3, -1, -1)
