"""An autoencoder stored with all that its users need: configuration, picture size, latent scale, hash; on disk or
not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import torch
from pydantic import Field
from torch import nn

from carrara.autoencoders.scale import LatentScale
from carrara.config import Component, Config, parse
from carrara.errors import UserError
from carrara.files import write_atomically
from carrara.model_folder import (
    ABOUT,
    hash_weights,
    load_into,
    read_about,
    read_passport,
    write_about,
    write_folder,
    write_weights,
)


class About(Config):
    """What ``model.toml`` says of an autoencoder."""

    size: int = Field(ge=1)
    bits: Literal[8, 16] = 8
    autoencoder: Component("autoencoders")  # type: ignore[valid-type]
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None


@dataclass(frozen=True)
class StoredAutoencoder:
    """A trained autoencoder; ``scale`` is None until it was measured on a data set's latents.

    ``size`` is the side in pixels of the pictures it was trained on, ``bits`` (8 or 16) their depth, ``path`` the
    folder that it was opened from.
    """

    module: nn.Module
    config: Any
    size: int
    scale: LatentScale | None
    hash: str
    passport: Mapping[str, Any]
    bits: int = 8
    path: Path | None = None

    @staticmethod
    def of(
        module: nn.Module, config: Any, size: int, passport: Mapping[str, Any], bits: int = 8
    ) -> StoredAutoencoder:
        """From a module just trained on pictures of ``bits`` a channel."""
        return StoredAutoencoder(module.eval(), config, size, None, hash_weights(module), passport, bits)

    def with_scale(self, scale: LatentScale) -> StoredAutoencoder:
        """The same with a measured scale."""
        return replace(self, scale=scale)

    def keep_scale(self) -> None:
        """Writes the scale into the folder that it was opened from; UserError where that cannot be written."""
        assert self.path is not None
        assert self.scale is not None
        about = read_about(self.path) | {"mean": self.scale.mean.tolist(), "std": self.scale.std.tolist()}
        write_atomically(self.path / ABOUT, tomli_w.dumps(about))

    def save(self, path: Path, extra: Mapping[str, str] | None = None) -> None:
        """Writes the model folder, whole or not at all; ``extra`` are text files to lie beside the weights."""

        def fill(folder: Path) -> None:
            self.fill(folder)
            for name, text in (extra or {}).items():
                (folder / name).write_text(text, encoding="utf-8")

        write_folder(path, fill)

    def fill(self, folder: Path) -> None:
        """Its files, into a folder that is being written."""
        values: dict[str, Any] = {
            "size": self.size,
            "bits": self.bits,
            "autoencoder": self.config.model_dump(mode="json", exclude_none=True),
        }
        if self.scale is not None:
            values |= {"mean": self.scale.mean.tolist(), "std": self.scale.std.tolist()}
        write_about(folder, "autoencoder", values, self.passport)
        write_weights(folder / "weights.safetensors", self.module.state_dict())


def load_autoencoder(path: str | Path) -> StoredAutoencoder:
    """Opens an autoencoder's folder. UserError where it is none, is incomplete or does not fit."""
    path = Path(path)
    about = read_about(path)
    kind = about.pop("kind", None)
    if kind == "diffusion" and (path / "autoencoder").is_dir():
        return load_autoencoder(path / "autoencoder")
    if kind != "autoencoder":
        raise UserError(f"{path} holds a {kind} model; expected an autoencoder")
    known = parse(About, {k: v for k, v in about.items() if k not in ("format", "carrara")}, where=str(path))
    module = known.autoencoder.build()
    load_into(module, path / "weights.safetensors")
    scale = None
    if known.mean is not None and known.std is not None:
        if not len(known.mean) == len(known.std) == module.channels:
            raise UserError(
                f"{path} is damaged: expected mean and std of {module.channels} channels in {ABOUT}"
            )
        scale = LatentScale(torch.tensor(known.mean), torch.tensor(known.std))
    stored = StoredAutoencoder.of(module, known.autoencoder, known.size, read_passport(path), known.bits)
    return replace(stored, scale=scale, path=path)
