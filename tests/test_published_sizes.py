"""By configuration the networks are the published ones: exact parameter counts (facts of the latent-diffusion zoo)."""

from typing import Any

import pytest
import torch
from torch import nn

from carrara.autoencoders import kl
from carrara.denoisers import unet


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_kl_f8() -> None:
    config = kl.Config(channels=128, multipliers=(1, 2, 4, 4), blocks=2, latent_channels=4)
    with torch.device("meta"):
        assert count(config.build()) == 83_653_863
    assert config.factor == 8


@pytest.mark.parametrize(
    ("config", "channels", "tokens", "published"),
    [
        pytest.param({"channels": 320, "multipliers": (1, 2, 4, 4), "head_width": 40, "attention": (1, 2, 4)},
                     4, 768, 859_520_964, id="stable diffusion 1"),
        pytest.param({"channels": 320, "multipliers": (1, 2, 4, 4), "head_width": 64, "attention": (1, 2, 4)},
                     4, 1024, 865_910_724, id="stable diffusion 2"),
        pytest.param({"channels": 256, "multipliers": (1, 2, 4), "head_width": 32, "attention": (1, 2, 4)},
                     4, 512, 394_984_196, id="LDM-8 ImageNet"),
        pytest.param({"channels": 192, "multipliers": (1, 2, 3, 5), "head_width": 64, "attention": (2, 4, 8)},
                     3, 512, 400_920_579, id="LDM-4 ImageNet"),
    ],
)  # fmt: skip
def test_unet(config: dict[str, Any], channels: int, tokens: int, published: int) -> None:
    with torch.device("meta"):
        network = unet.Config(**config, scale_shift=False).build(channels=channels, tokens=tokens)
    assert count(network) == published
