"""A model folder: weights as safetensors, everything else as TOML or JSON, and a note of the format.

Written beside its final place and renamed, so that a folder with a ``model.toml`` is always whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from pydantic import BaseModel, FiniteFloat, ValidationError
from torch import Tensor, nn

from carrara.config import plain, read_toml
from carrara.errors import UserError, nearest, one_line, refusal
from carrara.files import json_object, json_value, replacing_folder
from carrara.tensors import misfit
from carrara.version import __version__

FORMAT = 1
ABOUT, PASSPORT = "model.toml", "passport.json"
HASHES = "hashes.json"  # the SHA-256 of the files beside it that are _HASHED, by name
# Weights, the numbers of checkpoints, and what conditions keep.
_HASHED = ("*.safetensors", "state.json", "snapshot.json", "tokenizer.json", "classes.json", "labels.json")
UNCHECKED = (
    "CARRARA_UNCHECKED"  # set in the environment: weights are opened without comparing them with their hashes
)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Lets ``fill`` write into a new folder that then takes the place of ``path``; on failure nothing changes.

    The hashes of the weights in it are written beside them. UserError where the disk is full or the place cannot be
    written.
    """
    try:
        with replacing_folder(path) as part:
            fill(part)
            _write_hashes(part)
            sync(part)
    except OSError as error:
        raise UserError(f"cannot write {path}: {one_line(error)}") from None


def _write_hashes(folder: Path) -> None:
    if any((folder / name).exists() for name in ("config.json", "model_index.json")):
        return  # another program's layout
    for place in {file.parent for kind in _HASHED for file in folder.rglob(kind)}:
        hashes = {file.name: _hash_of(file) for kind in _HASHED for file in sorted(place.glob(kind))}
        (place / HASHES).write_text(json.dumps(hashes, indent=2), encoding="utf-8")


def _hash_of(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_hash(file: Path) -> None:
    """UserError where a file of weights or their numbers is not what was written, by the hashes beside it.

    Where there are none, as older folders have none, or with UNCHECKED in the environment, it is taken as it is.
    """
    noted = file.parent / HASHES
    if os.environ.get(UNCHECKED) or not os.path.lexists(noted):
        return
    try:
        hashes = json_object(noted.read_bytes())
    except OSError as error:
        raise UserError(refusal(error)) from None
    if hashes is None:
        raise UserError(f"{noted} is damaged; remove it to open the weights without comparing their hashes")
    if hashes.get(file.name) not in (None, _hash_of(file)):
        raise UserError(
            f"{file} is damaged: its bytes are not those that were written, by the {HASHES} beside it; take it "
            "from a copy (`carrara --unchecked …` opens it as it is)"
        )


def sync(folder: Path) -> None:
    """Forces every file of a folder onto the disk, so that a rename after it never reveals half a file."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def write_about(folder: Path, kind: str, values: Mapping[str, Any], passport: Mapping[str, Any]) -> None:
    """``model.toml`` with format, kind and architecture; ``passport.json`` with where it comes from."""
    about = {"format": FORMAT, "kind": kind, "carrara": __version__, **values}
    (folder / ABOUT).write_text(tomli_w.dumps(about), encoding="utf-8")
    (folder / PASSPORT).write_text(json.dumps(passport, indent=2, ensure_ascii=False), encoding="utf-8")


def read_about(folder: Path) -> dict[str, Any]:
    """The table of ``model.toml``; UserError where the folder is no model or was made by a newer Carrara."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; expected the folder of a model")
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"there is no model at {folder}{nearest(folder.name, siblings) if siblings else ''}")
    if not (folder / ABOUT).is_file():
        inside = [p.parent.name for p in sorted(folder.glob(f"*/{ABOUT}"))]
        hint = f"; did you mean {str(folder / inside[-1])!r}?" if inside else ""
        raise UserError(f"{folder} is not a model folder: it has no {ABOUT}{hint}")
    about = read_toml(folder / ABOUT)
    if not isinstance(version := about.get("format"), int):
        raise UserError(f"{folder / ABOUT} is damaged: 'format' is {version!r}, expected {FORMAT}")
    if version > FORMAT:
        raise UserError(
            f"{folder} has model format {version}, made by Carrara {about.get('carrara', '?')}; "
            f"this is Carrara {__version__}, which reads formats up to {FORMAT}: update it"
        )
    return about


class _Passport(BaseModel, extra="allow"):
    """What commands read of a passport."""

    licences: list[str] = []
    languages: list[str] = []
    seconds: FiniteFloat = 0.0
    ranges: dict[str, tuple[FiniteFloat, FiniteFloat]] = {}
    classes: list[str] = []


def read_passport(folder: Path) -> dict[str, Any]:
    """What ``passport.json`` says; empty where there is none."""
    try:
        passport = json_value((folder / PASSPORT).read_bytes())
    except FileNotFoundError:
        return {}
    try:
        return _Passport.model_validate(passport).model_dump(exclude_unset=True)
    except ValidationError as error:
        fault = error.errors()[0]
        where = " ".join(map(str, (PASSPORT, *fault["loc"])))
        raise UserError(f"{folder} is damaged: {where}: {plain(fault)}") from None


def read_names(file: Path) -> list[str]:
    """The texts in a JSON file of a condition's folder; UserError where it is missing or holds something else."""
    try:
        check_hash(file)
        names = json_value(file.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{file.parent.parent} is incomplete: it lacks {file.parent.name}/{file.name}"
        ) from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file} is damaged: expected a JSON list of texts")
    return names


def write_weights(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """The tensors as one safetensors file, contiguous and on the CPU; OSError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, str(file))
        _readable_as_usual(file)
    except SafetensorError as error:  # it wraps the system's error into words
        number = errno.ENOSPC if "No space left" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number), str(file)) from error


def _readable_as_usual(file: Path) -> None:
    """Gives a file the permissions of any other new file; safetensors leaves its own to their owner alone."""
    other = file.with_name(file.name + ".mode")
    other.touch()
    file.chmod(other.stat().st_mode & 0o777)
    other.unlink()


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; UserError where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise UserError(f"{file.parent} is incomplete: it lacks {file.name}")
    check_hash(file)
    try:
        return load_file(str(file))
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}") from None


_VARIANTS = ("", "fp32", "fp16", "bf16")  # of the same weights, in the order they are looked for


class WeightFiles(NamedTuple):
    """One set of weights of a folder: a file, or an index and its parts; ``variant`` is "" of the usual one."""

    files: list[Path]
    variant: str

    def read(self) -> dict[str, Tensor]:
        """All of them."""
        tensors: dict[str, Tensor] = {}
        for file in self.files:
            if file.suffix == ".safetensors":
                tensors |= read_weights(file)
        return tensors

    @property
    def remark(self) -> str:
        """What a user should know of them, or ""."""
        if self.variant in _VARIANTS:
            return ""
        averaged = ", which are not averaged over training" if "non_ema" in self.variant else ""
        return f"{self.files[0].parent} has only its {self.variant!r} weights{averaged}"


def weight_files(folder: Path, stem: str) -> WeightFiles | None:
    """The weights ``stem*.safetensors`` of a folder, in the widest precision there is; None where there are none.

    UserError where an index or one of its parts is damaged or missing.
    """
    found = []
    for file in folder.iterdir():
        first, *words = file.name.split(".")
        if first != stem or "safetensors" not in words:
            continue
        variant = ".".join(word for word in words if word not in ("safetensors", "index", "json"))
        if not re.search(r"-\d+-of-\d+$", variant):  # else one of several, which their index names
            rank = _VARIANTS.index(variant) if variant in _VARIANTS else len(_VARIANTS)
            found.append((rank, file.name, variant))
    if not found:
        return None
    _, name, variant = min(found)
    chosen = folder / name
    if chosen.suffix != ".json":
        return WeightFiles([chosen], variant)
    try:
        parts = set(json.loads(chosen.read_text(encoding="utf-8"))["weight_map"].values())
        astray = not all(isinstance(part, str) and Path(part).name == part for part in parts)
    except (ValueError, KeyError, TypeError, AttributeError):
        astray = True
    if astray:
        raise UserError(f"{chosen} is damaged: it has no weight_map from names of weights to files beside it")
    if missing := sorted(part for part in parts if not (folder / part).is_file()):
        raise UserError(f"{folder} is incomplete: it lacks {missing[0]}")
    return WeightFiles([chosen, *(folder / part for part in sorted(parts))], variant)


def load_into(module: nn.Module, file: Path) -> None:
    """Loads a file's weights; UserError names the first tensor that is missing, surplus or of another shape."""
    given, wanted = read_weights(file), module.state_dict()
    if fault := misfit(given, wanted):
        raise UserError(f"{file} does not fit its model.toml: {fault}")
    module.load_state_dict(given)


def hash_weights(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that change with any weight."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
