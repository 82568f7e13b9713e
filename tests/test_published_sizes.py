"""By configuration the networks are the published ones: exact parameter counts (facts of the latent-diffusion zoo)."""

from typing import Any

import pytest
import torch
from torch import nn

from carrara.autoencoders import kl, vq
from carrara.context import Context
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


# Exact where the zoo counts them; None where it only describes them: then what is described is built and run.
LDM: dict[str, Any] = {"scale_shift": False, "attention": (2, 4, 8)}
SD: dict[str, Any] = {
    "scale_shift": False,
    "attention": (1, 2, 4),
    "channels": 320,
    "multipliers": (1, 2, 4, 4),
}
DDPM: dict[str, Any] = {"scale_shift": False, "channels": 128, "depth": 0, "heads": 1}
UNETS = [
    pytest.param(LDM | {"channels": 224, "multipliers": (1, 2, 3, 4), "depth": 0, "head_width": 32},
                 3, {}, 274_056_163, id="LDM-4 unconditional"),
    pytest.param(LDM | {"channels": 192, "multipliers": (1, 2, 3, 5), "heads": 1},
                 3, {"tokens": 512}, 400_920_579, id="LDM-4 ImageNet"),
    pytest.param(LDM | {"channels": 256, "multipliers": (1, 2, 4), "head_width": 32, "attention": (1, 2, 4)},
                 4, {"tokens": 512}, 394_984_196, id="LDM-8 ImageNet"),
    pytest.param(SD | {"heads": 8, "projections": "convolution"},
                 4, {"tokens": 768}, 859_520_964, id="stable diffusion 1"),
    pytest.param(SD | {"heads": (5, 10, 20, 20)},
                 4, {"tokens": 1024}, 865_910_724, id="stable diffusion 2"),
    pytest.param(SD | {"multipliers": (1, 2, 4), "attention": (2, 4), "depth": (0, 2, 10)},
                 4, {"tokens": 2048, "vector": 2816}, 2_567_463_684, id="SDXL"),
    pytest.param(DDPM | {"multipliers": (1, 2, 2, 2), "attention": (2,), "dropout": 0.1},
                 3, {}, 35_746_307, id="DDPM CIFAR-10"),
    pytest.param(DDPM | {"multipliers": (1, 1, 2, 2, 4, 4), "attention": (16,)},
                 3, {}, 113_673_219, id="DDPM 256"),
    pytest.param(LDM | {"channels": 192, "multipliers": (1, 2, 2, 4, 4), "attention": (1, 2, 4, 8), "depth": 0,
                        "heads": 8, "scale_shift": True, "resample_blocks": True},
                 4, {}, None, id="LDM-8 Churches"),
    pytest.param(SD | {"heads": 8}, 4, {"tokens": 1280}, None, id="text-to-image 1.45B"),
    pytest.param(LDM | {"channels": 128, "multipliers": (1, 2, 3, 4), "depth": 3, "head_width": 32},
                 4, {"tokens": 512}, None, id="layout-to-image"),
    pytest.param(LDM | {"channels": 256, "multipliers": (1, 2, 3, 4), "depth": 0, "heads": 8,
                        "resample_blocks": True}, 3, {"image": 4}, None, id="inpainting"),
    pytest.param(LDM | {"channels": 128, "multipliers": (1, 4, 8), "attention": (), "middle_attention": True,
                        "depth": 0, "heads": 8}, 3, {"image": 3}, 215_229_315, id="semantic synthesis"),
    pytest.param(LDM | {"channels": 160, "multipliers": (1, 2, 2, 4), "attention": (8, 16), "depth": 0,
                        "head_width": 32}, 3, {"image": 3}, None, id="super-resolution"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "channels", "widths", "published"), UNETS)
def test_unet(shape: dict[str, Any], channels: int, widths: dict[str, int], published: int | None) -> None:
    with torch.device("meta"):
        network = unet.Config(**shape).build(channels=channels, **widths)
        z = torch.empty(2, channels, 2 * network.factor, 3 * network.factor)
        context = Context(
            tokens=torch.empty(2, 5, widths["tokens"]) if "tokens" in widths else None,
            vector=torch.empty(2, widths["vector"]) if "vector" in widths else None,
            image=torch.empty(2, widths["image"], *z.shape[2:]) if "image" in widths else None,
        )
        assert network(z, torch.empty(2), context).shape == z.shape
    assert widths.keys() <= network.config.roles
    if published is None:
        assert 5e7 < count(network) < 9e8
    else:
        assert count(network) == published
