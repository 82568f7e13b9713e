"""A diffusion model as it is configured, built, kept in a folder and opened again."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from carrara.autoencoders.stored import StoredAutoencoder, load_autoencoder
from carrara.conditions.condition import Inputs, Latent
from carrara.config import Component, Config, OneOf, component, kinds, parse
from carrara.context import Context
from carrara.denoisers import unet
from carrara.diffusion.grids import GRIDS
from carrara.diffusion.guidance import combined, split
from carrara.diffusion.parameterizations import PARAMETERIZATIONS
from carrara.diffusion.process import Diffusion
from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.schedules import SCHEDULES, NoiseSchedule
from carrara.errors import UserError
from carrara.geometry import Size
from carrara.model_folder import (
    hash_weights,
    load_into,
    read_about,
    read_passport,
    write_about,
    write_folder,
    write_weights,
)

WORDS = "words"
"""Of a passport: every word of the captions that the model was trained on, where they are few enough to keep."""


class Sampling(Config):
    """The way from noise to data."""

    steps: int = Field(20, ge=1, le=1000, description="Steps from noise to picture.")
    sampler: OneOf("sampler", SAMPLERS) = Field(  # type: ignore[valid-type]
        "dpmpp_2m", description="Which way z goes; with options as in ddim:eta=0.5."
    )
    sampler_options: dict[str, int | float] | None = Field(
        None,
        description="The sampler's own, for example eta; a learned variance is used where none is given.",
    )
    grid: OneOf("time grid", GRIDS) = Field(  # type: ignore[valid-type]
        "shifted", description="Where the steps are; with options as in karras:rho=5."
    )
    grid_options: dict[str, int | float | str] | None = Field(
        None, description="The grid's own, for example offset."
    )
    end: float | None = Field(None, ge=0, lt=1, description="The time to stop at; none is 0, the data.")
    guidance: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="How strongly the conditions pull; 1 is off. Others by name, as apg:4.",
    )
    guidance_rules: str | None = Field(
        None,
        description="What besides its scale guides, for example interval:low=0.2; none is classifier-free.",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_options(cls, values: Any) -> Any:
        """A sampler, grid or guidance as a user writes it, "ddim:eta=0.5", in its parts."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        for part, table in (("sampler", SAMPLERS), ("grid", GRIDS)):
            if isinstance(text := values.get(part), str) and ":" in text:
                values[part], values[f"{part}_options"] = table.read(text)
        if isinstance(text := values.get("guidance"), str):
            scale, values["guidance_rules"] = split(text)
            values["guidance"] = cls.model_fields["guidance"].default if scale is None else scale
        return values

    @model_validator(mode="after")
    def _guides(self) -> Self:
        combined(self.guidance, self.guidance_rules, schedule=None, opened=None)  # says what it does not know
        return self

    @property
    def compares(self) -> bool:
        """Whether the guidance looks at what is estimated without the conditions, or with a negative prompt, at all."""
        guidance = combined(self.guidance, self.guidance_rules, schedule=None, opened=None)
        return any(guidance.active(t) for t in torch.linspace(0, 1, 101))

    def times(self, schedule: NoiseSchedule) -> Tensor:
        """The stops, falling, as a sampler takes them."""
        times = GRIDS[self.grid](self.steps, schedule, **(self.grid_options or {}))
        if not self.end:
            return times
        return torch.cat([times[times > self.end + 1e-9], times.new_tensor([self.end])])  # each once


class Released(Sampling):
    """How an adopted model was sampled where it comes from."""

    scheduler: dict[str, Any] = Field({}, description="The other program's own words for it, to export.")


class ModelConfig(Config):
    """The parts of a diffusion model; with the weights it is the model."""

    schedule: OneOf("schedule", SCHEDULES) = Field("flow", description="Path from data to noise.")  # type: ignore[valid-type]
    schedule_options: dict[str, float] = Field({}, description="Its options.")
    parameterization: OneOf("parameterization", PARAMETERIZATIONS) = Field(  # type: ignore[valid-type]
        "flow", description="What the denoiser is trained towards."
    )
    denoiser: Component("denoisers") = Field(default_factory=unet.Config, description="The network.")  # type: ignore[valid-type]
    conditions: dict[str, Component("conditions")] = Field({}, description="What guides it, by name.")  # type: ignore[valid-type]
    sampling: Released | None = Field(
        None, description="How it is sampled where nobody says; none is as suits the schedule."
    )

    @model_validator(mode="after")
    def _options_fit(self) -> ModelConfig:
        SCHEDULES[self.schedule](**self.schedule_options)  # says which option it does not know
        return self


def bind(config: ModelConfig, network: nn.Module) -> Diffusion:
    """Network, schedule and parameterization together; UserError names unknown ones' nearest."""
    schedule = SCHEDULES[config.schedule](**config.schedule_options)
    return Diffusion(network, schedule, PARAMETERIZATIONS[config.parameterization])


def build_network(config: ModelConfig, conditions: nn.ModuleDict, channels: int) -> nn.Module:
    """The denoiser, fitted to the latent's channels and to what the conditions fill.

    UserError where a condition fills a role that this denoiser does not read, or tokens differ in width.
    """
    encoders: dict[str, Any] = dict(conditions.items())
    widths = {
        role: {name: int(width) for name, e in encoders.items() if (width := getattr(e, role))}
        for role in ("tokens", "vector", "image")
    }
    read: Collection[str] = config.denoiser.roles
    for role, filled in widths.items():
        if filled and role not in read:
            raise UserError(
                f"the condition {next(iter(filled))!r} fills the role {role!r}, which this "
                f"{config.denoiser.kind} does not read (it reads: {', '.join(sorted(read)) or 'none'})"
            )
    if len(set(widths["tokens"].values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths["tokens"].items())
        raise UserError(
            f"conditions give tokens of different widths ({told}); a denoiser attends to one width"
        )
    network: nn.Module = config.denoiser.build(
        channels=channels,
        tokens=next(iter(widths["tokens"].values()), None),
        vector=sum(widths["vector"].values()) or None,
        image=sum(widths["image"].values()) or None,
    )
    return network


def latent_of(autoencoder: StoredAutoencoder) -> Latent:
    """What conditions are fitted to: the latents of an autoencoder that has its scale."""
    module: Any = autoencoder.module

    def encode(image: Tensor) -> Tensor:
        assert autoencoder.scale is not None
        with torch.no_grad():
            mean: Tensor = module.encode(image).mode()
        return autoencoder.scale.scale(mean)

    channels = int(autoencoder.config.image_channels)
    return Latent(int(module.channels), int(module.factor), channels, autoencoder.bits, encode)


def joined(conditions: nn.ModuleDict, values: Mapping[str, Any], size: Size, device: torch.device) -> Context:
    """The context of all conditions, each given its own values (a list, one a picture), for pictures of ``size``."""
    context = Context()
    for name, encoder in conditions.items():
        inputs = encoder.prepare(values[name], size)  # type: ignore[operator]
        context = context.join(encoder(_on(inputs, device)))
    return context


def _on(inputs: Inputs, device: torch.device) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return {name: value.to(device) for name, value in inputs.items()}


@dataclass
class Model:
    """A diffusion model ready to sample: `Stage` of DESIGN, with the autoencoder it was trained on."""

    config: ModelConfig
    network: nn.Module
    conditions: nn.ModuleDict
    autoencoder: StoredAutoencoder
    passport: Mapping[str, Any]
    path: Path | None = None
    parts: int = 1
    bf16: bool = False
    """How it is sampled: a batch in so many parts at once, and whether its network computes in bfloat16."""

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context that the network runs in; a caller's own stays where this one asks for nothing."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    @property
    def diffusion(self) -> Diffusion:
        """The process that the network was trained for."""
        return bind(self.config, self.network)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def size(self) -> int:
        """Side of its pictures in pixels."""
        return self.autoencoder.size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[c h w] of what is sampled where nothing else is asked for."""
        return self.latent_of((self.size, self.size))

    def latent_of(self, size: Size) -> tuple[int, int, int]:
        """[c h w] of the latent of a picture; UserError where its sides do not fit."""
        factor = int(self.autoencoder.module.factor)  # type: ignore[arg-type]
        step = factor * int(self.network.factor)  # type: ignore[arg-type]
        if wrong := [side for side in size if side < step or side % step]:
            raise UserError(
                f"pictures of {size[1]} x {size[0]} pixels cannot be made: "
                f"{wrong[0]} is not a multiple of {step}"
            )
        return int(self.autoencoder.module.channels), size[0] // factor, size[1] // factor  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Model:
        """Moves every part; returns itself."""
        for part in (self.network, self.conditions, self.autoencoder.module):
            part.to(device)
        return self

    def context(self, rows: Sequence[Mapping[str, Any]], size: Size | None = None) -> Context:
        """The context of requests: each condition reads its column of the row, null where it is absent."""
        values = {name: [row.get(str(c.column)) for row in rows] for name, c in self.conditions.items()}
        return joined(self.conditions, values, size or (self.size, self.size), self.device)

    def save(self, path: Path, extra: Mapping[str, str] | None = None) -> None:
        """Writes the model folder, whole or not at all; ``extra`` are text files to lie beside the weights."""

        def fill(folder: Path) -> None:
            write_about(
                folder,
                "diffusion",
                {"model": self.config.model_dump(mode="json", exclude_none=True)},
                self.passport,
            )
            write_weights(folder / "denoiser.safetensors", self.network.state_dict())
            write_weights(folder / "conditions.safetensors", self.conditions.state_dict())
            for name, encoder in self.conditions.items():
                encoder.keep(folder / f"condition_{name}")  # type: ignore[operator]
            for name, text in (extra or {}).items():
                (folder / name).write_text(text, encoding="utf-8")
            (folder / "autoencoder").mkdir()
            self.autoencoder.fill(folder / "autoencoder")

        write_folder(path, fill)

    @property
    def hash(self) -> str:
        """Changes with any weight of the denoiser, the conditions or the autoencoder."""
        parts = (self.network, self.conditions, self.autoencoder.module)
        return hash_weights(nn.ModuleList(parts))


class _About(Config):
    model: ModelConfig


def load_model(path: str | Path) -> Model:
    """Opens a diffusion model's folder, on the CPU. UserError where a file is missing, newer or damaged."""
    path = Path(path)
    about = read_about(path)
    if (kind := about.get("kind")) != "diffusion":
        raise UserError(f"{path} holds an {kind}; expected a diffusion model (give the folder of stage two)")
    values = about.get("model", {})
    written = values.get("denoiser") if isinstance(values, dict) else None
    if isinstance(written, dict) and written.get("kind") in kinds("denoisers"):
        module = component("denoisers", written["kind"])
        if hasattr(module, "as_written"):  # what an earlier version may have said otherwise
            with contextlib.suppress(TypeError):  # of values that parsing will refuse
                values = {**values, "denoiser": module.as_written(written)}
    config = parse(_About, {"model": values}, where=str(path)).model
    autoencoder = load_autoencoder(path / "autoencoder")
    if autoencoder.scale is None or len(autoencoder.scale.mean) != autoencoder.module.channels:
        raise UserError(
            f"{path / 'autoencoder'} is damaged: its model.toml lacks the mean and std of each latent channel"
        )
    latent = latent_of(autoencoder)
    conditions = nn.ModuleDict(
        {name: c.restore(path / f"condition_{name}", latent) for name, c in config.conditions.items()}
    )
    network = build_network(config, conditions, int(autoencoder.module.channels))
    load_into(network, path / "denoiser.safetensors")
    load_into(conditions, path / "conditions.safetensors")
    return Model(config, network.eval(), conditions.eval(), autoencoder, read_passport(path), path)
