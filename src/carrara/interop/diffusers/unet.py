"""U-Nets in the layout of diffusers, ``UNet2DModel`` and ``UNet2DConditionModel``: read and written.

There the class table is inside, and steps are numbered from 0.

What diffusers calls the weights of a U-Net: one table, read both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from carrara.denoisers import unet
from carrara.denoisers.time_features import frequencies
from carrara.denoisers.unet_blocks import ResidualBlock, SelfAttention, SpatialTransformer, Stage
from carrara.errors import UserError
from carrara.interop.diffusers.autoencoder import modern
from carrara.interop.diffusers.autoencoder_config import named_config
from carrara.interop.diffusers.files import CONFIG, WEIGHTS, read_table, read_tensors, write_table
from carrara.interop.diffusers.unet_conditional_config import UNet2DConditionModel
from carrara.interop.diffusers.unet_config import Extras, UNet2DModel
from carrara.interop.diffusers.unet_config_export import express, tolerances
from carrara.model_folder import PASSPORT, write_folder, write_weights

CLASSES: Mapping[str, type[UNet2DModel | UNet2DConditionModel]] = {
    "UNet2DModel": UNet2DModel,
    "UNet2DConditionModel": UNet2DConditionModel,
}
_INSIDE = "unet"  # where a pipeline's folder keeps it


class Adopted(NamedTuple):
    """A U-Net of diffusers in our words: ``config.build(channels=..., **widths)`` takes ``state``, in float32."""

    config: unet.Config
    channels: int
    widths: dict[str, int]
    state: dict[str, Tensor]
    extras: Extras

    def network(self) -> unet.UNet:
        """With its weights, ready to use."""
        with torch.device("meta"):
            network = self.config.build(channels=self.channels, **self.widths)
        network.load_state_dict(self.state, assign=True)
        return network.eval()


def find_unet(path: Path) -> Path | None:
    """The folder that holds the U-Net: ``path`` itself or, in a pipeline's folder, the one inside."""
    for folder in (path / _INSIDE, path):
        if (folder / CONFIG).is_file():
            return folder
    return None


def read_unet(path: str | Path) -> Adopted:
    """UserError names the first thing that Carrara has no form for, or what is missing."""
    folder = find_unet(Path(path))
    if folder is None:
        raise UserError(f"{path} is no U-Net of diffusers: it has no {CONFIG}")
    where = str(folder / CONFIG)
    file = named_config(read_table(folder / CONFIG), where, CLASSES, "a U-Net")
    try:
        said = file.adopt()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    with torch.device("meta"):  # nothing is allocated for what a damaged file claims
        network = said.config.build(channels=said.channels, **said.widths)
    tensors = modern(read_tensors(folder))
    extras = said.extras
    wanted = {
        there: (parameter.shape[0] // len(theirs), *parameter.shape[1:])
        for ours, theirs in names(network, _vector_name(extras)).items()
        for parameter in [network.get_parameter(ours)]
        for there in theirs
    }
    if extras.vector == "classes":
        wanted[CLASS_TABLE] = (extras.classes, said.widths["vector"])
    for name in sorted(tensors.keys() | wanted.keys()):
        have = tuple(tensors[name].shape) if name in tensors else "nothing"
        want = tuple(wanted[name]) if name in wanted else "nothing"
        if have != want:
            raise UserError(f"{folder}: the weights do not fit {CONFIG}: {name} is {have}, expected {want}")
    state: dict[str, Tensor] = {}
    for ours, theirs in names(network, _vector_name(extras)).items():  # each once: SDXL's are 10 GB
        parts = [tensors.pop(there).float() for there in theirs]
        state[ours] = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
    if extras.vector == "classes":
        extras = replace(extras, class_table=tensors[CLASS_TABLE].float())
    return Adopted(said.config, said.channels, said.widths, state, extras)


def write_unet(
    folder: Path,
    config: unet.Config,
    network: unet.UNet,
    extras: Extras | None = None,
    *,
    passport: Mapping[str, Any] | None = None,
) -> list[str]:
    """Writes the folder, whole or not at all; returns what a user of diffusers should know of it.

    UserError, before anything is written, where diffusers has no form for the configuration.
    """
    file, extras = described(config, network, extras or Extras())
    state = {name: value.detach().float().cpu() for name, value in network.state_dict().items()}
    if config.first_step == 1:
        state["time.0.weight"] = _one_step_later(state["time.0.weight"], config)
    tensors: dict[str, Tensor] = {}
    for ours, theirs in names(network, _vector_name(extras)).items():
        tensors |= zip(theirs, state[ours].chunk(len(theirs)), strict=True)
    if extras.class_table is not None:
        tensors[CLASS_TABLE] = extras.class_table.detach().float()
    said = {"_class_name": type(file).__name__, **file.model_dump(mode="json", exclude_none=True)}
    if isinstance(file, UNet2DModel) and file.attention_head_dim is None:
        said["attention_head_dim"] = None  # one head: without the key it would be heads of width 8
    if file.mid_block_type is None:
        said["mid_block_type"] = None

    def fill(part: Path) -> None:
        write_table(part / CONFIG, said)
        if passport is not None:
            write_table(part / PASSPORT, passport)
        write_weights(part / WEIGHTS, tensors)

    write_folder(folder, fill)
    return tolerances(config)


class Described(NamedTuple):
    """The file's form, and the extras with what follows from a class table."""

    file: UNet2DModel | UNet2DConditionModel
    extras: Extras


def described(config: unet.Config, network: unet.UNet, extras: Extras) -> Described:
    """The network's ``config.json``; UserError where diffusers has no form for it. No weight is read."""
    widths = _widths(config, network)
    if extras.class_table is not None:
        _check_table(config, widths, extras)
        extras = replace(extras, vector="classes", classes=len(extras.class_table))
    return Described(express(config, network, network.channels, widths, extras), extras)


def _vector_name(extras: Extras) -> str:
    return "add_embedding" if extras.vector == "text_and_sizes" else "class_embedding"


def _widths(config: unet.Config, network: unet.UNet) -> dict[str, int]:
    """Of the roles that the network reads."""
    found = {"tokens": network.tokens, "vector": network.vector_width, "image": network.image}
    return {role: width for role, width in found.items() if width and role in config.roles}


def _check_table(config: unet.Config, widths: Mapping[str, int], extras: Extras) -> None:
    if config.vector_layers != "none":
        raise UserError(
            f"diffusers cannot express it: classes go through vector_layers {config.vector_layers!r}, and its U-Nets "
            "add a class to the time embedding as it is (vector_layers = 'none')"
        )
    if widths.get("vector") != extras.class_table.shape[1]:
        raise UserError(
            f"diffusers cannot express it: the class table is {extras.class_table.shape[1]} wide, the vector that the "
            f"network reads {widths.get('vector')}: other conditions fill it, too"
        )


def _one_step_later(weight: Tensor, config: unet.Config) -> Tensor:
    """What gives at step n - 1 of 0 to 999 what ``weight`` [e c] gives at n of 1 to 1000.

    cos and sin of an angle that one step adds to are a rotation of the angle's own.
    """
    angles = frequencies(config.channels, config.frequency_shift).double()
    first, second = weight.double().chunk(2, 1)
    sign = -1 if config.sines_first else 1
    turned = [
        first * angles.cos() + sign * second * angles.sin(),
        second * angles.cos() - sign * first * angles.sin(),
    ]
    return torch.cat(turned, 1).float()


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
