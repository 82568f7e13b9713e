"""What diffusers calls the weights of a U-Net: one table, read both ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn

from carrara.denoisers import unet
from carrara.denoisers.unet_blocks import ResidualBlock, SelfAttention, SpatialTransformer, Stage

Inside = dict[str, tuple[str, ...]]
# Inside a layer, what is called otherwise there; what is several there is one here, one below the other.
_RESIDUAL: Inside = {"embed": ("time_emb_proj",), "skip": ("conv_shortcut",)}
_SELF: Inside = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",)}
_SPATIAL: Inside = {"inward": ("proj_in",), "outward": ("proj_out",)}
_TRANSFORMER: Inside = {
    "qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "out1": ("attn1.to_out.0",),
    "query": ("attn2.to_q",),
    "key_value": ("attn2.to_k", "attn2.to_v"),
    "out2": ("attn2.to_out.0",),
    "gate": ("ff.net.0.proj",),
    "out3": ("ff.net.2",),
}
_TABLES: dict[type[nn.Module], Inside] = {
    ResidualBlock: _RESIDUAL,
    SelfAttention: _SELF,
    SpatialTransformer: _SPATIAL,
}
_ENDS = {
    "conv_in": "conv_in",
    "time.0": "time_embedding.linear_1",
    "time.2": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
CLASS_TABLE = "class_embedding.weight"


def names(network: unet.UNet, vector: str) -> dict[str, tuple[str, ...]]:
    """Each of our weights -> its names there, in the order in which they make it up.

    ``vector`` is the name there of the layers that the context's vector goes through.
    """
    found: dict[str, tuple[str, ...]] = {}
    for ours, theirs in (*_ENDS.items(), *_vector(network, vector), *_layers(network)):
        layer = network.get_submodule(ours)
        for name, _ in layer.named_parameters():
            head, dot, leaf = name.rpartition(".")
            found[f"{ours}.{name}"] = tuple(f"{theirs}.{there}{dot}{leaf}" for there in _inside(layer, head))
    return found


def _inside(layer: nn.Module, head: str) -> tuple[str, ...]:
    if isinstance(layer, SpatialTransformer) and head.startswith("blocks."):
        _, block, *rest = head.split(".")
        inner = ".".join(rest)
        return tuple(f"transformer_blocks.{block}.{there}" for there in _TRANSFORMER.get(inner, (inner,)))
    return _TABLES.get(type(layer), {}).get(head, (head,))


def _vector(network: unet.UNet, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(network.vector, nn.Sequential):
        yield from (("vector.0", f"{name}.linear_1"), ("vector.2", f"{name}.linear_2"))
    elif isinstance(network.vector, nn.Linear):
        yield "vector", name


def _layers(network: unet.UNet) -> Iterator[tuple[str, str]]:
    yield from _levels(network.down, "down", "down_blocks", "downsamplers")
    yield from _numbered(network.middle, "middle", "mid_block", {"resnets": 0, "attentions": 0})
    yield from _levels(network.up, "up", "up_blocks", "upsamplers")


def _levels(stages: nn.ModuleList, ours: str, theirs: str, resampling: str) -> Iterator[tuple[str, str]]:
    """Our flat list of stages, in their levels: each ends with a change of size, but the last."""
    level, seen = 0, {"resnets": 0, "attentions": 0}
    for index, stage in enumerate(stages):
        parts = list(cast(Stage, stage).named_children())
        changes = [(name, layer) for name, layer in parts if _changes(layer)]
        kept = Stage(layer for _, layer in parts if not _changes(layer))
        yield from _numbered(kept, f"{ours}.{index}", f"{theirs}.{level}", seen)
        for name, _ in changes:
            yield f"{ours}.{index}.{name}", f"{theirs}.{level}.{resampling}.0"
            level, seen = level + 1, {"resnets": 0, "attentions": 0}


def _changes(layer: nn.Module) -> bool:
    return layer.change is not None if isinstance(layer, ResidualBlock) else hasattr(layer, "up")


def _numbered(stage: Stage, ours: str, theirs: str, seen: dict[str, int]) -> Iterator[tuple[str, str]]:
    for name, layer in stage.named_children():
        group = "resnets" if isinstance(layer, ResidualBlock) else "attentions"
        yield f"{ours}.{name}", f"{theirs}.{group}.{seen[group]}"
        seen[group] += 1
