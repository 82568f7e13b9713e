"""Texts and pictures in the space that `carrara train contrastive` learned from the user's own pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carrara.config import Config, parse
from carrara.embedders.embedders import Embedder, Lift, Vectors
from carrara.embedders.two_towers import Tower, Towers, TowersConfig
from carrara.errors import UserError
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

NAME = KIND = "contrastive"
CODE = 1
_AT_ONCE = 4096


class Below(Config):
    """A frozen embedder that a tower stands on: its name, its folder where it has one, its key and its width."""

    name: str
    where: str | None = None
    key: dict[str, str | int | float | bool | None]
    width: int


class About(Config):
    """What ``model.toml`` says of a joint space."""

    towers: TowersConfig
    pictures: Below
    texts: Below


@dataclass(frozen=True)
class StoredTowers:
    """Trained towers with what they stand on and where they come from; ``path`` is the folder they are from."""

    module: Towers
    about: About
    passport: Mapping[str, Any]
    path: Path | None = None

    @property
    def hash(self) -> str:
        """Changes with any weight."""
        return hash_weights(self.module)

    def save(self, path: Path, extra: Mapping[str, str] | None = None) -> None:
        """Writes the model folder, whole or not at all; ``extra`` are text files to lie beside the weights."""

        def fill(folder: Path) -> None:
            values = self.about.model_dump(mode="json", exclude_none=True)
            write_about(folder, KIND, values, self.passport)
            write_weights(folder / "weights.safetensors", self.module.state_dict())
            for name, text in (extra or {}).items():
                (folder / name).write_text(text, encoding="utf-8")

        write_folder(path, fill)


def below(embedder: Embedder) -> Below:
    """What is kept of an embedder that a tower stands on."""
    return Below(name=embedder.name, where=embedder.where, key=dict(embedder.key), width=embedder.width)


def load_towers(path: str | Path) -> StoredTowers:
    """Opens a joint space from its model folder. UserError where it is none, is incomplete or does not fit."""
    path = Path(path)
    about = read_about(path)
    if (kind := about.pop("kind", None)) != KIND:
        raise UserError(f"{path} holds a {kind} model; expected one of `carrara train contrastive`")
    known = parse(About, {k: v for k, v in about.items() if k not in ("format", "carrara")}, where=str(path))
    module = Towers(known.towers, known.pictures.width, known.texts.width)
    load_into(module, path / "weights.safetensors")
    return StoredTowers(module.eval(), known, read_passport(path), path)


def opens(folder: Path) -> bool:
    """Whether a folder is such a model, or the run that made one."""
    found = _model_in(folder)
    return (found / ABOUT).is_file() and read_about(found).get("kind") == KIND


def embedder(folder: Path) -> Embedder:
    """From a model folder or its run. UserError where an embedder below is missing or is another one now."""
    stored = load_towers(_model_in(folder))
    pictures, texts = _open(stored.about.pictures, folder), _open(stored.about.texts, folder)
    made = Embedder(
        NAME,
        {"model": stored.hash, "code": CODE},
        stored.about.towers.width,
        size=pictures.size,
        joint=True,
        picture_lift=Lift(pictures, lifting(stored.module.pictures)),
        text_lift=Lift(texts, lifting(stored.module.texts)),
        where=str(_model_in(folder).resolve()),
    )

    def see(images: Tensor) -> Vectors:
        assert made.picture_lift is not None
        assert pictures.pictures is not None
        return made.picture_lift.lift(pictures.pictures(images))

    def read(words: Sequence[str]) -> Vectors:
        assert made.text_lift is not None
        assert texts.texts is not None
        return made.text_lift.lift(texts.texts(words))

    return replace(made, pictures=see, texts=read)


def lifting(tower: Tower) -> Callable[[Vectors], Vectors]:
    """A tower as a function of arrays."""

    def lift(vectors: Vectors) -> Vectors:
        given = torch.from_numpy(np.asarray(vectors, np.float32))
        with torch.inference_mode():
            parts = [tower(part.to(tower.mean.device)).cpu() for part in torch.split(given, _AT_ONCE)]
        found: Vectors = torch.cat(parts).numpy()
        return found

    return lift


def _open(wanted: Below, folder: Path) -> Embedder:
    from carrara.embedders.embedders import open_embedder

    found = open_embedder(wanted.where or wanted.name)
    if below(found).key != wanted.key:
        raise UserError(f"{folder} stands on another {wanted.name} than the one that is here; train it again")
    return found


def _model_in(folder: Path) -> Path:
    return folder / "model" if (folder / "model" / ABOUT).is_file() else folder
