"""Autoencoders in the layout of diffusers: a folder with ``config.json`` and safetensors, read and written.

What diffusers calls the weights of an autoencoder: one table, read both ways, with its older spellings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from carrara.autoencoders import tiny
from carrara.autoencoders.codebook import Codebook
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder, load_autoencoder
from carrara.autoencoders.trunk import ResidualBlock, SpatialAttention
from carrara.errors import UserError
from carrara.interop.diffusers.autoencoder_config import BY_KIND, AutoencoderKL, expresses_scale, file_config
from carrara.interop.diffusers.files import CONFIG, WEIGHTS, read_table, read_tensors, write_table
from carrara.model_folder import ABOUT, PASSPORT, read_passport, write_folder, write_weights
from carrara.version import __version__

if TYPE_CHECKING:
    from carrara.interop.diffusers.autoencoder_config import AutoencoderTiny, VQModel


SCALE = "latent_scale.json"
_INSIDE = ("vae", "vqvae", "movq")  # where a pipeline's folder keeps its autoencoder
_SIZE = 256  # where a file does not say


def open_autoencoder(path: str | Path) -> StoredAutoencoder:
    """From a Carrara model's folder or from one in the layout of diffusers; UserError where it is neither."""
    path = Path(path)
    if (path / ABOUT).is_file():
        return load_autoencoder(path)
    if find(path) is not None:
        return read(path)
    if path.is_file():
        raise UserError(f"{path} is a file; expected the folder of an autoencoder")
    if path.is_dir() and not any(path.glob(f"*/{ABOUT}")):
        raise UserError(
            f"{path} is no autoencoder: it has neither a {ABOUT} (Carrara) nor a {CONFIG} (diffusers)"
        )
    return load_autoencoder(path)


def find(path: Path) -> Path | None:
    """The folder that holds the autoencoder: ``path`` itself or, in a pipeline's folder, one inside."""
    for folder in (path, *(path / name for name in _INSIDE)):
        if (folder / CONFIG).is_file():
            return folder
    return None


def read(path: str | Path, *, size: int | None = None, licence: str | None = None) -> StoredAutoencoder:
    """The autoencoder in float32, with the latent scale that its ``config.json`` states.

    ``size`` is the side of the pictures to be given to it; without it what the file says, else 256. UserError
    names the first thing that Carrara has no form for, or what is missing.
    """
    path = Path(path)
    folder = find(path)
    if folder is None:
        raise UserError(f"{path} is no autoencoder of diffusers: it has no {CONFIG}")
    values = read_table(folder / CONFIG)
    file = file_config(values, str(folder / CONFIG))
    try:
        config, scale, stated = file.adopt()
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None
    if size is not None and size % config.factor:
        raise UserError(f"size is {size}; this autoencoder needs a multiple of {config.factor}")
    module = _filled(config, modern(read_tensors(folder)) | _without(file), folder)
    side = size or max(1, (stated or _SIZE) // config.factor) * config.factor
    source = {"format": "diffusers", "class": values["_class_name"], "from": path.resolve().name}
    passport = read_passport(folder) | {"carrara": __version__, "adopted": source}
    if licence:
        passport |= {"licences": [licence]}
    return StoredAutoencoder.of(module, config, side, passport).with_scale(_kept_scale(folder, scale))


def write(stored: StoredAutoencoder, folder: Path) -> list[str]:
    """Writes the folder, whole or not at all; returns what a user of diffusers should know of it.

    UserError, before anything is written, where diffusers has no form for the configuration.
    """
    file = described(stored)
    said = {"_class_name": type(file).__name__, **file.model_dump(mode="json", exclude_none=True)}
    tensors = _written(stored)
    scale = stored.scale

    def fill(part: Path) -> None:
        write_table(part / CONFIG, said)
        write_table(part / PASSPORT, stored.passport)
        if scale is not None and not expresses_scale(file, scale):
            write_table(part / SCALE, {"mean": scale.mean.tolist(), "std": scale.std.tolist()})
        write_weights(part / WEIGHTS, tensors)

    write_folder(folder, fill)
    return _remarks(file, scale)


def described(stored: StoredAutoencoder) -> AutoencoderKL | VQModel | AutoencoderTiny:
    """Its ``config.json``; UserError where diffusers has no form for the configuration. No weight is read."""
    if stored.config.kind not in BY_KIND:
        raise UserError(
            f"diffusers cannot express an autoencoder of kind {stored.config.kind!r}, only {', '.join(BY_KIND)}"
        )
    return BY_KIND[stored.config.kind].express(stored)


def _remarks(file: AutoencoderKL | VQModel | AutoencoderTiny, scale: LatentScale | None) -> list[str]:
    if scale is None:
        return ["its latent scale was never measured: scaling_factor is 1.0, and latents are the raw ones"]
    if not expresses_scale(file, scale):
        return [
            f"{type(file).__name__} has no latent scale for each channel: it is in {SCALE}, and a diffusion model "
            "sees (latent - mean) / std"
        ]
    if isinstance(file, AutoencoderKL) and file.latents_mean is not None:
        return [
            "the latent scale is in latents_mean and latents_std, with scaling_factor 1.0: a diffusion model sees "
            "(latent - latents_mean) / latents_std; the SDXL pipelines do this, those of SD 1, SD 3 and Flux do not"
        ]
    return []


def _filled(config: Any, given: Mapping[str, Tensor], folder: Path) -> nn.Module:
    """The network with the weights; UserError names the first that is missing, surplus or of another shape."""
    with torch.device("meta"):  # nothing is allocated for what a damaged file claims
        module: nn.Module = config.build()
    table = names(module)
    wanted = {theirs: module.get_parameter(ours) for ours, theirs in table.items()}
    for name in sorted(given.keys() | wanted.keys()):
        have = tuple(given[name].shape) if name in given else "nothing"
        want = tuple(wanted[name].shape) if name in wanted else "nothing"
        if have != want:
            raise UserError(f"{folder}: the weights do not fit {CONFIG}: {name} is {have}, expected {want}")
    state = {ours: given[theirs].float().contiguous() for ours, theirs in table.items()}
    module.load_state_dict(state | _counters(module, state), assign=True)
    return module


def _counters(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a codebook keeps beside its codes, as if a batch had passed: a first one would begin the codes anew."""
    if not isinstance(getattr(module, "codebook", None), Codebook):
        return {}
    codes = state["codebook.codes"]
    return {
        "codebook.steps": torch.ones((), dtype=torch.int64),
        "codebook.idle": torch.zeros(len(codes), dtype=torch.int64),
        "codebook.counts": torch.ones(len(codes)),
        "codebook.sums": codes.clone(),
    }


def _written(stored: StoredAutoencoder) -> dict[str, Tensor]:
    state = stored.module.state_dict()
    tensors = {theirs: state[ours] for ours, theirs in names(stored.module).items()}
    if stored.config.kind == "vq" and not stored.config.projections:  # a VQModel always has them
        for name in ("quant_conv", "post_quant_conv"):
            tensors |= _identity(name, stored.config.latent_channels)
    return tensors


def _without(file: AutoencoderKL | VQModel | AutoencoderTiny) -> dict[str, Tensor]:
    """The projection that a file lacks while it has the other: then it is the identity."""
    if not isinstance(file, AutoencoderKL) or file.use_quant_conv == file.use_post_quant_conv:
        return {}
    if file.use_quant_conv:
        return _identity("post_quant_conv", file.latent_channels)
    return _identity("quant_conv", 2 * file.latent_channels)


def _identity(name: str, channels: int) -> dict[str, Tensor]:
    """A 1x1 convolution that changes nothing."""
    return {f"{name}.weight": torch.eye(channels)[:, :, None, None], f"{name}.bias": torch.zeros(channels)}


def _kept_scale(folder: Path, stated: LatentScale) -> LatentScale:
    """The scale for each channel that Carrara wrote beside a file which has no place for it."""
    if not (folder / SCALE).is_file():
        return stated
    kept = read_table(folder / SCALE)
    try:
        mean, std = (torch.tensor(kept[name], dtype=torch.float32) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError):
        mean = std = torch.zeros(0)
    if not (mean.shape == std.shape == stated.mean.shape and mean.isfinite().all() and (std > 0).all()):
        raise UserError(f"{folder / SCALE} does not hold mean and std, {len(stated.mean)} numbers each")
    return LatentScale(mean, std)


# Inside a module, what is called otherwise there.
_ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
_TINY = {"conv1": "conv.0", "conv2": "conv.2", "conv3": "conv.4"}
_INSIDE_PARTS: dict[type[nn.Module], dict[str, str]] = {
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
        inside = _INSIDE_PARTS.get(type(part), {})
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
