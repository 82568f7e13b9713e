"""Autoencoders of diffusers at several configurations, with weights that matter, made on the spot."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.tensors import generator

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # diffusers speaks of what is not installed
    diffusers = pytest.importorskip("diffusers")


def trunk(widths: tuple[int, ...], attends: tuple[int, ...] = (), **others: Any) -> dict[str, Any]:
    """diffusers' arguments for a trunk whose levels of these numbers attend."""
    types = ["Attn" * (level in attends) for level in range(len(widths))]
    return {
        "block_out_channels": widths,
        "down_block_types": tuple(f"{a}DownEncoderBlock2D" for a in types),
        "up_block_types": tuple(f"{a}UpDecoderBlock2D" for a in reversed(types)),
        **others,
    }


@dataclass(frozen=True)
class Case:
    """A configuration of diffusers, and what ours says of it."""

    class_name: str
    arguments: dict[str, Any]
    factor: int
    channels: int
    ours: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        return getattr(diffusers, self.class_name)(**self.arguments)


CASES = {
    "stable diffusion, narrow": Case(
        "AutoencoderKL",
        trunk((32, 64, 128, 128), layers_per_block=2, latent_channels=4, sample_size=512),
        8,
        4,
        {"kind": "kl", "channels": 32, "multipliers": (1, 2, 4, 4), "blocks": 2, "projections": True},
    ),
    "16 channels": Case(
        "AutoencoderKL",
        trunk((32, 64), latent_channels=16, use_quant_conv=False, use_post_quant_conv=False,
              scaling_factor=1.5305, shift_factor=0.0609, sample_size=[1024, 768]),
        2,
        16,
        {"kind": "kl", "latent_channels": 16, "projections": False},
    ),
    "one projection, grey": Case(
        "AutoencoderKL",
        trunk((32,), in_channels=1, out_channels=1, latent_channels=3, use_quant_conv=False),
        1,
        3,
        {"image_channels": 1, "projections": True},
    ),
    "the other projection, 8 groups": Case(
        "AutoencoderKL",
        trunk((8, 24), attends=(0, 1), latent_channels=5, use_post_quant_conv=False, norm_num_groups=8,
              mid_block_add_attention=False),
        2,
        5,
        {"attention": (1, 2), "middle_attention": False},
    ),
    "no common first width": Case(
        "AutoencoderKL",
        trunk((64, 96), latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[0.5, 2.0, 3.0, 4.0], scaling_factor=0.5),
        2,
        4,
        {"channels": 32, "multipliers": (2, 3)},
    ),
    "vq": Case(
        "VQModel",
        trunk((32, 64, 64), layers_per_block=2, num_vq_embeddings=64, sample_size=256),
        4,
        3,
        {"kind": "vq", "codes": 64, "attention": ()},
    ),
    "vq with attention": Case(
        "VQModel",
        trunk((32, 32), attends=(1,), latent_channels=4, num_vq_embeddings=50, vq_embed_dim=4,
              mid_block_add_attention=False, scaling_factor=1.0),
        2,
        4,
        {"kind": "vq", "codes": 50, "attention": (2,), "middle_attention": False},
    ),
    "tiny": Case("AutoencoderTiny", {}, 8, 4, {"kind": "tiny"}),
    "tiny, 16 channels": Case(
        "AutoencoderTiny",
        {"latent_channels": 16, "encoder_block_out_channels": (24,) * 3, "decoder_block_out_channels": (32,) * 3,
         "num_encoder_blocks": (0, 2, 1), "num_decoder_blocks": (1, 2, 0), "shift_factor": 0.25,
         "scaling_factor": 2.0},
        4,
        16,
        {"kind": "tiny", "latent_channels": 16, "encoder_width": 24, "decoder_width": 32},
    ),
}  # fmt: skip


def enlivened(module: Any, seed: int = 0) -> Any:
    """Every weight drawn so that each layer keeps its input's spread, and norms and biases do something."""
    draw = generator(seed)
    gain = 1.2 if any("norm" in name for name, _ in module.named_parameters()) else 1.0
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=draw)
            if "codes" in name or "embedding" in name:
                value.copy_(noise)
            elif value.ndim > 1:
                value.copy_(gain * noise * value[0].numel() ** -0.5)
            elif name.endswith("weight"):
                value.copy_(1 + 0.3 * noise)
            else:
                value.copy_(0.3 * noise)
    return module.eval()


def pictures(channels: int, factor: int, count: int = 3) -> Tensor:
    """Noise in [-1, 1], not square, four latent positions high."""
    shape = (count, channels, 4 * factor, 6 * factor)
    return torch.rand(shape, generator=generator(9)) * 2 - 1
