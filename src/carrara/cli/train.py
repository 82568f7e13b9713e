"""`carrara train`: stage one, stage two, or a space to search in, and what the quickstart shares with it.

`carrara average`: a model with averaged weights of any length, out of a run, also while it is being trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carrara.cli.models import example, number, writable
from carrara.cli.progress import follow
from carrara.cli.search import show_recall
from carrara.errors import UserError
from carrara.interop.models import is_diffusion, open_autoencoder, open_model
from carrara.terminal import console

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.dataset import Dataset
    from carrara.generation.model import Model
    from carrara.training.recipe import AutoencoderRecipe, DiffusionRecipe


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `carrara recipe`) or a TOML file.")],
    dataset: Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Run folder; give the same one to resume, and a larger --budget to train longer.",
            callback=writable,
        ),
    ],
    autoencoder: Annotated[
        Path | None,
        typer.Option(help="Autoencoder for diffusion in latents: a model folder or its run."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Fine-tune: start from the network and weights of this model, of the same kind."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="How long: 90s, 10m, 2h, 4000steps or 20epochs; by default the recipe's (see `carrara recipe NAME`)."
        ),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value of the recipe, e.g. train.batch=16.")
    ] = None,
) -> None:
    """Train an autoencoder (stage one), a diffusion model (stage two, or on pixels), or a joint space for search."""
    from carrara.recipes.catalogue import named

    changes = [*(change or []), *([] if budget is None else [f'train.budget="{budget}"'])]
    diffusion = start and is_diffusion(start)
    before = open_model(start) if start and diffusion else None
    begin = open_autoencoder(start) if start and not diffusion else None
    chosen = named(
        recipe, changes, network=begin.config if begin else None, model=before.config if before else None
    )
    from carrara.dataset.dataset import Dataset
    from carrara.importing.summary import few  # after it: a wrong name is answered before torch is imported
    from carrara.training.autoencoder_task import with_network
    from carrara.training.recipe import AutoencoderRecipe, ContrastiveRecipe
    from carrara.training.stages import train_search_space

    pictures = Dataset.open(dataset)
    for note in few(len(pictures.indices("train"))):
        console.print(f"note: {note}", soft_wrap=True)
    if isinstance(chosen, ContrastiveRecipe):
        if autoencoder or start:
            raise UserError(
                "this recipe makes a joint space of texts and pictures: omit --autoencoder and --start"
            )
        follow(train_search_space(chosen, pictures, out), "contrastive", out)
        show_recall(pictures, out)
        return
    if isinstance(chosen, AutoencoderRecipe):
        if autoencoder:
            raise UserError(
                "this recipe makes an autoencoder; to begin from an existing one give it as --start"
            )
        if before:
            raise UserError(f"this recipe makes an autoencoder, and {start} is a diffusion model")
        if begin and begin.size != chosen.size:
            console.print(
                f"note: {start} was made at {begin.size} pixels; this trains at {chosen.size} (--set size=…)",
                soft_wrap=True,
            )
        if begin and begin.bits != chosen.bits:
            console.print(
                f"note: {start} was made for {begin.bits} bits; this trains at {chosen.bits} (--set bits=…)",
                soft_wrap=True,
            )
        run_autoencoder(with_network(chosen, begin), pictures, out, begin)
        console.print(f"next: carrara train text_ldm {dataset} --autoencoder {out} --out RUN", soft_wrap=True)
        return
    if begin:
        raise UserError(
            f"this recipe makes a diffusion model, and {start} is an autoencoder: give it as --autoencoder"
        )
    if before and chosen.model != before.config:
        raise UserError("with --start the model is that one: omit the changes of model.…, or --start")
    if chosen.pixels and autoencoder:
        raise UserError("this recipe works on pixels: omit --autoencoder")
    if not chosen.pixels and not autoencoder and not before:
        raise UserError(
            "a diffusion model needs --autoencoder: train one with `carrara train kl_autoencoder …`"
        )
    stage_one = open_autoencoder(autoencoder) if autoencoder else before.autoencoder if before else None
    run_diffusion(chosen, pictures, stage_one, out, before)
    console.print(f"next: carrara sample {out}{example(out)} --out pictures", soft_wrap=True)


def run_autoencoder(
    recipe: AutoencoderRecipe,
    dataset: Dataset,
    out: Path,
    start: StoredAutoencoder | None = None,
) -> StoredAutoencoder:
    """Stage one with a bar, from ``start``'s weights if given; returns the autoencoder."""
    from carrara.autoencoders.stored import load_autoencoder
    from carrara.interop.exportable import exportable
    from carrara.metrics.reconstruction import mean_psnr
    from carrara.training.devices import Placement
    from carrara.training.stages import train_autoencoder

    console.print(f"export: {exportable(recipe, None, None)}", soft_wrap=True)
    follow(train_autoencoder(recipe, dataset, out, start=start), "autoencoder", out)
    autoencoder = load_autoencoder(out / "model")
    measured = mean_psnr(autoencoder, dataset, Placement.choose().device)
    console.print(f"{out / 'model'}: {measured}", soft_wrap=True)
    return autoencoder


def run_diffusion(
    recipe: DiffusionRecipe,
    dataset: Dataset,
    autoencoder: StoredAutoencoder | None,
    out: Path,
    start: Model | None = None,
) -> None:
    """Stage two with bars; None goes with a recipe for pixels."""
    from carrara.interop.exportable import exportable
    from carrara.training.condition_columns import TrainingRows
    from carrara.training.stages import fitted, train_diffusion

    words = exportable(fitted(recipe, dataset), autoencoder, TrainingRows(dataset), start=start)
    console.print(f"export: {words}", soft_wrap=True)
    follow(train_diffusion(recipe, dataset, autoencoder, out, start=start), "diffusion", out)


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
    from carrara.training.averaged_model import write_averaged
    from carrara.training.run_changes import recipe_file

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists already; name another folder, or remove it")
    train = named(str(recipe_file(run, lambda file: named(str(file))))).train
    made = write_averaged(run, train, out, length=length, best=best)
    console.print(
        f"{out}: the average of length {train.ema if length is None else length:g} after {made.seen} pictures "
        f"({made.source})",
        soft_wrap=True,
    )
