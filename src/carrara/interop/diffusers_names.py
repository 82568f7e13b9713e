"""What diffusers calls the weights of an autoencoder: one table, read both ways, with its older spellings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from carrara.autoencoders import tiny
from carrara.autoencoders.trunk import ResidualBlock, SpatialAttention

# Inside a module, what is called otherwise there.
_ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
_TINY = {"conv1": "conv.0", "conv2": "conv.2", "conv3": "conv.4"}
_INSIDE: dict[type[nn.Module], dict[str, str]] = {
    ResidualBlock: {"skip": "conv_shortcut"},
    SpatialAttention: _ATTENTION,
    tiny.Block: _TINY,
}
# At the ends of the trunk and around the latent. A kind has some of them.
_SINGLE = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.norm_out": "encoder.conv_norm_out",
    "encoder.conv_out": "encoder.conv_out",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.norm_out": "decoder.conv_norm_out",
    "decoder.conv_out": "decoder.conv_out",
    "to_moments": "quant_conv",
    "to_latent": "quant_conv",
    "from_latent": "post_quant_conv",
}
_CODES = ("codebook.codes", "quantize.embedding.weight")
# Before diffusers 0.17; some files have them still.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def names(module: nn.Module) -> dict[str, str]:
    """Our name of each weight that diffusers knows too -> its name there; for kl, vq and tiny modules."""
    found = {}
    places = dict(_tiny(module) if isinstance(module, tiny.Autoencoder) else _trunk(module))
    for ours, theirs in places.items():
        part = module.get_submodule(ours)
        inside = _INSIDE.get(type(part), {})
        for name, _ in part.named_parameters():
            head, dot, leaf = name.rpartition(".")
            found[f"{ours}.{name}"] = f"{theirs}.{inside.get(head, head)}{dot}{leaf}"
    if _CODES[0] in dict(module.named_parameters()):
        found[_CODES[0]] = _CODES[1]
    return found


def _tiny(module: nn.Module) -> Iterator[tuple[str, str]]:
    for side in ("encoder", "decoder"):
        for index, (name, _) in enumerate(module.get_submodule(side).named_children()):
            yield f"{side}.{name}", f"{side}.layers.{index}"


def _trunk(module: nn.Module) -> Iterator[tuple[str, str]]:
    for ours, theirs in _SINGLE.items():
        if ours in dict(module.named_modules()):
            yield ours, theirs
    yield from _levels(module, "encoder", "down_blocks", "downsamplers")
    yield from _levels(module, "decoder", "up_blocks", "upsamplers")
    for side in ("encoder", "decoder"):
        seen = {"resnets": 0, "attentions": 0}
        for name, layer in module.get_submodule(f"{side}.middle").named_children():
            group = "attentions" if isinstance(layer, SpatialAttention) else "resnets"
            yield f"{side}.middle.{name}", f"{side}.mid_block.{group}.{seen[group]}"
            seen[group] += 1


def _levels(module: nn.Module, side: str, levels: str, resampling: str) -> Iterator[tuple[str, str]]:
    """Our flat list of layers, in their levels: each ends with a change of size, but the last."""
    level, seen = 0, {"resnets": 0, "attentions": 0}
    for name, layer in module.get_submodule(f"{side}.levels").named_children():
        ours = f"{side}.levels.{name}"
        if not isinstance(layer, ResidualBlock | SpatialAttention):
            yield ours, f"{side}.{levels}.{level}.{resampling}.0"
            level, seen = level + 1, {"resnets": 0, "attentions": 0}
            continue
        group = "attentions" if isinstance(layer, SpatialAttention) else "resnets"
        yield ours, f"{side}.{levels}.{level}.{group}.{seen[group]}"
        seen[group] += 1


def modern(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file as diffusers would name and shape them today."""
    found = {}
    for name, value in tensors.items():
        today = re.sub(
            r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)", lambda old: _OLD[old[0]], name
        )
        is_projection = re.search(r"\.(to_q|to_k|to_v|to_out\.0)\.weight$", today)
        if is_projection and value.ndim == 4 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]  # checkpoints of Stable Diffusion 1 wrote them as 1x1 convolutions
        found[today] = value
    return found
