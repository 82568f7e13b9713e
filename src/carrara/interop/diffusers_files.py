"""Folders in the layout of diffusers: a table ``config.json`` beside weights in safetensors, never pickles."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from carrara.errors import UserError
from carrara.model_folder import read_weights

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
_VARIANTS = ("", "fp32", "fp16", "bf16")  # of the same weights, in the order they are looked for


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder: in one file or in several with an index, in the widest precision there is."""
    found = []
    for file in folder.iterdir():
        first, *words = file.name.split(".")
        if first != "diffusion_pytorch_model" or "safetensors" not in words:
            continue
        variant = ".".join(word for word in words if word not in ("safetensors", "index", "json"))
        if not re.search(r"-\d+-of-\d+$", variant):  # else one of several, which their index names
            found.append((_VARIANTS.index(variant) if variant in _VARIANTS else len(_VARIANTS), file.name))
    if not found:
        raise UserError(_no_weights(folder))
    chosen = folder / min(found)[1]
    if chosen.suffix != ".json":
        return read_weights(chosen)
    shards = read_table(chosen).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in shards.values()
    ):
        raise UserError(f"{chosen} has no weight_map from names of weights to files beside it")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(shards.values())):
        tensors |= read_weights(folder / name)
    return tensors


def _no_weights(folder: Path) -> str:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if not pickles:
        return f"{folder} is incomplete: it lacks {WEIGHTS}"
    name = read_table(folder / CONFIG).get("_class_name")
    return (
        f"{folder} has only {pickles[0]}, a pickle, which can run any program when it is opened; where you trust it, "
        f'convert it: python -c "from diffusers import {name} as A; A.from_pretrained({str(folder)!r}, '
        f'use_safetensors=False).save_pretrained({str(folder) + "-safe"!r})"'
    )


def read_table(file: Path) -> dict[str, Any]:
    """The table that a JSON file holds; UserError where it cannot be read or holds none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} does not hold a table")
    return values


def write_table(file: Path, values: Mapping[str, Any]) -> None:
    """The table as JSON that people can read."""
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
