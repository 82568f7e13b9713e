"""Checkpoints: all state as safetensors and JSON, in a folder that appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from carrara.errors import UserError
from carrara.model_folder import read_weights, write_folder, write_weights

KEEP = 2


def save(folder: Path, seen: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Path:
    """Writes ``folder/<seen>``, then removes all but the newest two. UserError on a full disk; the last stays."""
    path = place(folder, seen)
    if path.is_dir():  # the same state already; writing it again would only open a moment without it
        return path

    def fill(part: Path) -> None:
        write_weights(part / "state.safetensors", tensors)
        (part / "state.json").write_text(json.dumps({"seen": seen, **numbers}))

    write_folder(path, fill)
    for half in (*folder.glob("*.part"), *folder.glob("*.old")):  # of a run that was killed while it wrote
        shutil.rmtree(half, ignore_errors=True)
    for old in _all(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def place(folder: Path, seen: int) -> Path:
    """Where the checkpoint after so many pictures lies."""
    return folder / f"{seen:012d}"


def newest(folder: Path) -> Path | None:
    """The latest whole checkpoint, None where there is none."""
    found = _all(folder)
    return found[-1] if found else None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and numbers of a checkpoint."""
    try:
        numbers: dict[str, Any] = json.loads((path / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {path} is damaged: {error}") from None
    return read_weights(path / "state.safetensors"), numbers


def _all(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []
