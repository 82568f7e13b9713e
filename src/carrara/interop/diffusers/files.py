"""Files in the layout of diffusers: a table ``config.json`` beside weights in safetensors, never pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from carrara.errors import UserError
from carrara.files import read_bytes
from carrara.model_folder import weight_files

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
_STEM = "diffusion_pytorch_model"


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder: in one file or in several with an index, in the widest precision there is.

    UserError where there are none, or where one of them is no finite number.
    """
    found = weight_files(folder, _STEM)
    if found is None:
        raise UserError(_no_weights(folder))
    tensors = found.read()
    for name, values in tensors.items():
        if values.is_floating_point() and not values.isfinite().all():
            raise UserError(
                f"{folder} is damaged: {name} of its weights has values that are no finite numbers"
            )
    return tensors


def remark_on_weights(folder: Path) -> str:
    """What a user should know of the weights that `read_tensors` finds there, or ""."""
    found = weight_files(folder, _STEM)
    return found.remark if found else ""


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
    data = read_bytes(file)
    try:
        values = json.loads(data)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} does not hold a table")
    return values


def write_table(file: Path, values: Mapping[str, Any]) -> None:
    """The table as JSON that people can read."""
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
