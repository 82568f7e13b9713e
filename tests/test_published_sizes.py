"""By configuration the networks are the published ones: exact parameter counts (facts of the latent-diffusion zoo)."""

from typing import Any

import pytest
import torch
from torch import nn

from carrara.autoencoders import kl, vq
from carrara.denoisers import unet


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# The rows marked "(derive)" follow from VQ-f4's and KL-f8's published integers by what differs: widths, codes, and
# the convolutions on both sides of the latent. Attention is at factors of down-sampling.
AUTOENCODERS = [
    pytest.param(kl, (1, 2, 4, 4), 4, {}, 8, 83_653_863, id="KL-f8"),
    pytest.param(kl, (1, 2, 4), 3, {}, 4, 55_312_063, id="KL-f4"),
    pytest.param(kl, (1, 1, 2, 2, 4), 16, {"attention": (16,)}, 16, 69_610_963, id="KL-f16"),
    pytest.param(kl, (1, 1, 2, 2, 4, 4), 64, {"attention": (16, 32)}, 32, 103_880_131, id="KL-f32"),
    pytest.param(vq, (1, 2, 4), 3, {"codes": 8192}, 4, 55_322_782, id="VQ-f4"),
    pytest.param(vq, (1, 2, 2, 4), 4, {"codes": 16384, "attention": (8,)}, 8, 67_717_295, id="VQ-f8"),
    pytest.param(vq, (1, 1, 2, 2, 4), 8, {"codes": 16384, "attention": (16,)}, 16, 69_593_371, id="VQ-f16"),
]


@pytest.mark.parametrize(("kind", "multipliers", "latent", "more", "factor", "published"), AUTOENCODERS)
def test_autoencoders(
    kind: Any, multipliers: tuple[int, ...], latent: int, more: dict[str, Any], factor: int, published: int
) -> None:
    config = kind.Config(channels=128, multipliers=multipliers, blocks=2, latent_channels=latent, **more)
    with torch.device("meta"):
        assert count(config.build()) == published
    assert config.factor == factor


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
