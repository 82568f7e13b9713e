"""Checkpoints: all state as safetensors and JSON, in a folder that appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat, NonNegativeInt, ValidationError
from torch import Tensor

from carrara.config import plain
from carrara.errors import UserError
from carrara.files import json_object
from carrara.model_folder import check_hash, write_folder, write_weights

KEEP = 2
STATE, NUMBERS = "state.safetensors", "state.json"
BEST = "best"  # folder beside the newest ones, of the one that did best on held-out pictures


class Damaged(UserError):
    """A checkpoint whose files cannot be read; an older one may be whole."""


def save(
    folder: Path, seen: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], *, keep: int = KEEP
) -> Path:
    """Writes ``folder/<seen>``, then removes all but the newest ``keep``.

    UserError on a full disk; those that were there stay.
    """
    path = _write(folder, seen, tensors, numbers)
    for old in all_of(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def save_only(folder: Path, seen: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Path:
    """Writes ``folder/<seen>``, then removes every other: there is never a moment without one."""
    path = _write(folder, seen, tensors, numbers)
    for other in all_of(folder):
        if other != path:
            shutil.rmtree(other, ignore_errors=True)
    return path


def _write(folder: Path, seen: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Path:
    path = place(folder, seen)
    if path.is_dir():  # the same state already; writing it again would only open a moment without it
        return path

    def fill(part: Path) -> None:
        write_weights(part / STATE, tensors)
        (part / NUMBERS).write_text(json.dumps({"seen": seen, **numbers}))

    write_folder(path, fill)
    for half in (*folder.glob("*.part"), *folder.glob("*.old")):  # of a run that was killed while it wrote
        shutil.rmtree(half, ignore_errors=True)
    return path


def place(folder: Path, seen: int) -> Path:
    """Where the checkpoint after so many pictures lies."""
    return folder / f"{seen:012d}"


def newest(folder: Path) -> Path | None:
    """The latest whole checkpoint, None where there is none."""
    found = all_of(folder)
    return found[-1] if found else None


def all_of(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, the oldest first."""
    return sorted(p for p in folder.glob("*") if p.name.isdecimal()) if folder.is_dir() else []


def set_aside(path: Path) -> Path:
    """Gives a damaged checkpoint another name, so that it is neither loaded nor lost; returns where it is now."""
    aside = path.with_name(path.name + ".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


class _Numbers(BaseModel, extra="allow"):
    """What a checkpoint has besides tensors; ``task`` are the task's own numbers."""

    seen: NonNegativeInt = 0
    step: NonNegativeInt = 0
    spent: FiniteFloat = 0.0
    task: dict[str, float] = {}
    best: float | None = None
    measured: dict[str, float] = {}


def numbers(path: Path) -> dict[str, Any]:
    """All of a checkpoint but its tensors; Damaged where they cannot be read, or are not those that were written."""
    try:
        check_hash(path / NUMBERS)
        found = json_object((path / NUMBERS).read_bytes())
        return _Numbers.model_validate(found).model_dump(exclude_unset=True)
    except ValidationError as error:
        fault = error.errors()[0]
        where = " ".join(map(str, (NUMBERS, *fault["loc"])))
        raise Damaged(f"checkpoint {path} is damaged: {where}: {plain(fault)}") from None
    except (OSError, UserError) as error:
        raise Damaged(f"checkpoint {path} is damaged: {error}") from None


def load(path: Path, *, only: tuple[str, ...] = ("",)) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (whose names begin with one of ``only``) and numbers of a checkpoint; Damaged where unreadable."""
    from safetensors import SafetensorError, safe_open

    about = numbers(path)
    try:
        check_hash(path / STATE)
        with safe_open(str(path / STATE), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(only)}, about  # noqa: SIM118
    except (OSError, UserError, SafetensorError) as error:
        raise Damaged(f"checkpoint {path} is damaged: {error}") from None
