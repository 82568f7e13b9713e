"""Sets of pictures compared through a network's features: EfficientNet-Lite0 and a kernel distance.

The distance is the unbiased one of Bińkowski et al. 2018 ("KID"), the network is not theirs: figures are not to be
compared with published FID or KID, which stand on Inception-v3.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.errors import UserError, one_line
from carrara.metrics.pretrained_weights import VISIBLE_CHANNELS, lite0_weights
from carrara.tensors import from_pixels

WIDTH = 1280  # features a picture

# Of each stage: side of the kernel, blocks, output channels, expansion, stride of its first block.
_STAGES = (
    (3, 1, 16, 1, 1),
    (3, 2, 24, 6, 2),
    (5, 2, 40, 6, 2),
    (3, 3, 80, 6, 2),
    (5, 3, 112, 6, 1),
    (5, 4, 192, 6, 2),
    (3, 1, 320, 6, 1),
)


class _SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow does it: the odd pixel goes to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, side, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            missing = max((-(-size // stride) - 1) * stride + side - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads))


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


class _Block(nn.Module):
    """Expand, filter each channel, project; no squeezing in the Lite networks. Names are those of the weights."""

    def __init__(self, into: int, out: int, side: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = into * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(into, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv = _SameConv(wide, wide, side, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = nn.Conv2d(wide, out, 1, bias=False), _norm(out)
        self.expands, self.skips = expansion > 1, stride == 1 and into == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.skips else y


class Lite0(nn.Module):
    """EfficientNet-Lite0 (4.65 M weights, trained on ImageNet) up to its pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _SameConv(3, 32, 3, 2, bias=False), _norm(32)
        blocks, width = [], 32
        for side, count, out, expansion, stride in _STAGES:
            for index in range(count):
                blocks.append(_Block(width, out, side, expansion, stride if index == 0 else 1))
                width = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(width, WIDTH, 1, bias=False), _norm(WIDTH)
        self._fc = nn.Linear(WIDTH, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """Features ``[b 1280]`` of ``[b 3 h w]`` with (value - 127) / 128 of 0..255."""
        x = F.relu6(self._bn0(self._conv_stem(image)))
        for block in self._blocks:
            x = block(x)
        pooled: Tensor = F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return pooled

    def classify(self, image: Tensor) -> Tensor:
        """Logits ``[b 1000]`` of ImageNet's classes, for the same input."""
        logits: Tensor = self._fc(self(image))
        return logits


class Features:
    """Pictures to ``float32 [n 1280]``: resized to ``side`` (antialiased bicubic), in batches, in float32."""

    def __init__(self, network: Lite0, side: int = 224) -> None:
        self.network, self.side = network, side

    def to(self, device: torch.device) -> Features:
        """Moves the network; returns itself."""
        self.network.to(device)
        return self

    @property
    def protocol(self) -> str:
        """What has to be the same for two figures to be comparable."""
        return f"EfficientNet-Lite0, 1280 features, pictures at {self.side} pixels (bicubic, antialiased)"

    def __call__(self, pixels: Tensor, *, batch: int = 32) -> Tensor:
        """Of ``uint8`` or ``uint16 [n c h w]`` with 1 (grey), 3 or 4 (the fourth left out) channels; on the CPU."""
        if pixels.shape[1] not in VISIBLE_CHANNELS:
            raise ValueError(f"features are of pictures of 1, 3 or 4 channels, not of {pixels.shape[1]}")
        device = self.network._fc.weight.device
        with torch.inference_mode():
            parts = [
                self.network(self._input(part.to(device))).float().cpu()
                for part in torch.split(pixels, batch)
            ]
        return torch.cat(parts) if parts else torch.empty(0, WIDTH)

    def _input(self, pixels: Tensor) -> Tensor:
        image = from_pixels(pixels[:, :3]).expand(-1, 3, -1, -1)
        if image.shape[2:] != (self.side, self.side):
            image = F.interpolate(
                image, size=(self.side, self.side), mode="bicubic", antialias=True, align_corners=False
            ).clamp(-1, 1)
        return (image * 127.5 + 0.5) / 128  # from [-1, 1] to (value - 127) / 128


def load_features(path: Path | None = None, *, side: int = 224) -> Features:
    """With weights from a .pth or .safetensors, or from the installed package; UserError where there are none."""
    network, found = Lite0(), lite0_weights(path)
    try:
        network.load_state_dict(dict(found), strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{path or 'the installed file'} is not EfficientNet-Lite0: {one_line(error)}"
        ) from None
    return Features(network.eval().requires_grad_(False), side)


def kernel_distance(a: Tensor, b: Tensor, *, paired: bool = False) -> float:
    """1000 times the unbiased squared distance of two sets of features ``[m d]`` and ``[n d]``: 0 where alike.

    Maximum mean discrepancy with the kernel (x.y / d + 1)^3, over all samples, in float64 (Bińkowski et al. 2018,
    equation 4); chance can bring it below 0. ``paired``: b[i] was made from a[i], so that the pairs (a[i], b[i])
    say nothing of the sets and are left out (Gretton et al. 2012, lemma 6). ValueError below two samples.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("a kernel distance needs at least two pictures on either side")
    if paired and len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} samples are no pairs")
    cross = _mean_kernel(a, b, diagonal=not paired)
    return 1000 * (_mean_kernel(a, a, diagonal=False) + _mean_kernel(b, b, diagonal=False) - 2 * cross)


def _mean_kernel(a: Tensor, b: Tensor, *, diagonal: bool) -> float:
    """The mean of k(a[i], b[j]) over all i, j, or over those that differ; in strips, for thousands of samples."""
    a, b = a.double(), b.double()
    total = 0.0
    for start in range(0, len(a), 1024):
        strip = (a[start : start + 1024] @ b.T / a.shape[1] + 1).pow(3)
        total += float(strip.sum())
        if not diagonal:
            total -= float(strip.diagonal(start).sum())
    return total / (len(a) * len(b) if diagonal else len(a) * (len(a) - 1))
