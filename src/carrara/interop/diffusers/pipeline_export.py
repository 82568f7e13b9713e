"""A diffusion model as a pipeline's folder of diffusers: network, autoencoder, scheduler and text encoders."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.conditions.frozen_encoder import EncoderFolder
from carrara.conditions.text import TextEncoder
from carrara.denoisers import dit, unet
from carrara.errors import UserError
from carrara.generation.model import Model
from carrara.interop.clip_text import write_clip
from carrara.interop.diffusers import autoencoder
from carrara.interop.diffusers.dit import check_dit, write_dit
from carrara.interop.diffusers.files import write_table
from carrara.interop.diffusers.pipeline import CLASSES, FORMS, INDEX
from carrara.interop.diffusers.scheduler import FILE, written_process
from carrara.interop.diffusers.unet import described, write_unet
from carrara.interop.diffusers.unet_config import Extras
from carrara.model_folder import PASSPORT, write_folder, write_weights

# The one factor of latents that programs know for a pipeline's files, whatever the file says (ComfyUI, A1111 …).
_FACTORS = {"StableDiffusionPipeline": 0.18215, "StableDiffusionXLPipeline": 0.13025}
_PREFIX = "text_model."
_CLASSES = 1000  # of ImageNet: DiTPipeline takes the class of that number for none
# What its pipelines of text do with captions, in our words.
_READ = {"padding": "read", "prefix": "", "tokens": True}
_ONE = {**_READ, "layer": -1, "norm": True, "pooled": "none"}
_TWO = {**_READ, "layer": -2, "norm": False, "pooled": "last"}


class _Guides(NamedTuple):
    """The conditions by kind, at most one of each."""

    label: Any
    pretrained_text: Any
    size: Any
    own_text: Any

    @property
    def text(self) -> Any:
        """The encoder of captions."""
        return self.pretrained_text or self.own_text


class _Prepared(NamedTuple):
    """What is decided before anything is written."""

    name: str
    guides: _Guides
    process: dict[str, Any]
    takes_in: bool  # the autoencoder's outermost layers its latent scale


def _prepare(model: Model) -> _Prepared:
    guides = _guides(model)
    pixels = model.autoencoder.config.kind == "identity"
    name = _pipeline(model, guides, pixels)
    process = written_process(model.config, name)
    return _Prepared(name, guides, process, not pixels and _takes_in(model.autoencoder, name))


def check(model: Model) -> str:
    """The pipeline that `write` makes, without a number being read: the network may be on the meta device.

    UserError where `write` has one.
    """
    ready = _prepare(model)
    if isinstance(model.network, dit.DiT):
        shown = _transformer(model, ready.guides)
        check_dit(shown.network, size=_side(model), classes=shown.table is not None)
    else:
        shown_unet = _unet(model, ready.guides)
        described(shown_unet.config, shown_unet.network, shown_unet.extras)
    if FORMS[ready.name].autoencoder is not None:
        autoencoder.described(model.autoencoder)
    return ready.name


def write(model: Model, folder: Path) -> list[str]:
    """Writes the folder, whole or not at all; returns what a user of diffusers should know of it.

    UserError, before anything is left behind, where diffusers has no form for a part or for the whole.
    """
    name, guides, process, takes_in = _prepare(model)
    form = FORMS[name]
    stored = _scaled_inside(model.autoencoder, name) if takes_in else model.autoencoder
    index: dict[str, Any] = {"_class_name": name, "scheduler": ["diffusers", process["_class_name"]]}
    remarks: list[str] = []

    def fill(part: Path) -> None:
        if isinstance(model.network, dit.DiT):
            remarks.extend(_write_transformer(model, guides, part / form.network))
            index[form.network] = ["diffusers", "DiTTransformer2DModel"]
        else:
            remarks.extend(_write_unet(model, guides, part / form.network))
            index[form.network] = ["diffusers", _class(part / form.network)]
        if form.autoencoder is not None:
            remarks.extend(autoencoder.write(stored, part / form.autoencoder))
            index[form.autoencoder] = ["diffusers", _class(part / form.autoencoder)]
        if guides.text is not None:
            index.update(_write_texts(guides.text, form.texts, part))
        if name == "StableDiffusionPipeline":
            index.update({"safety_checker": [None, None], "feature_extractor": [None, None]})
            index.update({"image_encoder": [None, None], "requires_safety_checker": False})
        if name == "StableDiffusionXLPipeline":
            index.update({"feature_extractor": [None, None], "image_encoder": [None, None]})
            index["force_zeros_for_empty_prompt"] = not bool(guides.text.null.any())
        if name == "DiTPipeline" and guides.label is not None:
            index["id2label"] = {str(number): word for number, word in enumerate(guides.label.classes)}
        (part / "scheduler").mkdir()
        write_table(part / "scheduler" / FILE, process)
        write_table(part / INDEX, index)
        named = {CLASSES: guides.label.classes} if guides.label is not None else {}
        write_table(part / PASSPORT, {**model.passport, **named})

    write_folder(folder, fill)
    return remarks


def _guides(model: Model) -> _Guides:
    found: dict[str, Any] = {}
    for name, encoder in model.conditions.items():
        config = model.config.conditions[name]
        check_condition(name, config, model.path, again=config.kind in found)
        found[config.kind] = encoder
    return _Guides(*(found.get(kind) for kind in ("label", "pretrained_text", "size", "text")))


def check_condition(name: str, config: Any, path: Path | None = None, *, again: bool = False) -> None:
    """UserError where no pipeline of diffusers has a place for a condition; ``path`` is the model's."""
    kind = f"{config.kind}, the second" if again else config.kind
    if kind in ("label", "pretrained_text", "size") or (kind == "text" and config.causal):
        return
    why = "none of diffusers' pipelines that Carrara writes has a place for it"
    if kind == "text":
        why = "diffusers has no text encoder of this kind; to export, train by the recipe text_ldm_exportable"
    raise UserError(
        f"the condition {name!r} ({kind}) cannot be exported: {why}; the autoencoder alone: "
        f"carrara export {(path or Path('MODEL')) / 'autoencoder'} DEST"
    )


def _pipeline(model: Model, guides: _Guides, pixels: bool) -> str:
    """The class whose folder this becomes; UserError where there is none."""
    if guides.text is not None and guides.label is not None:
        raise UserError("diffusers cannot express it: none of its pipelines has a text and a class")
    if isinstance(model.network, dit.DiT):
        if pixels:
            raise UserError(
                "diffusers cannot express it: its DiTPipeline works on latents, this model on pixels"
            )
        if guides.text is not None or guides.size is not None:
            raise UserError("diffusers cannot express it: its DiT is guided by a class alone")
        return "DiTPipeline"
    if guides.text is None:
        if guides.size is not None:
            raise UserError("diffusers cannot express it: its pipelines have a size beside a text only")
        return "DDPMPipeline" if pixels else "LDMPipeline"
    if pixels:
        raise UserError(
            "diffusers cannot express it: its pipelines of text work on latents, this model on pixels"
        )
    if guides.own_text is not None:
        if guides.size or guides.pretrained_text:
            raise UserError("diffusers cannot express it: beside a text encoder of ours it has no other")
        return "StableDiffusionPipeline"
    name = "StableDiffusionPipeline" if guides.size is None else "StableDiffusionXLPipeline"
    wanted, folders = (_ONE, 1) if guides.size is None else (_TWO, 2)
    config = guides.text.config
    for key, value in wanted.items():
        if (ours := getattr(config, key)) != value:
            raise UserError(
                f"diffusers cannot express it: {key} of the text is {ours!r}, and {name} has {value!r}"
            )
    if len(guides.text.folders) != folders:
        raise UserError(
            f"diffusers cannot express it: there are {len(guides.text.folders)} text encoders, and {name} has "
            f"{folders}"
        )
    kinds = [c.kind for c in model.config.conditions.values()]
    if guides.size is not None and kinds != ["pretrained_text", "size"]:
        raise UserError(
            "diffusers cannot express it: the size comes before the text, and there it comes after"
        )
    return name


def _side(model: Model) -> int:
    return model.size // int(model.autoencoder.module.factor)  # type: ignore[arg-type]


def _as_told(model: Model) -> dict[str, int]:
    """What of the network's configuration is to be said otherwise.

    Flow matching there tells a network 1000 times the noise's share, as here: nothing is to be renumbered.
    """
    return {"first_step": 0} if model.config.schedule == "flow" else {}


class _Transformer(NamedTuple):
    network: dit.DiT
    table: Tensor | None
    remarks: list[str]


def _transformer(model: Model, guides: _Guides) -> _Transformer:
    network, table, remarks = copy.copy(model.network), None, []
    assert isinstance(network, dit.DiT)
    network.config = network.config.model_copy(update=_as_told(model))
    if guides.label is not None:
        if guides.label.config.fills != "vector":
            raise UserError(
                "diffusers cannot express it: the class is a token, and its DiT adds it to the time"
            )
        if (count := len(guides.label.classes)) > _CLASSES:
            raise UserError(
                f"diffusers cannot express it: there are {count} classes, and DiTPipeline takes number {_CLASSES} for "
                "none"
            )
        table = guides.label.table.weight.detach()
        if not guides.label.config.dropout:
            remarks.append("it knows no picture without a class: call its pipeline with guidance_scale=1")
        missing = _CLASSES + 1 - len(table)
        if missing > 0 and guides.label.config.dropout:
            table = torch.cat([table, table[-1:].expand(missing, -1)])
            remarks.append(
                f"its table is filled up to {_CLASSES} classes by what stands for none, as DiTPipeline counts on that"
            )
    return _Transformer(network, table, remarks)


def _write_transformer(model: Model, guides: _Guides, folder: Path) -> list[str]:
    network, table, remarks = _transformer(model, guides)
    return remarks + write_dit(folder, network, size=_side(model), table=table)


class _Unet(NamedTuple):
    config: unet.Config
    network: unet.UNet
    extras: Extras
    remarks: list[str]


def _unet(model: Model, guides: _Guides) -> _Unet:
    network, remarks = model.network, []
    assert isinstance(network, unet.UNet)
    config = network.config.model_copy(update=_as_told(model))
    extras = Extras(sample_size=_side(model))
    if guides.size is not None:
        extras = replace(extras, vector="text_and_sizes", size_width=guides.size.config.features)
    if guides.label is not None:
        if guides.label.config.fills != "vector":
            raise UserError(
                "diffusers cannot express it: the class is a token, and none of its pipelines gives one"
            )
        rows = guides.label.table.weight.detach()
        rows = rows if guides.label.config.dropout else rows[:-1]
        none = f", {len(rows) - 1} stands for none" if guides.label.config.dropout else ""
        remarks.append(
            "its pipelines give a U-Net no class: call it yourself with class_labels, numbers of "
            f"{', '.join(guides.label.classes[:3])} …{none}"
        )
        if config.vector_layers != "none":
            network, config, rows = _table_through(network, config, rows)
        extras = replace(extras, class_table=rows)
    return _Unet(config, network, extras, remarks)


def _write_unet(model: Model, guides: _Guides, folder: Path) -> list[str]:
    config, network, extras, remarks = _unet(model, guides)
    return remarks + write_unet(folder, config, network, extras)


class _Direct(NamedTuple):
    network: unet.UNet
    config: unet.Config
    table: Tensor


def _table_through(network: unet.UNet, config: unet.Config, table: Tensor) -> _Direct:
    """What the layers between class and time make of each class, once for all: there a class is added as it is."""
    assert network.vector is not None
    with torch.no_grad():
        through: Tensor = network.vector(table)
    network = copy.copy(network)
    network._modules = {**network._modules, "vector": nn.Identity()}
    network.vector_width = through.shape[1]
    return _Direct(network, config.model_copy(update={"vector_layers": "none"}), through)


def _takes_in(stored: StoredAutoencoder, pipeline: str) -> bool:
    """Whether the latent scale is not the one factor that is known there, and goes into the outermost layers.

    UserError where it has none that could: what is quantized lies where its codes are.
    """
    scale = stored.scale
    assert scale is not None
    plain = len(set(scale.std.tolist())) == 1 and not scale.mean.any()
    factor = _FACTORS.get(pipeline)
    if plain and (factor is None or stored.config.kind != "kl"):
        return False
    if stored.config.kind != "kl":
        raise UserError(
            f"diffusers cannot express it: the latent scale is another for each channel, {pipeline} knows one factor, "
            f"and an autoencoder of kind {stored.config.kind!r} cannot take it in; to export, train on one of kind 'kl'"
        )
    return not plain or factor is None or abs(factor * float(scale.std[0]) - 1) > 1e-5


def _scaled_inside(stored: StoredAutoencoder, pipeline: str) -> StoredAutoencoder:
    """The same pictures from latents scaled by that factor alone: 1x1 convolutions take the rest in."""
    factor, scale = _FACTORS.get(pipeline, 1.0), stored.scale
    assert scale is not None
    config = stored.config.model_copy(update={"projections": True})
    channels = config.latent_channels
    state = {name: value.double().cpu() for name, value in stored.module.state_dict().items()}
    if not stored.config.projections:
        for name, width in (("to_moments", 2 * channels), ("from_latent", channels)):
            state[f"{name}.weight"] = torch.eye(width, dtype=torch.float64)[:, :, None, None]
            state[f"{name}.bias"] = torch.zeros(width, dtype=torch.float64)
    # Their raw latents are ours, less the mean and over std * factor: times the factor they are what is scaled here.
    mean, std = scale.mean.double().cpu(), scale.std.double().cpu() * factor
    gain = torch.cat([1 / std, torch.ones_like(std)])  # of means; a log variance only moves
    shift = torch.cat([-mean / std, -2 * std.log()])
    state["to_moments.weight"] = state["to_moments.weight"] * gain[:, None, None, None]
    state["to_moments.bias"] = state["to_moments.bias"] * gain + shift
    inward = state["from_latent.weight"]
    state["from_latent.bias"] = state["from_latent.bias"] + inward[:, :, 0, 0] @ mean
    state["from_latent.weight"] = inward * std[:, None, None]
    with torch.device("meta"):
        module: nn.Module = config.build()
    module.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    one = LatentScale(torch.zeros(channels), torch.full((channels,), 1 / factor))
    return StoredAutoencoder.of(module, config, stored.size, stored.passport, stored.bits).with_scale(one)


def _write_texts(encoder: Any, places: tuple[str, ...], folder: Path) -> dict[str, list[str]]:
    """Copies encoders and tokenizers, or writes the one trained here; returns their lines of the index."""
    if isinstance(encoder, TextEncoder):
        return write_clip(encoder, folder)
    index = {}
    for place, source in zip(places, encoder.folders, strict=True):
        beside = place.replace("text_encoder", "tokenizer")
        _copy_encoder(source, folder / place)
        _copy(source.tokenizer_files, folder / beside)
        settings = folder / beside / "tokenizer_config.json"
        said = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        if said.get("model_max_length") != encoder.config.length:
            write_table(settings, {**said, "model_max_length": encoder.config.length})
        last = place == places[-1] and len(places) > 1
        index[place] = ["transformers", _encoder_class(source, pooled=last)]
        index[beside] = ["transformers", said.get("tokenizer_class") or type(source.tokenizer).__name__]
    return index


def _encoder_class(source: EncoderFolder, *, pooled: bool) -> str:
    return "CLIPTextModelWithProjection" if pooled and source.projected else source.family.reads


def _copy_encoder(source: EncoderFolder, folder: Path) -> None:
    """Its configuration and weights, under the names that every program looks for.

    Newer versions of transformers omit the prefix of CLIP's text model, and ComfyUI then finds no weight.
    """
    tensors = source.tensors() if source.variant or source.family.reads.startswith("CLIP") else {}
    bare = bool(tensors) and not any(name.startswith(_PREFIX) for name in tensors)
    if source.variant or (bare and source.family.reads.startswith("CLIP")):
        folder.mkdir()
        keep = (_PREFIX, "text_projection.")
        named = {n if not bare or n.startswith(keep) else _PREFIX + n: value for n, value in tensors.items()}
        write_weights(folder / "model.safetensors", named)
    else:
        _copy(source.weights, folder)
    shutil.copyfile(source.path / "config.json", folder / "config.json")


def _copy(files: list[Path], folder: Path) -> None:
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _class(folder: Path) -> str:
    """The class that a folder just written is of."""
    values: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(values["_class_name"])
