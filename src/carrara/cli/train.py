"""`carrara train`: stage one, stage two, or a space to search in, and what the quickstart shares with it.

`carrara average`: a model with averaged weights of any length, out of a run, also while it is being trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from carrara.cli.models import example
from carrara.cli.options import DatasetFolder, Destination, RecipeChanges, RecipeName, RunFolder, options
from carrara.cli.progress import follow
from carrara.cli.search import show_recall
from carrara.config import Config
from carrara.errors import UserError
from carrara.interop.models import is_diffusion, open_autoencoder, open_model
from carrara.terminal import console

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.dataset import Dataset
    from carrara.generation.model import Model
    from carrara.training.recipe import AutoencoderRecipe, DiffusionRecipe


class Training(RecipeChanges):
    """Where a run goes, and what it begins from."""

    out: Destination = Field(
        description="Run folder; give the same one to resume, and a larger --budget to train longer."
    )
    start: Path | None = Field(
        None, description="Fine-tune: start from the network and weights of this model, of the same kind."
    )


@options(Training)
def train(recipe: RecipeName, dataset: DatasetFolder, training: Training) -> None:
    """Train an autoencoder (stage one), a diffusion model (stage two, or on pixels), or a joint space for search."""
    from carrara.recipes.catalogue import named

    start = training.start
    diffusion = start and is_diffusion(start)
    before = open_model(start) if start and diffusion else None
    begin = open_autoencoder(start) if start and not diffusion else None
    network, model = begin.config if begin else None, before.config if before else None
    chosen = named(recipe, training.changes(), network=network, model=model)
    from carrara.dataset.dataset import Dataset
    from carrara.importing.summary import few  # after it: a wrong name is answered before torch is imported
    from carrara.training.autoencoder_task import with_network
    from carrara.training.recipe import AutoencoderRecipe, ContrastiveRecipe
    from carrara.training.stages import train_search_space

    pictures, out = Dataset.open(dataset), training.out
    for note in few(len(pictures.indices("train"))):
        console.print(f"note: {note}", soft_wrap=True)
    if isinstance(chosen, ContrastiveRecipe):
        if training.autoencoder or start:
            raise UserError(
                "this recipe makes a joint space of texts and pictures: omit --autoencoder and --start"
            )
        follow(train_search_space(chosen, pictures, out), "contrastive", out)
        show_recall(pictures, out)
    elif isinstance(chosen, AutoencoderRecipe):
        _check_stage_one(chosen, training, begin)
        run_autoencoder(with_network(chosen, begin), pictures, out, begin)
        console.print(f"next: carrara train text_ldm {dataset} --autoencoder {out} --out RUN", soft_wrap=True)
    else:
        _check_stage_two(chosen, training, before)
        stage_one = before.autoencoder if before else None
        if training.autoencoder:
            stage_one = open_autoencoder(training.autoencoder)
        run_diffusion(chosen, pictures, stage_one, out, before)
        console.print(f"next: carrara sample {out}{example(out)} --out pictures", soft_wrap=True)


def _check_stage_one(recipe: AutoencoderRecipe, training: Training, begin: StoredAutoencoder | None) -> None:
    """UserError where the options are another stage's; notes where it begins from an autoencoder of another sort."""
    if training.autoencoder:
        raise UserError("this recipe makes an autoencoder; to begin from an existing one give it as --start")
    if training.start and not begin:
        raise UserError(f"this recipe makes an autoencoder, and {training.start} is a diffusion model")
    if begin and begin.size != recipe.size:
        console.print(
            f"note: {training.start} was made at {begin.size} pixels; this trains at {recipe.size} (--set size=…)",
            soft_wrap=True,
        )
    if begin and begin.bits != recipe.bits:
        console.print(
            f"note: {training.start} was made for {begin.bits} bits; this trains at {recipe.bits} (--set bits=…)",
            soft_wrap=True,
        )


def _check_stage_two(recipe: DiffusionRecipe, training: Training, before: Model | None) -> None:
    """UserError where recipe and options do not fit each other."""
    if training.start and not before:
        raise UserError(
            f"this recipe makes a diffusion model, and {training.start} is an autoencoder: give it as --autoencoder"
        )
    if recipe.pixels and training.autoencoder:
        raise UserError("this recipe works on pixels: omit --autoencoder")
    if not recipe.pixels and not training.autoencoder and not before:
        raise UserError(
            "a diffusion model needs --autoencoder: train one with `carrara train kl_autoencoder …`"
        )


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


class Averaging(Config):
    """Which average of a run's weights, and where it goes."""

    out: Destination = Field(description="The model folder to make.")
    length: float | None = Field(
        None,
        ge=0.005,
        le=0.249,
        description="Share of the training that the average covers; by default the recipe's.",
    )
    best: bool = Field(False, description="Use the state that did best on held-out pictures, not the newest.")


@options(Averaging)
def average(run: RunFolder, chosen: Averaging) -> None:
    """Make a model from a run's weights, averaged over another length than its own, also while it still trains."""
    from carrara.recipes.catalogue import named
    from carrara.training.averaged_model import write_averaged
    from carrara.training.run_changes import recipe_file

    out, length = chosen.out, chosen.length
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists already; name another folder, or remove it")
    train = named(str(recipe_file(run, lambda file: named(str(file))))).train
    made = write_averaged(run, train, out, length=length, best=chosen.best)
    console.print(
        f"{out}: the average of length {train.ema if length is None else length:g} after {made.seen} pictures "
        f"({made.source})",
        soft_wrap=True,
    )
