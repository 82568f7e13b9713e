"""Embedders by name (this folder is the list) or by the folder they are opened from; and those of stored columns.

What an embedder is: pictures, texts or both become unit vectors, near each other where they mean alike.

A module of this folder with a function ``embedder`` is one. Where it is opened from a folder, it also has ``opens``,
which says whether a folder is its kind, and ``embedder`` takes that folder.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from carrara.dataset import description
from carrara.dataset.store import lock, release, store_at
from carrara.dataset.subset import whereabouts
from carrara.errors import UserError, nearest
from carrara.files import json_object, write_atomically

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.search.vector_columns import VectorColumn


PICTURES, TEXTS = "efficientnet_lite0", "use"  # what is taken where none is named
_KEPT = "embedders"  # the folder of a data set with the models that made its columns, and where others lie
_PLACES = "places.json"


def embedders() -> dict[str, str]:
    """Every embedder by name, with its sentence."""
    return {name: (module.__doc__ or "").strip() for name, module in _modules().items()}


def open_embedder(given: str | Path) -> Embedder:
    """By its name, or from a model folder, a run or a text encoder's folder; UserError with the nearest name."""
    modules = _modules()
    if str(given) in modules and not hasattr(modules[str(given)], "opens"):
        found: Embedder = modules[str(given)].embedder()
        return found
    folder = Path(given)
    if folder.is_dir():
        for module in modules.values():
            if hasattr(module, "opens") and module.opens(folder):
                opened: Embedder = module.embedder(folder)
                return opened
        raise UserError(
            f"{folder} holds no embedder; expected a run of `carrara train contrastive` or a text encoder's folder"
        )
    named = [name for name, module in modules.items() if not hasattr(module, "opens")]
    raise UserError(
        f"no embedder is called {str(given)!r}{nearest(str(given), named)}, and there is no such folder"
    )


def embedder_of(dataset: Dataset, column: VectorColumn) -> Embedder:
    """The embedder that made a stored column. UserError where it is not on this machine any more, or has changed."""
    opened = _opened(column.embedder, _place(dataset, column))
    if json.loads(json.dumps(dict(opened.key))) != dict(column.key):
        raise UserError(
            f"the column {column.column} was made by another {column.embedder} than the one that is here; "
            f"make it again with `carrara data encode`"
        )
    return opened


def keep(dataset: Dataset, embedder: Embedder) -> None:
    """Makes sure that `embedder_of` finds it: models trained here are copied beside the table, others noted."""
    if embedder.where is None:
        return
    folder, name = dataset.store.work / _KEPT, _id(embedder.key)
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(embedder.where)
    held = lock(folder, wait=True)  # every worker of a cluster comes here
    try:
        if embedder.joint:
            from carrara.model_folder import write_folder

            if not (folder / name).is_dir():
                write_folder(folder / name, lambda part: _copy(source, part))
            return
        places = _places(folder) | {name: embedder.where}
        write_atomically(folder / _PLACES, json.dumps(places, indent=2))
    finally:
        release(held)


def carry(dataset: Dataset, made: Dataset) -> None:
    """Gives a data set that was made of another one its models, so that it can be moved away from it."""
    source, target = dataset.store.work / _KEPT, made.store.work / _KEPT
    if source.is_dir() and not target.exists():
        from carrara.model_folder import write_folder

        write_folder(target, lambda part: _copy(source, part))


def _copy(source: Path, part: Path) -> None:
    shutil.copytree(source, part, dirs_exist_ok=True)


def _place(dataset: Dataset, column: VectorColumn) -> str | None:
    if not hasattr(_modules().get(column.embedder), "opens"):
        return None
    name = _id(column.key)
    kept = list(_kept(dataset))
    insides = [str(folder / name) for folder in kept if (folder / name).is_dir()]
    noted = [places[name] for folder in kept if name in (places := _places(folder))]
    place = next(iter([*insides, *noted]), None)
    if place is None or not Path(place).is_dir():
        raise UserError(
            f"the model that made the column {column.column} is not {'at ' + place if place else 'kept'} any more; "
            "make the column again with `carrara data encode DATASET --embedder FOLDER`"
        )
    return place


@lru_cache(maxsize=8)
def _opened(name: str, place: str | None) -> Embedder:
    return open_embedder(place or name)


def _kept(dataset: Dataset) -> Iterator[Path]:
    """Where models are kept: beside the table, and beside those that it was made of."""
    yield dataset.store.work / _KEPT
    about, seen = dataset.about, {whereabouts(dataset.store), str(dataset.store.path)}
    while (
        of := about.get("subset", {}).get("of")
    ) and of not in seen:  # a set may have taken its source's name
        seen.add(of)
        store = store_at(of)
        yield store.work / _KEPT
        about = description.about(store) or {}


def _places(folder: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json_object((folder / _PLACES).read_bytes()) or {}
    except OSError:
        return {}
    return found


def _id(key: object) -> str:
    import hashlib

    text = json.dumps(dict(key), sort_keys=True)  # type: ignore[call-overload]
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _modules() -> dict[str, ModuleType]:
    package = importlib.import_module("carrara.embedders")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    found = {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
    return {name: module for name, module in found.items() if hasattr(module, "embedder")}


Vectors = npt.NDArray[np.float32]  # [n d], each of length one, or zero where there was nothing to embed


@dataclass(frozen=True)
class Embedder:
    """``pictures`` takes ``uint8 [b 3 size size]``, ``texts`` takes words; None where it cannot.

    ``key`` says what makes its vectors what they are (weights, code), so that a stored column is known to be its
    own. ``joint`` is whether its pictures and its texts share a space. ``picture_lift`` and ``text_lift`` are there
    where it stands on another's vectors, which need not be computed again. ``where`` is the folder that it was opened
    from, None where it came with a package.
    """

    name: str
    key: Mapping[str, Any]
    width: int
    pictures: Callable[[Tensor], Vectors] | None = None
    texts: Callable[[Sequence[str]], Vectors] | None = None
    size: int | None = None
    joint: bool = False
    picture_lift: Lift | None = None
    text_lift: Lift | None = None
    where: str | None = None


@dataclass(frozen=True)
class Lift:
    """How the vectors of one embedder become those of another that stands on it."""

    below: Embedder
    lift: Callable[[Vectors], Vectors]


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """``[n d]`` at length one; what has no length stays as it is."""
    found = np.asarray(vectors, np.float32)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    at_one: Vectors = np.divide(found, length, out=np.zeros_like(found), where=length > 1e-12)
    return at_one
