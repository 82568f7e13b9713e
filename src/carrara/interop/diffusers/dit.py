"""DiT in the layout of diffusers, ``DiTTransformer2DModel``: configuration and weights, read and written.

Its class table is a condition here, its positions are computed, and what it keeps once a block is kept once where
all blocks have the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from carrara.config import Config, parse
from carrara.denoisers import dit
from carrara.errors import UserError
from carrara.interop.diffusers.autoencoder_config import Blocks, Count, named_config, only
from carrara.interop.diffusers.files import CONFIG, WEIGHTS, read_table, read_tensors, write_table
from carrara.model_folder import PASSPORT, write_folder, write_weights
from carrara.tensors import under

_CLASS, _OLD_CLASS = "DiTTransformer2DModel", "Transformer2DModel"
_INSIDE = "transformer"  # where a pipeline's folder keeps it
_ACTIVATIONS = {
    "gelu-approximate": "gelu",
    "gelu": "gelu_exact",
    "geglu-approximate": "gelu_sigmoid",  # which has no gate, whatever its name says
    "linear-silu": "silu",
    "swiglu": "swiglu",
    "geglu": "geglu",
}
_MULTIPLE = 4  # hidden width of its feed-forward / width
# Before diffusers 0.30 one class was this and others, with other values for keys that are absent.
_OLD_DEFAULTS = {
    "attention_head_dim": 88,
    "in_channels": None,
    "num_layers": 1,
    "attention_bias": False,
    "sample_size": None,
    "patch_size": None,
    "activation_fn": "geglu",
    "num_embeds_ada_norm": None,
    "norm_type": "layer_norm",
    "norm_elementwise_affine": True,
}


class DiTTransformer2DModel(Config):
    """Its ``config.json``, with the values that it has for keys that are absent."""

    num_attention_heads: Count = 16
    attention_head_dim: Count = 72
    in_channels: Count = 4
    out_channels: Count | None = None
    num_layers: Annotated[Blocks, Field(ge=1)] = 28
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of training there
    norm_num_groups: int | None = 32  # read by nothing
    attention_bias: bool = True
    sample_size: Count = 32
    patch_size: Count = 2
    activation_fn: Annotated[str, only(*_ACTIVATIONS)] = "gelu-approximate"
    num_embeds_ada_norm: Count = 1000
    upcast_attention: bool = False  # of half precision there
    norm_type: Annotated[str, only("ada_norm_zero")] = "ada_norm_zero"
    norm_elementwise_affine: bool = False
    norm_eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-5
    attention_type: Annotated[str, only("default")] = "default"  # of the older class


class AdoptedDiT(NamedTuple):
    """``config.build(channels=channels, **roles)`` takes ``state``; ``table [classes + 1, vector]`` its conditions.

    The table's last row stands for no class. ``size`` is the side of z that it was made for.
    """

    config: dit.Config
    channels: int
    roles: dict[str, int]
    state: dict[str, Tensor]
    table: Tensor
    size: int


def read_dit(path: str | Path) -> AdoptedDiT:
    """The network in float32. UserError names the first thing that Carrara has no form for, or what is missing."""
    folder = Path(path)
    if not (folder / CONFIG).is_file() and (folder / _INSIDE / CONFIG).is_file():
        folder = folder / _INSIDE
    where = folder / CONFIG
    file = _parsed(read_table(where), str(where))
    width = file.num_attention_heads * file.attention_head_dim
    try:
        channels, beside, variance = _channels(file)
        config = parse(dit.Config, _shape(file, width, variance), where=_CLASS)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    roles = {"vector": width} | ({"image": beside} if beside else {})
    with torch.device("meta"):  # nothing is allocated for what a damaged file claims
        network = config.build(channels=channels, **roles)
        table = torch.empty(file.num_embeds_ada_norm + 1, width)
    wanted = _theirs(network.state_dict(), table, config)
    if file.norm_elementwise_affine:
        norms = (
            f"transformer_blocks.{n}.norm3.{part}" for n in range(config.depth) for part in ("weight", "bias")
        )
        wanted |= {name: torch.empty(width, device="meta") for name in norms}
    given = {name: value for name, value in read_tensors(folder).items() if name != "pos_embed.pos_embed"}
    for name in sorted(given.keys() | wanted.keys()):
        have, want = (tuple(t[name].shape) if name in t else "nothing" for t in (given, wanted))
        if have != want:
            raise UserError(f"{folder}: the weights do not fit {CONFIG}: {name} is {have}, expected {want}")
    given = {name: value.float() for name, value in given.items()}
    embedded = [under(f"transformer_blocks.{n}.norm1.emb.", given) for n in range(config.depth)]
    if not all(torch.equal(block[name], value) for block in embedded for name, value in embedded[0].items()):
        config = config.model_copy(update={"own_embeddings": True})
        roles["vector"] = width * config.depth
    tables = [block["class_embedder.embedding_table.weight"] for block in embedded]
    table = torch.cat(tables, 1) if config.own_embeddings else tables[0].clone()
    return AdoptedDiT(config, channels, roles, _ours(given, config), table, file.sample_size)


def write_dit(
    folder: Path,
    network: dit.DiT,
    *,
    size: int,
    table: Tensor | None = None,
    passport: Mapping[str, Any] | None = None,
) -> list[str]:
    """Writes the folder, whole or not at all; returns what a user of diffusers should know of it.

    ``size`` is the side of z, ``table [classes + 1, vector]`` what the network gets for a class and, in the last
    row, for none; without it the network has no vector. UserError, before anything is written, where diffusers has
    no form for the network.
    """
    config = network.config
    said = check_dit(network, size=size, classes=table is not None)
    channels = said["out_channels"] // (2 if config.learnt_variance else 1)
    remarks = []
    if network.vector is None:
        table = torch.zeros(2, config.width)
        remarks.append(
            "it was trained without classes, which diffusers asks for: give class 0 and guidance_scale=1"
        )
    else:
        assert table is not None
        with torch.no_grad():  # what our layers make of each class, once for all
            table = network.vector(table.to(network.conv_out.weight))
    tensors = {
        name: value.detach().float().cpu().contiguous().clone()
        for name, value in _theirs(network.state_dict(), table, config).items()
    }
    said["num_embeds_ada_norm"] = len(table) - 1

    file = DiTTransformer2DModel(**said).model_dump(exclude={"attention_type"})

    def fill(part: Path) -> None:
        write_table(part / CONFIG, {"_class_name": _CLASS, **file})
        write_table(part / PASSPORT, passport or {})
        write_weights(part / WEIGHTS, tensors)

    write_folder(folder, fill)
    if config.bottleneck:
        remarks.append(f"the first layer's bottleneck of {config.bottleneck} is multiplied out")
    if config.learnt_variance:
        remarks.append(f"of its {2 * channels} channels the last {channels} are the variance of a step")
    return remarks


def check_dit(network: dit.DiT, *, size: int, classes: bool) -> dict[str, Any]:
    """Its fields there but for the number of classes; UserError as of `write_dit`. No weight is read."""
    config = network.config
    channels = network.conv_out.out_features // config.patch**2 // (2 if config.learnt_variance else 1)
    inputs = _first_layer(network.state_dict()).shape[1] // config.patch**2
    said = _said(network, channels, inputs, size)
    if network.vector is not None and not classes:
        raise UserError(
            "diffusers cannot express it: its vector comes from another condition than one class, and its DiT has "
            "classes only"
        )
    return said


def _parsed(values: dict[str, Any], where: str) -> DiTTransformer2DModel:
    if values.get("_class_name") == _OLD_CLASS:
        values = _OLD_DEFAULTS | values | {"_class_name": _CLASS}
    return named_config(values, where, {_CLASS: DiTTransformer2DModel}, "a transformer")


class _Channels(NamedTuple):
    latent: int
    beside: int
    variance: bool


def _channels(file: DiTTransformer2DModel) -> _Channels:
    """More going out than in are a variance, more going in than out a picture beside z."""
    inner, outer = file.in_channels, file.out_channels or file.in_channels
    if outer <= inner:
        return _Channels(outer, inner - outer, False)
    if outer % 2 == 0 and outer // 2 <= inner:
        return _Channels(outer // 2, inner - outer // 2, True)
    raise UserError(
        f"out_channels {outer} is not supported with in_channels {inner}; Carrara has as many as go in, or twice"
    )


def _shape(file: DiTTransformer2DModel, width: int, variance: bool) -> dict[str, Any]:
    """Our fields from theirs."""
    feed_forward = _ACTIVATIONS[file.activation_fn]
    if file.sample_size < file.patch_size:
        raise UserError(f"sample_size {file.sample_size} is less than patch_size {file.patch_size}")
    return {
        "kind": "dit",
        "patch": file.patch_size,
        "width": width,
        "depth": file.num_layers,
        "heads": file.num_attention_heads,
        "ratio": _MULTIPLE * (1.5 if feed_forward in ("swiglu", "geglu") else 1.0),
        "feed_forward": feed_forward,
        "feed_forward_eps": file.norm_eps,
        "qkv_bias": file.attention_bias,
        "spread": file.sample_size // file.patch_size,
        "vector_layers": "none",
        "learnt_variance": variance,
        "frequency_shift": 1.0,
        "first_step": 0,
    }


def _said(network: dit.DiT, channels: int, inputs: int, size: int) -> dict[str, Any]:
    """Their fields from ours; UserError where they have no form for it."""
    config = network.config
    needed = {
        "norm": "layer",
        "qk_norm": False,
        "positions": "fixed",
        "frequency_shift": 1.0,
        "first_step": 0,
    }
    for name, value in needed.items():
        if (ours := getattr(config, name)) != value:
            raise UserError(
                f"diffusers cannot express it: {name} is {ours!r}, and its DiT has {value!r}; to export, train "
                f"with --set model.denoiser.{name}={str(value).lower()}"
            )
    if config.hidden != _MULTIPLE * config.width:
        raise UserError(
            f"diffusers cannot express it: the feed-forward is {config.hidden} wide, and its DiT has "
            f"{_MULTIPLE * config.width}; to export, train with --set model.denoiser.ratio="
            f"{_MULTIPLE * (1.5 if config.gated else 1):g}"
        )
    if network.tokens is not None:
        raise UserError("diffusers cannot express it: it reads tokens, and its DiT has classes only")
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": inputs,
        "out_channels": channels * (2 if config.learnt_variance else 1),
        "num_layers": config.depth,
        "attention_bias": config.qkv_bias,
        "sample_size": size if config.spread is None else config.spread * config.patch,
        "patch_size": config.patch,
        "activation_fn": {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.feed_forward],
        "norm_eps": config.feed_forward_eps,
    }


# Ours in a block -> theirs; queries, keys and values lie in one matrix here.
_LAYERS = {
    "modulation": "norm1.linear",
    "attention.out": "attn1.to_out.0",
    "feed_forward.inward": "ff.net.0.proj",
    "feed_forward.outward": "ff.net.2",
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
_TIME = {"0": "linear_1", "2": "linear_2"}


def _theirs(state: Mapping[str, Tensor], table: Tensor, config: dit.Config) -> dict[str, Tensor]:
    """Our weights under their names and in their shapes."""
    patch, width = config.patch, config.width
    first = _first_layer(state)
    found = {
        "pos_embed.proj.weight": first.reshape(width, -1, patch, patch),
        "pos_embed.proj.bias": state["conv_in.1.bias"],
    }
    tables = torch.split(table, width, 1)
    for number in range(config.depth):
        ours, theirs = f"trunk.{number}.", f"transformer_blocks.{number}."
        steering = _steering(state, number)
        for leaf in ("weight", "bias"):
            found |= {f"{theirs}{_LAYERS['modulation']}.{leaf}": steering[leaf]}
            found |= {
                f"{theirs}{there}.{leaf}": state[f"{ours}{here}.{leaf}"]
                for here, there in _LAYERS.items()
                if here != "modulation"
            }
            embedder = f"time.{number if config.own_embeddings else 0}"
            found |= {
                f"{theirs}norm1.emb.timestep_embedder.{there}.{leaf}": state[f"{embedder}.{here}.{leaf}"]
                for here, there in _TIME.items()
            }
            if (qkv := state.get(f"{ours}attention.qkv.{leaf}")) is not None:
                found |= {
                    f"{theirs}{name}.{leaf}": part for name, part in zip(_QKV, qkv.chunk(3), strict=True)
                }
        found[f"{theirs}norm1.emb.class_embedder.embedding_table.weight"] = tables[number % len(tables)]
    for leaf in ("weight", "bias"):
        found[f"proj_out_1.{leaf}"] = state[f"modulation_out.{leaf}"]
        # Of a patch's numbers ours go channel by channel, theirs position by position.
        last = state[f"conv_out.{leaf}"]
        parts = last.reshape(-1, patch * patch, *last.shape[1:]).transpose(0, 1)
        found[f"proj_out_2.{leaf}"] = parts.flatten(0, 1)
    return found


def _first_layer(state: Mapping[str, Tensor]) -> Tensor:
    """[width, inputs], of one layer or of two with a bottleneck between."""
    weight = state["conv_in.1.weight"]
    return weight @ state["conv_in.0.weight"] if "conv_in.0.weight" in state else weight


def _steering(state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Weight and bias of what steers a block, from its own layer or from the one for all and its offset."""
    own = under(f"trunk.{number}.modulation.", state)
    if own:
        return own
    shared = under("modulation.", state)
    return shared | {"bias": shared["bias"] + state[f"trunk.{number}.offset"]}


def _ours(given: Mapping[str, Tensor], config: dit.Config) -> dict[str, Tensor]:
    """Their weights under our names and in our shapes; the scale of an affine norm goes into what steers it."""
    state = {
        "conv_in.1.weight": given["pos_embed.proj.weight"].flatten(1),
        "conv_in.1.bias": given["pos_embed.proj.bias"],
    }
    for number in range(config.depth):
        block, ours = under(f"transformer_blocks.{number}.", given), f"trunk.{number}."
        for leaf in ("weight", "bias"):
            state |= {f"{ours}{here}.{leaf}": block[f"{there}.{leaf}"] for here, there in _LAYERS.items()}
            if f"{_QKV[0]}.{leaf}" in block:
                state[f"{ours}attention.qkv.{leaf}"] = torch.cat([block[f"{name}.{leaf}"] for name in _QKV])
            if number == 0 or config.own_embeddings:
                state |= {
                    f"time.{number}.{here}.{leaf}": block[f"norm1.emb.timestep_embedder.{there}.{leaf}"]
                    for here, there in _TIME.items()
                }
        if "norm3.weight" in block:
            weight, bias = (state[f"{ours}modulation.{leaf}"] for leaf in ("weight", "bias"))
            state[f"{ours}modulation.weight"] = _folded(weight, block, 0.0)
            state[f"{ours}modulation.bias"] = _folded(bias, block, 1.0)
    for leaf in ("weight", "bias"):
        state[f"modulation_out.{leaf}"] = given[f"proj_out_1.{leaf}"]
        last = given[f"proj_out_2.{leaf}"]
        parts = last.reshape(config.patch**2, -1, *last.shape[1:]).transpose(0, 1)
        state[f"conv_out.{leaf}"] = parts.flatten(0, 1)
    return {name: value.contiguous() for name, value in state.items()}


def _folded(rows: Tensor, block: Mapping[str, Tensor], one: float) -> Tensor:
    """Rows [6 w ...] of the steering layer such that a plain norm before the feed-forward does what theirs does.

    (n * g + o) * (1 + scale) + shift = n * (1 + (g * (1 + scale) - 1)) + (o * (1 + scale) + shift), both of which
    are linear in what the layer sees; ``one`` is 1 for its bias and 0 for its weight.
    """
    shift1, scale1, gate1, shift, scale, gate = rows.chunk(6)
    gain, offset = (block[f"norm3.{leaf}"].view(-1, *(1,) * (rows.ndim - 1)) for leaf in ("weight", "bias"))
    shift, scale = offset * (one + scale) + shift, gain * (one + scale) - one
    return torch.cat([shift1, scale1, gate1, shift, scale, gate])
