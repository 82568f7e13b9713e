"""A diffusion model as it is configured, built, kept in a folder and opened again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from carrara.autoencoders.stored import StoredAutoencoder, load_autoencoder
from carrara.config import Component, Config, OneOf, parse
from carrara.context import Context
from carrara.denoisers import unet
from carrara.diffusion.parameterizations import PARAMETERIZATIONS
from carrara.diffusion.process import Diffusion
from carrara.diffusion.schedules import SCHEDULES
from carrara.errors import UserError
from carrara.model_folder import (
    hash_weights,
    load_into,
    read_about,
    read_passport,
    write_about,
    write_folder,
    write_weights,
)


class ModelConfig(Config):
    """The parts of a diffusion model; with the weights it is the model."""

    schedule: OneOf("schedule", SCHEDULES) = Field("flow", description="Path from data to noise.")  # type: ignore[valid-type]
    schedule_options: dict[str, float] = Field({}, description="Its options.")
    parameterization: OneOf("parameterization", PARAMETERIZATIONS) = Field(  # type: ignore[valid-type]
        "flow", description="What the denoiser is trained towards."
    )
    denoiser: Component("denoisers") = Field(default_factory=unet.Config, description="The network.")  # type: ignore[valid-type]
    conditions: dict[str, Component("conditions")] = Field({}, description="What guides it, by name.")  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _options_fit(self) -> ModelConfig:
        SCHEDULES[self.schedule](**self.schedule_options)  # says which option it does not know
        return self


def bind(config: ModelConfig, network: nn.Module) -> Diffusion:
    """Network, schedule and parameterization together; UserError names unknown ones' nearest."""
    schedule = SCHEDULES[config.schedule](**config.schedule_options)
    return Diffusion(network, schedule, PARAMETERIZATIONS[config.parameterization])


def build_network(config: ModelConfig, conditions: nn.ModuleDict, channels: int) -> nn.Module:
    """The denoiser, fitted to the latent's channels and to what the conditions fill."""
    encoders: list[Any] = list(conditions.values())
    tokens = [int(encoder.tokens) for encoder in encoders if encoder.tokens]
    vector = sum(int(encoder.vector) for encoder in encoders if encoder.vector)
    if len(set(tokens)) > 1:
        raise UserError(f"conditions give tokens of widths {tokens}; a denoiser attends to one width")
    network: nn.Module = config.denoiser.build(
        channels=channels, tokens=tokens[0] if tokens else None, vector=vector or None
    )
    return network


def joined(conditions: nn.ModuleDict, values: Mapping[str, Any], device: torch.device) -> Context:
    """The context of all conditions, each given its own values (a list, one a picture)."""
    context = Context()
    for name, encoder in conditions.items():
        inputs = encoder.prepare(values[name])  # type: ignore[operator]
        context = context.join(encoder(inputs.to(device)))
    return context


@dataclass
class Model:
    """A diffusion model ready to sample: `Stage` of DESIGN, with the autoencoder it was trained on."""

    config: ModelConfig
    network: nn.Module
    conditions: nn.ModuleDict
    autoencoder: StoredAutoencoder
    passport: Mapping[str, Any]
    path: Path | None = None

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
        """[c h w] of what is sampled."""
        side = self.size // int(self.autoencoder.module.factor)  # type: ignore[arg-type]
        return int(self.autoencoder.module.channels), side, side  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Model:
        """Moves every part; returns itself."""
        for part in (self.network, self.conditions, self.autoencoder.module):
            part.to(device)
        return self

    def context(self, rows: Sequence[Mapping[str, Any]]) -> Context:
        """The context of requests: each condition reads its column of the row, null where it is absent."""
        values = {name: [row.get(str(c.column)) for row in rows] for name, c in self.conditions.items()}
        return joined(self.conditions, values, self.device)

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
    config = parse(_About, {"model": about.get("model", {})}, where=str(path)).model
    autoencoder = load_autoencoder(path / "autoencoder")
    if autoencoder.scale is None or len(autoencoder.scale.mean) != autoencoder.module.channels:
        raise UserError(
            f"{path / 'autoencoder'} is damaged: its model.toml lacks the mean and std of each latent channel"
        )
    conditions = nn.ModuleDict(
        {name: c.restore(path / f"condition_{name}") for name, c in config.conditions.items()}
    )
    network = build_network(config, conditions, int(autoencoder.module.channels))
    load_into(network, path / "denoiser.safetensors")
    load_into(conditions, path / "conditions.safetensors")
    return Model(config, network.eval(), conditions.eval(), autoencoder, read_passport(path), path)
