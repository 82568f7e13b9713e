"""`carrara average`: a model with averaged weights of any length, out of a run, also while it is being trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carrara.cli_models import number, writable
from carrara.console import console
from carrara.errors import UserError


def average(
    run: Annotated[Path, typer.Argument(help="A run's folder, finished or not.")],
    out: Annotated[Path, typer.Option(help="The model folder to make.", callback=writable)],
    length: Annotated[
        float | None,
        typer.Option(
            min=0.005,
            max=0.249,
            callback=number,
            help="Share of the training that the average covers; by default the recipe's.",
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Use the state that did best on held-out pictures, not the newest.")
    ] = False,
) -> None:
    """Make a model from a run's weights, averaged over another length than its own, also while it still trains."""
    from carrara.recipes.catalogue import named
    from carrara.training.averaged import write_averaged
    from carrara.training.continuing import recipe_file

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists already; name another folder, or remove it")
    train = named(str(recipe_file(run, lambda file: named(str(file))))).train
    made = write_averaged(run, train, out, length=length, best=best)
    console.print(
        f"{out}: the average of length {train.ema if length is None else length:g} after {made.seen} pictures "
        f"({made.source})",
        soft_wrap=True,
    )
