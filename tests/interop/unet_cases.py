"""U-Nets of diffusers at several configurations, and the same question put to both programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers_cases import diffusers, enlivened
from torch import Tensor

from carrara.context import Context
from carrara.denoisers import unet
from carrara.denoisers.time_features import time_features
from carrara.interop.diffusers.unet_config import Extras
from carrara.tensors import generator

PLAIN, CONDITIONAL = "UNet2DModel", "UNet2DConditionModel"


def sides(*kinds: str) -> dict[str, tuple[str, ...]]:
    """The types of blocks going down and up, by what stands before ``DownBlock2D``."""
    return {
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
    }


@dataclass(frozen=True)
class Case:
    """A configuration of diffusers, and what ours says of it."""

    class_name: str
    arguments: dict[str, Any]
    ours: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        return enlivened(getattr(diffusers, self.class_name)(**self.arguments))


SMALL: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1}
ONE_LEVEL = {**SMALL, **sides("", "CrossAttn"), "cross_attention_dim": 20}
CASES = {
    "stable diffusion 1": Case(
        CONDITIONAL,
        {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 24, "sample_size": 8,
         "layers_per_block": 1},
        {"attention": (1, 2, 4), "depth": 1, "heads": 8, "projections": "convolution", "first_step": 0},
    ),
    "stable diffusion 2": Case(
        CONDITIONAL,
        {"block_out_channels": (32, 64, 96, 96), "cross_attention_dim": 24, "attention_head_dim": (2, 4, 6, 6),
         "layers_per_block": 1,
         "use_linear_projection": True, "upcast_attention": True},
        {"heads": (2, 4, 6, 6), "projections": "linear"},
    ),
    "sdxl": Case(
        CONDITIONAL,
        {"block_out_channels": (32, 64, 96), "layers_per_block": 1, **sides("", "CrossAttn", "CrossAttn"),
         "cross_attention_dim": 24,
         "attention_head_dim": (2, 4, 6), "transformer_layers_per_block": (1, 2, 3), "use_linear_projection": True,
         "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
         "projection_class_embeddings_input_dim": 16 + 6 * 8},
        {"depth": (0, 2, 3), "attention": (2, 4), "vector_layers": "mlp"},
    ),
    "kinds of attention": Case(
        CONDITIONAL,
        {"block_out_channels": (32, 64), "norm_num_groups": 8, **sides("CrossAttn", "Attn"),
         "transformer_layers_per_block": (3, 2), "cross_attention_dim": 20,
         "layers_per_block": (1, 2), "center_input_sample": True},
        {"depth": (3, 0, 2), "blocks": (1, 2), "unit_input": True},
    ),
    "one middle block, classes, sines first": Case(
        CONDITIONAL,
        {**ONE_LEVEL, "mid_block_type": "UNetMidBlock2D", "num_class_embeds": 5, "flip_sin_to_cos": False,
         "freq_shift": 1},
        {"middle_blocks": 1, "frequency_shift": 1.0, "vector_layers": "none"},
    ),
    "no middle, sizes change in blocks": Case(
        CONDITIONAL,
        {**ONE_LEVEL, "down_block_types": ("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"),
         "mid_block_type": None, "class_embed_type": "simple_projection",
         "projection_class_embeddings_input_dim": 7, "resnet_time_scale_shift": "scale_shift"},
        {"middle_blocks": 0, "resample_blocks": (True, False), "vector_layers": "linear", "scale_shift": True},
    ),
    "inpainting's channels": Case(
        CONDITIONAL,
        {**ONE_LEVEL, "cross_attention_dim": (20, 20), "class_embed_type": "projection",
         "projection_class_embeddings_input_dim": 7, "in_channels": 9, "downsample_padding": 0,
         "norm_num_groups": 8, "time_embedding_dim": 72},
        {"groups": 8, "asymmetric": True, "embedding": 72},
    ),
    "learned variance": Case(
        CONDITIONAL, {**ONE_LEVEL, "class_embed_type": "identity", "out_channels": 8}, {"learnt_variance": True}
    ),
    "ddpm": Case(
        PLAIN,
        {"block_out_channels": (64, 64, 128), "layers_per_block": 2, **sides("", "Attn", ""),
         "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
         "norm_eps": 1e-6},
        {"heads": 1, "depth": 0, "eps": 1e-6, "asymmetric": True, "sines_first": True},
    ),
    "latent diffusion's": Case(
        PLAIN,
        {"block_out_channels": (32, 64, 96, 128), "num_class_embeds": 10, "layers_per_block": 1},
        {"head_width": 8},
    ),
    "dhariwal and nichol's": Case(
        PLAIN,
        {"block_out_channels": (32, 64, 64), **sides("", "Attn", "Attn"), "resnet_time_scale_shift": "scale_shift",
         "downsample_type": "resnet", "upsample_type": "resnet", "out_channels": 6, "class_embed_type": "timestep"},
        {"middle_groups": 0, "resample_blocks": (False, True, True, True), "learnt_variance": True},
    ),
    "groups of its own in the middle": Case(
        PLAIN,
        {"block_out_channels": (16, 24), "layers_per_block": 1, **sides("Attn", "Attn"), "norm_num_groups": 8,
         "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4, "upsample_type": "resnet",
         "class_embed_type": "identity", "in_channels": 5},
        {"middle_groups": 4, "multipliers": (1, 1.5)},
    ),
    "no attention, narrower and narrower": Case(
        PLAIN,
        {"block_out_channels": (20, 12, 4), "layers_per_block": 1, **sides("", "", ""), "norm_num_groups": 4,
         "add_attention": False, "in_channels": 1, "out_channels": 1, "dropout": 0.1},
        {"middle_attention": False, "dropout": 0.1},
    ),
    "one level": Case(
        PLAIN, {"block_out_channels": (16,), "layers_per_block": 1, **sides("Attn"), "norm_num_groups": 8,
                "mid_block_type": None},
        {"multipliers": (1,), "middle_blocks": 0},
    ),
}  # fmt: skip


def asked(
    theirs: Any, config: unet.Config, channels: int, widths: dict[str, int], extras: Extras
) -> tuple[Tensor, Context, dict[str, Any]]:
    """z, and what goes with it for us and for diffusers; three pictures that are not square."""
    draw = generator(4)
    side = 4 * 2 ** (len(config.multipliers) - 1)
    z = torch.randn(3, channels, side, side + side // 4, generator=draw)
    image = torch.randn(3, widths["image"], *z.shape[2:], generator=draw) if "image" in widths else None
    tokens = vector = None
    more: dict[str, Any] = {}
    if type(theirs).__name__ == CONDITIONAL:
        more["encoder_hidden_states"] = tokens = torch.randn(3, 5, widths["tokens"], generator=draw)
    if extras.vector == "text_and_sizes":
        assert extras.size_width is not None
        text = torch.randn(3, widths["vector"] - 6 * extras.size_width, generator=draw)
        numbers = torch.tensor([[512, 768, 0, 64, 1024.0, 1024.0]] * 3)
        waves = time_features(numbers.flatten().double() / 1000, extras.size_width)
        vector = torch.cat([text, waves.view(3, -1)], 1)
        more["added_cond_kwargs"] = {"text_embeds": text, "time_ids": numbers}
    elif extras.vector == "classes":
        more["class_labels"] = torch.tensor([0, 2, 4])
        vector = extras.class_table[more["class_labels"]]
    elif extras.vector == "class_number":
        more["class_labels"] = torch.tensor([0, 3, 9])
        t = more["class_labels"].double() / 1000
        shift, first = config.frequency_shift, config.sines_first
        vector = time_features(t, widths["vector"], frequency_shift=shift, sines_first=first)
    elif extras.vector == "given":
        more["class_labels"] = vector = torch.randn(3, widths["vector"], generator=draw)
    return z, Context(tokens=tokens, vector=vector, image=image), more
