"""Whole diffusion models of diffusers, read: a pipeline's folder, or a denoiser's with what belongs to it beside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carrara.autoencoders import identity
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.conditions import label, pretrained_text, size
from carrara.conditions.frozen_encoder import EncoderFolder
from carrara.config import Config
from carrara.errors import UserError, nearest
from carrara.generation.model import Model, ModelConfig, Released
from carrara.interop.diffusers import autoencoder as diffusers_autoencoder
from carrara.interop.diffusers import dit as diffusers_dit
from carrara.interop.diffusers import unet as diffusers_unet
from carrara.interop.diffusers.autoencoder_config import file_config
from carrara.interop.diffusers.files import CONFIG, read_table, remark_on_weights
from carrara.interop.diffusers.scheduler import Process, read_process
from carrara.model_folder import read_passport
from carrara.version import __version__

INDEX = "model_index.json"
CLASSES = "classes"  # in the passport of what was exported from here: the names, one a row of the table but the last
_WINDOW = 77  # of a tokenizer that does not say


class Form(NamedTuple):
    """Which folders a pipeline has, and how strongly and in how many steps it samples where nobody says."""

    network: str
    autoencoder: str | None = None
    texts: tuple[str, ...] = ()
    guidance: float = 1.0
    steps: int = 50


FORMS: Mapping[str, Form] = {
    "DDPMPipeline": Form("unet", steps=1000),
    "DDIMPipeline": Form("unet"),
    "PNDMPipeline": Form("unet"),
    "LDMPipeline": Form("unet", "vqvae"),
    "StableDiffusionPipeline": Form("unet", "vae", ("text_encoder",), 7.5),
    "StableDiffusionXLPipeline": Form("unet", "vae", ("text_encoder", "text_encoder_2"), 5.0),
    "DiTPipeline": Form("transformer", "vae", (), 4.0),
}
_UNETS = tuple(diffusers_unet.CLASSES)
_DITS = ("DiTTransformer2DModel", "Transformer2DModel")


class Adopted(NamedTuple):
    """The model, what a user should know of it, and the guidance that it is used with."""

    model: Model
    remarks: list[str]
    guidance: float


class _Parts(NamedTuple):
    """Where everything is; without an autoencoder it works on pixels."""

    name: str
    listing: dict[str, Any]
    network: Path
    scheduler: Path
    autoencoder: Path | None
    texts: tuple[Path, ...]
    guidance: float
    steps: int


class _Denoiser(NamedTuple):
    """A network of either kind; ``side`` of z, None where the file says none."""

    config: Any
    network: nn.Module
    channels: int
    widths: dict[str, int]
    side: int | None
    vector: str
    table: Tensor | None
    has_null: bool


def is_denoiser(path: Path) -> bool:
    """Whether a folder is a pipeline with a denoiser, or a denoiser itself."""
    if (path / INDEX).is_file():
        return bool({"unet", "transformer", "prior"} & read_table(path / INDEX).keys())
    return (path / CONFIG).is_file() and read_table(path / CONFIG).get("_class_name") in _UNETS + _DITS


def read(
    source: Path,
    *,
    size: int | None = None,
    licence: str | None = None,
    autoencoder: Path | None = None,
    texts: Sequence[Path] = (),
    scheduler: Path | None = None,
) -> Adopted:
    """The model, in float32; its text encoders stay where they are. What is given stands for the pipeline's own.

    UserError names the first thing that Carrara has no form for, what is missing, or what does not fit together.
    """
    parts = _parts(source, autoencoder, texts, scheduler)
    process = read_process(parts.scheduler)
    denoiser = _denoiser(parts, process)
    remarks = list(process.remarks)
    parted = [parts.network, *([parts.autoencoder] if parts.autoencoder and autoencoder is None else [])]
    remarks += [remark for folder in parted if (remark := remark_on_weights(folder))]
    stored, scale_remarks = _stored(parts, denoiser, size, licence, given=autoencoder is not None)
    remarks += scale_remarks
    if process.clips and parts.autoencoder is not None:
        remarks.append("its scheduler clips latents at -1 and 1; samplers here do not")
    elif not process.clips and parts.autoencoder is None:
        remarks.append("its scheduler does not clip pixels at -1 and 1; samplers here do")
    if (parts.listing.get("safety_checker") or [None])[0]:
        remarks.append("its safety_checker is left behind")
    conditions, configs = _conditions(parts, denoiser)
    if denoiser.table is not None and not denoiser.has_null:
        remarks.append("it knows no picture without a class: always give one, and guidance has no effect")
    guidance = parts.guidance if conditions and (denoiser.table is None or denoiser.has_null) else 1.0
    model_config = ModelConfig(
        schedule=process.schedule,
        schedule_options=process.options,
        parameterization=process.parameterization,
        denoiser=denoiser.config,
        conditions=configs,
        sampling=Released(**process.sampling, steps=parts.steps, guidance=guidance),
    )
    passport = {key: value for key, value in read_passport(source).items() if key != CLASSES} | {
        "carrara": __version__,
        "adopted": {"format": "diffusers", "class": parts.name, "from": source.resolve().name},
    }
    if licence:
        passport |= {"licences": [licence]}
    model = Model(model_config, denoiser.network.eval(), conditions.eval(), stored, passport)
    model.latent_of((model.size, model.size))  # says where the size does not fit
    return Adopted(model, remarks, guidance)


# --- what is where ---


def _parts(source: Path, autoencoder: Path | None, texts: Sequence[Path], scheduler: Path | None) -> _Parts:
    if not (source / INDEX).is_file():
        name = str(read_table(source / CONFIG).get("_class_name"))
        beside = source.resolve().parent / "scheduler"
        if scheduler is None and not beside.is_dir():
            raise UserError(
                f"{source} says nothing of the noise it was trained with: give --scheduler, the folder with its "
                "scheduler_config.json"
            )
        form = FORMS["DiTPipeline" if name in _DITS else "StableDiffusionPipeline"]
        guidance = form.guidance if texts or name in _DITS else 1.0
        return _Parts(name, {}, source, scheduler or beside, autoencoder, tuple(texts), guidance, form.steps)
    index = read_table(source / INDEX)
    name = str(index.get("_class_name"))
    if name not in FORMS:
        inside = diffusers_autoencoder.find(source)
        alone = f"; its autoencoder alone is in {inside}" if inside else ""
        raise UserError(
            f"{source / INDEX}: _class_name {name!r} is not supported{nearest(name, FORMS)}{alone}"
        )
    if names := read_passport(source).get(CLASSES):
        index = {"id2label": {str(number): word for number, word in enumerate(names)}} | index
    form = FORMS[name]
    own = None
    if form.autoencoder is not None:
        own = autoencoder or source / form.autoencoder
    elif autoencoder is not None:
        raise UserError(f"{name} works on pixels: omit --autoencoder")
    there = (part for part in form.texts if (index.get(part) or [None])[0])
    read_by = tuple(texts) or tuple(source / part for part in there)
    for folder in (source / form.network, own):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{source} is incomplete: it lacks {folder.name}")
    network, noise = source / form.network, scheduler or source / "scheduler"
    return _Parts(name, index, network, noise, own, read_by, form.guidance, form.steps)


# --- the network ---


def _denoiser(parts: _Parts, process: Process) -> _Denoiser:
    """The network, told times as the process has them."""
    # Flow matching tells it 1000 times the noise's share, tables the number of a step, from 0 on.
    told = {"first_step": 1} if process.flow else {}
    if read_table(parts.network / CONFIG).get("_class_name") in _DITS:
        dit = diffusers_dit.read_dit(parts.network)
        config: Any = dit.config.model_copy(update=told)
        with torch.device("meta"):
            network: nn.Module = config.build(channels=dit.channels, **dit.roles)
        network.load_state_dict(dit.state, assign=True)
        return _fitting(
            parts,
            _Denoiser(config, network, dit.channels, dit.roles, dit.size, "classes", dit.table, True),
        )
    unet = diffusers_unet.read_unet(parts.network)
    unet = unet._replace(config=unet.config.model_copy(update=told))
    extras = unet.extras
    side = extras.sample_size
    if isinstance(side, Sequence):
        side = min(side)
    if extras.vector == "text_and_sizes" and unet.config.frequency_shift:
        raise UserError(
            f"{parts.network / CONFIG}: freq_shift {unet.config.frequency_shift:g} beside sizes is not supported; "
            "Carrara has 0 there"
        )
    table = extras.class_table
    has_null = table is not None and len(table) == len(parts.listing.get("id2label") or ()) + 1
    return _fitting(
        parts,
        _Denoiser(
            unet.config, unet.network(), unet.channels, unet.widths, side, extras.vector, table, has_null
        ),
    )  # fmt: skip


def _fitting(parts: _Parts, denoiser: _Denoiser) -> _Denoiser:
    """The same; UserError where it reads what a pipeline does not say the source of."""
    if beside := denoiser.widths.get("image"):
        raise UserError(
            f"{parts.network}: it reads {beside} channels beside the {denoiser.channels} of z, and nothing says what "
            "of; read_unet and read_dit give the network alone (docs/interop.md)"
        )
    if denoiser.vector in ("class_number", "given"):
        what = "the number of a class" if denoiser.vector == "class_number" else "a vector"
        raise UserError(f"{parts.network}: it reads {what} that no condition of Carrara's gives")
    return denoiser


# --- what it works on ---


def _stored(
    parts: _Parts, denoiser: _Denoiser, size: int | None, licence: str | None, *, given: bool
) -> tuple[StoredAutoencoder, list[str]]:
    """The autoencoder, for pictures of the size that the network was made for, and what to know of its scale."""
    if parts.autoencoder is None:
        side = size or denoiser.side
        if side is None:
            raise UserError(f"{parts.network} says no sample_size: give --size, the side of its pictures")
        channels = denoiser.channels
        if channels not in (1, 3) and not parts.listing:
            raise UserError(
                f"{parts.network} makes {channels} channels, which are hardly pixels: give --autoencoder"
            )
        config = identity.Config(image_channels=channels)
        scale = LatentScale(torch.zeros(channels), torch.ones(channels))
        return StoredAutoencoder.of(config.build(), config, side, {}).with_scale(scale), []
    if given:
        stored = diffusers_autoencoder.open_autoencoder(parts.autoencoder)
    else:
        stored = diffusers_autoencoder.read(parts.autoencoder, licence=licence)
    if stored.scale is None:
        raise UserError(f"{parts.autoencoder} has no latent scale: train a diffusion model on it once")
    if (channels := int(stored.module.channels)) != denoiser.channels:  # type: ignore[arg-type]
        raise UserError(
            f"{parts.autoencoder} has latents of {channels} channels, and {parts.network} makes "
            f"{denoiser.channels}"
        )
    factor = int(stored.module.factor)  # type: ignore[arg-type]
    stored = replace(
        stored, size=size or (denoiser.side * factor if denoiser.side else stored.size), path=None
    )
    return (stored, []) if given else _as_piped(parts, stored)


def _as_piped(parts: _Parts, stored: StoredAutoencoder) -> tuple[StoredAutoencoder, list[str]]:
    """The scale that the pipeline computes with: all but SDXL's heed ``scaling_factor`` alone."""
    assert parts.autoencoder is not None
    assert stored.scale is not None
    folder = diffusers_autoencoder.find(parts.autoencoder)
    assert folder is not None
    if parts.name == "StableDiffusionXLPipeline" or (folder / diffusers_autoencoder.SCALE).is_file():
        return stored, []
    factor = file_config(read_table(folder / CONFIG), str(folder / CONFIG)).scaling_factor
    plain = LatentScale(torch.zeros_like(stored.scale.mean), torch.full_like(stored.scale.std, 1 / factor))
    if torch.allclose(plain.mean, stored.scale.mean) and torch.allclose(plain.std, stored.scale.std):
        return stored, []
    remark = f"latents are scaled by scaling_factor {factor:g} alone, as {parts.name} does"
    return stored.with_scale(plain), [remark]


# --- what guides it ---


def _conditions(parts: _Parts, denoiser: _Denoiser) -> tuple[nn.ModuleDict, dict[str, Config]]:
    """Encoders and their configurations; UserError where their widths are not those that the network reads."""
    encoders: dict[str, Any] = {}
    if denoiser.table is not None:
        encoders["label"] = _label(parts.listing, denoiser.table, denoiser.has_null)
    if parts.texts:
        encoders["caption"] = _text(parts, sizes=denoiser.vector == "text_and_sizes")
    if denoiser.vector == "text_and_sizes":
        width = denoiser.widths["vector"] - sum(e.vector or 0 for e in encoders.values())
        if width <= 0 or width % 12:
            raise UserError(
                f"{parts.network} reads a vector of {denoiser.widths['vector']}: beside the pooled text that leaves "
                f"{max(0, width)} for waves of six numbers of a size, which does not come out even"
            )
        encoders["size"] = size.SizeEncoder(size.Config(features=width // 6))
    for role in ("tokens", "vector"):
        given = sum(getattr(e, role) or 0 for e in encoders.values())
        read_by = denoiser.widths.get(role, 0)
        if given != read_by:
            hint = "; give --text, a folder with its text encoder" if role == "tokens" and not given else ""
            raise UserError(
                f"{parts.network} reads {role} of width {read_by or 'none'}, and what guides it gives "
                f"{given or 'none'}{hint}"
            )
    return nn.ModuleDict(encoders), {name: e.config for name, e in encoders.items()}


def _label(index: Mapping[str, Any], table: Tensor, has_null: bool) -> label.LabelEncoder:
    """Its class table, with a last row that stands for none (zeros where it has no such row)."""
    named = {str(number): str(name) for number, name in (index.get("id2label") or {}).items()}
    count = len(table) - has_null
    if named and has_null:  # rows that only fill the table up to the 1000 classes that DiTPipeline counts on
        while count > len(named) and torch.allclose(table[count - 1], table[-1], rtol=1e-4, atol=1e-6):
            count -= 1
    names: dict[str, int] = {}
    for number in range(count):
        name = named.get(str(number), str(number))
        names[f"{name} ({number})" if name in names else name] = number
    null = table[-1:] if has_null else torch.zeros_like(table[:1])
    config = label.Config(width=table.shape[1], dropout=0.1 if has_null else 0.0)
    encoder = label.LabelEncoder(config, list(names))
    encoder.table.weight.data = torch.cat([table[:count], null])
    return encoder


def _text(parts: _Parts, *, sizes: bool) -> pretrained_text.PretrainedTextEncoder:
    """The frozen encoders as the pipeline reads them: SDXL's next to last layers side by side, else the last."""
    folders = [EncoderFolder(path) for path in parts.texts]
    for folder in folders:
        if getattr(folder.config, "use_attention_mask", False):
            raise UserError(f"{folder.path}: use_attention_mask is not supported; pipelines read all tokens")
    windows = [folder.tokenizer.model_max_length for folder in folders] + [f.longest for f in folders]
    window = min(n for n in windows if n is not None)
    config = pretrained_text.Config(
        paths=tuple(str(folder.path.resolve()) for folder in folders),
        length=window if window < 10_000 else _WINDOW,  # a tokenizer without one says 10^30
        layer=-2 if sizes else -1,
        norm=not sizes,
        padding="read",
        pooled="last" if sizes else "none",
    )
    encoder = config.learn(_NoData())
    if sizes and parts.listing.get("force_zeros_for_empty_prompt", True):
        encoder.null.zero_()
    return encoder


class _NoData:
    """`conditions.contract.Columns` of nothing: these encoders were trained elsewhere."""

    captions: Mapping[str, str] = {}
    names: Sequence[str] = ()

    def values(self, column: str) -> Iterable[Any]:
        """None there."""
        return ()
