"""The catalogue of recipes by name (the folder is the list), from TOML files, and with single values changed."""

from __future__ import annotations

import ast
import importlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from carrara.config import Config, parse, read_toml
from carrara.errors import UserError, nearest

if TYPE_CHECKING:
    from carrara.training.recipe import AutoencoderRecipe, ContrastiveRecipe, DiffusionRecipe

    Recipe: TypeAlias = AutoencoderRecipe | DiffusionRecipe | ContrastiveRecipe

_PUBLISHED = ":published"


def recipes() -> dict[str, str]:
    """Every recipe by name, with its sentence, read from the files without importing them (and torch with them).

    A module of this folder is one by its function ``recipe``; ``published``, where there is one, is the form of the
    paper, for machines as the paper had, and its name ends in ":published".
    """
    found = {}
    for file in Path(__file__).parent.glob("*.py"):
        module = ast.parse(file.read_text(encoding="utf-8"))
        functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
        if "recipe" in functions:
            found[file.stem] = ast.get_docstring(module) or ""
        if "published" in functions:
            sentence = ast.get_docstring(functions["published"]) or ""
            found[file.stem + _PUBLISHED] = sentence.partition("\n")[0]
    return dict(sorted(found.items()))


def named(
    name: str,
    changes: list[str] | None = None,
    *,
    network: Config | None = None,
    model: Config | None = None,
) -> Recipe:
    """A recipe by name or TOML file, with changes such as "train.batch=16"; UserError names the nearest key.

    A recipe for an autoencoder that has no network of its own gets ``network``, before the changes; one for a
    diffusion model gets ``model`` in place of its own.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        values = read_toml(path)
    elif name in (known := recipes()):
        module = importlib.import_module(f"carrara.recipes.{name.removesuffix(_PUBLISHED)}")
        form = module.published if name.endswith(_PUBLISHED) else module.recipe
        values = form().model_dump(mode="json", exclude_none=True)
    else:
        raise UserError(f"no recipe is called {name!r}{nearest(name, known)}, and there is no such file")
    from carrara.training.recipe import AutoencoderRecipe, ContrastiveRecipe, DiffusionRecipe

    if network and values.get("task") == "autoencoder":
        values.setdefault("autoencoder", network.model_dump(mode="json", exclude_none=True))
    if model and values.get("task") == "diffusion":
        values["model"] = model.model_dump(mode="json", exclude_none=True)
    for change in changes or []:
        _change(values, change)
    tasks: dict[str, type[Recipe]] = {
        "autoencoder": AutoencoderRecipe,
        "diffusion": DiffusionRecipe,
        "contrastive": ContrastiveRecipe,
    }
    task = values.get("task", "")
    if task not in tasks:
        raise UserError(f"{name}: 'task' is {task!r}{nearest(str(task), tasks)}")
    return parse(tasks[task], values, where=name)


def _change(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise UserError(f"cannot read the change {change!r}; expected for example train.batch=16")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word: no need to quote it twice on a command line
    *path, last = key.strip().split(".")
    for step in path:
        inner = values.setdefault(step, {})
        if not isinstance(inner, dict):
            raise UserError(f"{change!r}: {step!r} holds a value, not a table")
        values = inner
    values[last] = value
