"""How a run goes on with what it is asked for now: as before, for longer, with other settings, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from carrara.config import Config, parse, read_toml, to_toml
from carrara.errors import UserError, nearest
from carrara.files import json_object, remove
from carrara.model_folder import ABOUT, write_folder
from carrara.terminal import note
from carrara.training import checkpoint
from carrara.training.lr_and_budget import RESERVED, Budget
from carrara.training.optim import falls_from
from carrara.training.recipe import TrainConfig

RECIPE = "recipe.toml"
PLATEAU = "plateau"  # folder beside the newest checkpoints, of the last one before the learning rate fell
_BUDGET = "train.budget"
# What does not touch the weights; what "pictures" and "texts" of a joint space are is known by their hashes.
_FREE = ("validation", "looks", "train.save_every", "train.keep", "train.snapshots", "pictures", "texts")
_NETWORK = ("model", "autoencoder", "towers", "pixels", "size", "bits")  # --start has these as they were
_VERSION = {"data", "version", "tag", "placement"}  # of the table that a run saw, and how it computes


@dataclass(frozen=True)
class Change:
    """What becomes of a run: begun ``anew`` (no step was made), or ``longer``, from a checkpoint to go ``back`` to

    or from the newest; the ``note`` says so. Neither: it goes on as it is. ``damaged``: its recipe is from a copy.
    """

    anew: bool = False
    longer: bool = False
    back: Path | None = None
    note: str = ""
    damaged: bool = False


def is_run(folder: Path) -> bool:
    """Whether a run lies in a folder: its recipe, be it damaged, or that of its model. A model alone is none."""
    return not (folder / ABOUT).is_file() and (os.path.lexists(folder / RECIPE) or bool(_copies(folder)))


def _copies(folder: Path) -> list[Path]:
    return [file for name in ("unfinished", "model") if (file := folder / name / RECIPE).is_file()]


def recipe_file(folder: Path, read: Callable[[Path], object]) -> Path:
    """The file with a run's recipe: its own or, where that is missing or damaged, the copy in its model.

    Damaged is what ``read`` refuses, and what breaks off before the copy does; a note says so. UserError where there
    is no recipe, or none that is whole.
    """
    own, copies = folder / RECIPE, _copies(folder)
    if (folder / ABOUT).is_file():
        raise UserError(f"{folder} is a model; expected the folder of a run")
    if not is_run(folder):
        siblings = [file.parent.name for file in folder.parent.glob(f"*/{RECIPE}")]
        raise UserError(f"{folder} is not a run: it has no {RECIPE}{nearest(folder.name, siblings)}")
    try:
        read(own)
        begins = own.read_bytes()
        if not any(begins != whole and whole.startswith(begins) for whole in map(Path.read_bytes, copies)):
            return own
        fault = UserError(f"{own} breaks off before its end")
    except UserError as error:
        fault = error
    for copy in copies:
        with contextlib.suppress(UserError):
            read(copy)
            note(f"{fault}; the recipe is read from {copy}")
            return copy
    raise fault


def read_recipe(file: Path, now: Config) -> dict[str, Any]:
    """The values of a recipe's file, with the default of each field that it does not have; UserError where damaged.

    Of another task than that of ``now`` they are as they stand.
    """
    values, task = read_toml(file), getattr(now, "task", None)
    if isinstance(other := values.get("task"), str) and other != task:
        return values
    return tomllib.loads(to_toml(parse(type(now), values, where=str(file))))


def change_of(folder: Path, recipe: Config, about: Mapping[str, str], pictures: int) -> Change:
    """What a run in ``folder`` is to become; ``about`` has the hashes of the ``pictures`` that it trains on.

    UserError names the first difference that its weights could not have come from. A field that came to the recipes
    after the run was begun has its default.
    """
    try:
        file = recipe_file(folder, partial(read_recipe, now=recipe))
    except UserError as error:
        if not steps_made(folder):
            return Change(anew=True, damaged=True)
        raise UserError(
            f"{error}; put its recipe back from a copy, or give another folder with --out"
        ) from None
    before, now = read_recipe(file, recipe), tomllib.loads(to_toml(recipe))
    different = list(_differences(before, now))
    fixed = [d for d in different if d[0] != _BUDGET and not _among(d[0], _FREE)]
    data = "" if fixed else _other_data(folder, about)
    if (fixed or data) and not steps_made(folder):
        return Change(anew=True)
    if fixed:
        key, was_value, value = fixed[0]
        new = "give another folder with --out"
        if now.get("task") != "contrastive" and not _among(key, _NETWORK):
            new = f"begin a new run from its model with --start {folder} --out NEW"
        raise UserError(
            f"{folder} was begun with {key} = {was_value!r}, now it is {value!r}; continue with the former, or {new}"
        )
    if data:
        raise UserError(data)
    was, wanted = (TrainConfig.model_validate(one["train"]) for one in (before, now))
    change = _longer(folder, was, wanted, pictures)
    return replace(change, damaged=file != folder / RECIPE)


def _longer(folder: Path, before: TrainConfig, now: TrainConfig, pictures: int) -> Change:
    """The same run with another budget: from the newest checkpoint, or from before the learning rate fell."""
    old, new = (Budget.parse(config.counted(pictures).budget) for config in (before, now))
    if old == new:
        return Change()
    before_fall = folder / "checkpoints" / PLATEAU
    newest = _newest_numbers(folder / "checkpoints")
    numbers = newest or _newest_numbers(before_fall)
    spent, step = float(numbers.get("spent", 0)), int(numbers.get("step", 0))
    finished = (folder / "model" / ABOUT).is_file()
    alike = new.amount[0] == old.amount[0]
    larger = alike and new.amount > old.amount
    if not larger and ((finished and alike) or new.fraction(spent=spent, step=step) >= 1):
        done = f"{step} steps" if new.steps else f"{spent:.0f} s"
        raise UserError(
            f"{folder} has been trained for {done} of a budget of {before.budget} already, and the budget is now "
            f"{now.budget}; "
            "give a larger one, or another folder with --out"
        )
    if not numbers:
        if finished:
            raise UserError(
                f"{folder} has no checkpoint left to go on from; begin a new run from its model with "
                f"--start {folder} --out NEW"
            )
        return Change()
    seen = int(numbers["seen"])
    note = f"the budget is now {now.budget} instead of {before.budget}: going on from {{}} pictures seen"
    reserved = float(numbers.get("task", {}).get(RESERVED, 0))
    if newest and old.fraction(spent=spent, step=step, reserved=reserved) <= falls_from(before):
        return Change(longer=True, note=note.format(seen))
    plateau = checkpoint.newest(before_fall)
    if plateau is None or int(plateau.name) > seen:
        return Change(
            longer=True, note=note.format(seen) + ", where the learning rate, which had fallen, rises again"
        )
    return Change(
        longer=True, back=plateau, note=note.format(int(plateau.name)) + ", before the learning rate fell"
    )


def go_back(folder: Path, plateau: Path) -> None:
    """Makes a checkpoint the newest of a run, and takes away what came after it.

    Killed at any moment it can be done again: the checkpoint is there before the later ones go. Damaged where it
    cannot be read. The best measure so far stays that of the best checkpoint.
    """
    checkpoint.load(plateau)
    checkpoints = folder / "checkpoints"
    place = checkpoint.place(checkpoints, int(plateau.name))
    if not place.is_dir():
        best = _newest_numbers(checkpoints / checkpoint.BEST)
        about = checkpoint.numbers(plateau) | ({"best": best["best"]} if "best" in best else {})

        def fill(part: Path) -> None:
            shutil.copyfile(plateau / checkpoint.STATE, part / checkpoint.STATE)
            (part / checkpoint.NUMBERS).write_text(json.dumps(about))

        write_folder(place, fill)
    for later in reversed(checkpoint.all_of(checkpoints)):
        if later > place:
            remove(later)
    for grid in (folder / "samples").glob("*.png"):
        if grid.stem.isdecimal() and int(grid.stem) > int(place.name):
            grid.unlink()


def _newest_numbers(folder: Path) -> dict[str, Any]:
    """Those of the newest checkpoint in which they can be read; none where there is no such one."""
    for path in reversed(checkpoint.all_of(folder)):
        with contextlib.suppress(checkpoint.Damaged):
            return checkpoint.numbers(path)
    return {}


def steps_made(folder: Path) -> bool:
    """Whether a run has weights that were trained: a model, or checkpoints, be they damaged."""
    if (folder / "model" / ABOUT).is_file():
        return True
    found = (folder / "checkpoints").glob("**/*")
    return any(path.is_dir() and path.name[:1].isdigit() and path.suffix != ".part" for path in found)


def noted(folder: Path) -> dict[str, Any] | None:
    """What a run noted of its data when it began; None where that cannot be read."""
    try:
        return json_object((folder / "run.json").read_bytes())
    except OSError:
        return None


def _other_data(folder: Path, about: Mapping[str, str]) -> str:
    """What to say where the run was begun on other data than this, or ""."""
    begun = noted(folder)
    if begun is None:
        note(
            f"{folder / 'run.json'} is missing or damaged, so nobody knows whether the data is the same as before"
        )
        return ""
    named = sorted((begun.keys() | about.keys()) - _VERSION)
    if changed := [name for name in named if begun.get(name) != about.get(name)]:
        hint = f"; its data is {begun['data']}@{begun['tag']}" if "tag" in begun else ""
        return f"{folder} was begun with other {' and '.join(changed)}; give another folder with --out{hint}"
    return ""


def _differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key whose value is another, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    else:
        yield path, before, now


def _among(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
