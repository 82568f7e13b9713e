"""`carrara plan`: memory, disk and time of a training, before its first step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from carrara.cli.options import Json, RecipeChanges, RecipeName, options
from carrara.errors import UserError
from carrara.terminal import clock, console, fail

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.dataset import Dataset
    from carrara.training.plan import Plan
    from carrara.training.recipe import AutoencoderRecipe, DiffusionRecipe


class Planning(RecipeChanges):
    """What is planned, and how exactly."""

    latent: str | None = Field(
        None, description="Shape of the latent instead of --autoencoder, e.g. 4x64x64 (at factor 8)."
    )
    seconds: float = Field(
        10, ge=0, le=86400, description="Length of the timed trial in seconds; 0 estimates instead."
    )
    as_json: Json = False


@options(Planning)
def plan(
    recipe: RecipeName,
    planning: Planning,
    dataset: Annotated[
        Path | None,
        typer.Argument(
            help="A data set made by `carrara data import`; without one, made-up pictures stand in."
        ),
    ] = None,
) -> None:
    """Say before the first step what a training needs, and whether this machine has it (status 2 if not)."""
    from carrara.dataset.dataset import Dataset
    from carrara.importing.summary import few
    from carrara.interop.models import open_autoencoder
    from carrara.recipes.catalogue import named
    from carrara.training.autoencoder_task import with_network
    from carrara.training.disk_and_memory import Subject
    from carrara.training.plan import plan as make
    from carrara.training.recipe import AutoencoderRecipe, ContrastiveRecipe
    from carrara.training.stages import fitted

    opened = open_autoencoder(planning.autoencoder) if planning.autoencoder else None
    chosen = named(recipe, planning.changes(), network=opened.config if opened else None)
    pictures = Dataset.open(dataset) if dataset else None
    if isinstance(chosen, AutoencoderRecipe):
        chosen = with_network(chosen, opened)
    elif isinstance(chosen, ContrastiveRecipe):
        if opened:
            raise UserError("a contrastive recipe needs no autoencoder: omit --autoencoder")
    elif pictures:
        chosen = fitted(chosen, pictures)
    no_latent = isinstance(chosen, AutoencoderRecipe | ContrastiveRecipe) or chosen.pixels
    if planning.latent and (opened or no_latent):
        raise UserError(
            "--latent stands in for an autoencoder: omit it where there is one, or where none is needed"
        )
    shape = _shape(planning.latent)
    found = make(Subject.of(chosen, pictures, opened, shape), seconds=planning.seconds)
    if planning.as_json:
        typer.echo(json.dumps(found.document(), indent=2, ensure_ascii=False))
    else:
        rows = _rows(found)
        if not isinstance(chosen, ContrastiveRecipe):
            rows.append(("export", _export(chosen, pictures, opened, shape)))
        for name, value in rows:
            console.print(f"{name:22} {value}", soft_wrap=True)
        for note in [*found.notes, *(few(len(pictures.indices("train"))) if pictures else [])]:
            console.print(f"note: {note}", soft_wrap=True)
    if found.refusals:
        fail("; ".join(found.refusals))
        raise typer.Exit(2)


def _export(
    recipe: AutoencoderRecipe | DiffusionRecipe,
    pictures: Dataset | None,
    autoencoder: StoredAutoencoder | None,
    latent: tuple[int, int, int] | None,
) -> str:
    """In words, what other programs could read the trained model."""
    from carrara.interop.exportable import exportable, stand_in
    from carrara.training.condition_columns import TrainingRows
    from carrara.training.random_data import MadeUp

    columns = TrainingRows(pictures) if pictures else MadeUp()
    can = exportable(recipe, stand_in(latent[0], 8 * latent[1]) if latent else autoencoder, columns)
    return can + (", if its autoencoder can be" if latent and can.startswith("as") else "")


def _rows(plan: Plan) -> list[tuple[str, str]]:
    """The table, one line per row."""
    step, part = plan.step, plan.batch // plan.accumulate
    names = ", ".join(f"{name} {_count(number)}" for name, number in plan.parameters.items())
    passing = step.activations * part
    steps = [
        ("parameters", f"{names}; {_count(plan.trained)} are trained"),
        ("batch", f"{plan.batch} pictures" + (f" in {plan.accumulate} parts" if plan.accumulate > 1 else "")),
        ("FLOPs per step", f"{step.flops * plan.batch:.3g}"),
        (
            "memory at its peak",
            f"{_size(plan.peak)}; {_size(plan.memory.free)} of {plan.memory.kind} are free now",
        ),
        ("  libraries and data", _size(plan.base)),
        ("  weights", _size(step.weights)),
        ("  averages", _size(step.averages)),
        ("  optimizer", _size(step.optimizer)),
        ("  gradients", _size(step.gradients)),
        ("  activations", f"{_size(passing)} ({_size(step.activations)} per picture)"),
    ]
    if plan.trial.peak:
        steps.append(("  measured in the trial", _size(plan.trial.peak)))
    disk = ", ".join(f"{name} {_size(size)}" for name, size in plan.disk.items() if size)
    looks = f", of which looks at held-out pictures {_time(plan.looks)}" if plan.looks >= 1 else ""
    steps += [
        ("fits this machine", _fits(plan)),
        ("disk", f"{disk}; {_size(plan.disk_free)} are free"),
        ("pictures per second", f"{plan.trial.rate:.3g}, {plan.trial.words}"),
        ("time to the end", _time(plan.seconds) + looks),
    ]
    seen = f"{plan.seen:,.0f} pictures".replace(",", " ")
    if plan.pictures:
        seen += f", {plan.seen / plan.pictures:.3g} times each of {plan.pictures}"
    return [*steps, ("seen by then", seen)]


def _fits(plan: Plan) -> str:
    """In words: the recipe's batch, and the largest one."""
    words = []
    for batch, parts in plan.fits:
        split = f" with --set train.accumulate={parts}" if parts > 1 else ""
        what = "the recipe's batch of" if batch == plan.batch else "at most a batch of"
        words.append(f"{what} {batch}{split}")
    return "; ".join(words) or "nothing; one picture does not fit"


def _shape(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    from carrara.config import parse
    from carrara.interop.exportable import LatentShape

    if not (match := re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})x([0-9]{1,9})", text)):
        raise UserError(f"--latent is {text[:40]!r}; expected channels x height x width, e.g. 4x64x64")
    sides = dict(zip(LatentShape.model_fields, map(int, match.groups()), strict=True))
    shape = parse(LatentShape, sides, where=f"--latent {text}")
    return shape.channels, shape.height, shape.width


def _time(seconds: float) -> str:
    days = seconds / 86400
    return clock(seconds) if days < 2 else f"{days:,.0f} days".replace(",", " ")


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _count(number: int) -> str:
    return f"{number / 1e6:.1f}M" if number >= 1e6 else f"{number:,}".replace(",", " ")
