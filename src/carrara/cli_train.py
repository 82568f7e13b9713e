"""`carrara train`: stage one, stage two, or a space to search in, and what the quickstart shares with it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carrara.cli_data import encode_missing, keep_scale
from carrara.cli_models import example, is_diffusion, open_autoencoder, open_model, writable
from carrara.cli_search import run_contrastive
from carrara.console import Bar, console, per_second, until_interrupted
from carrara.errors import UserError

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.data.table import Dataset
    from carrara.generation.model import Model
    from carrara.training.autoencoding import AutoencoderRecipe
    from carrara.training.diffusing import DiffusionRecipe
    from carrara.training.loop import Report


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `carrara recipe`) or a TOML file.")],
    dataset: Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")],
    out: Annotated[
        Path,
        typer.Option(
            help="The run's folder; the same again continues it, with a larger --budget for longer.",
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
            help="How long to train: 90s, 10m, 2h, or 4000steps; by default the recipe's (see `carrara recipe NAME`)."
        ),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value of the recipe, e.g. train.batch=16.")
    ] = None,
) -> None:
    """Train an autoencoder (stage one), a diffusion model (stage two, or on pixels), or a joint space for search."""
    from carrara.recipes.catalogue import named

    changes = [*(change or []), *([f'train.budget="{budget}"'] if budget else [])]
    diffusion = start and is_diffusion(start)
    before = open_model(start) if start and diffusion else None
    begin = open_autoencoder(start) if start and not diffusion else None
    chosen = named(
        recipe, changes, network=begin.config if begin else None, model=before.config if before else None
    )
    from carrara.data.keep.advice import few  # after it: a wrong name is answered before torch is imported
    from carrara.data.table import Dataset
    from carrara.training.autoencoding import AutoencoderRecipe, with_network
    from carrara.training.contrasting import ContrastiveRecipe

    pictures = Dataset.open(dataset)
    for note in few(len(pictures.indices("train"))):
        console.print(f"note: {note}", soft_wrap=True)
    if isinstance(chosen, ContrastiveRecipe):
        if autoencoder or start:
            raise UserError(
                "this recipe makes a joint space of texts and pictures: omit --autoencoder and --start"
            )
        run_contrastive(chosen, pictures, out)
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
    import torch

    from carrara.autoencoders.stored import load_autoencoder
    from carrara.data.channels import check_channels
    from carrara.evaluation.reconstruction import mean_psnr
    from carrara.interop.exportable import exportable
    from carrara.training.continuing import steps_made
    from carrara.training.parallel import Placement
    from carrara.training.preflight import check_memory
    from carrara.training.stages import check_autoencoder, train_autoencoder

    if converted := check_channels(dataset, recipe.network.image_channels, recipe.bits):
        console.print(f"note: {converted}", soft_wrap=True)
    if not steps_made(out):
        with torch.device("meta"):
            check_autoencoder(recipe, recipe.network.build(), dataset, start)
        check_memory(recipe, dataset)
    placement = Placement.choose(precision=recipe.train.precision)
    console.print(f"export: {exportable(recipe, None, None)}", soft_wrap=True)
    console.print(f"training the autoencoder on {len(dataset.indices('train'))} pictures", soft_wrap=True)
    _say_mirrored(recipe)
    watch("autoencoder", train_autoencoder(recipe, dataset, out, start=start), out)
    autoencoder = load_autoencoder(out / "model")
    measured = mean_psnr(autoencoder, dataset, placement.device)
    console.print(f"{out / 'model'}: {measured}", soft_wrap=True)
    return autoencoder


def run_diffusion(
    recipe: DiffusionRecipe,
    dataset: Dataset,
    autoencoder: StoredAutoencoder | None,
    out: Path,
    start: Model | None = None,
) -> None:
    """Latents where they are missing, then stage two with a bar; None goes with a recipe for pixels."""
    from carrara.training.continuing import steps_made
    from carrara.training.preflight import check_memory
    from carrara.training.stages import fitted

    if not steps_made(out):
        fitting = fitted(recipe, dataset)
        worked_on = fitting.pixels.autoencoder() if fitting.pixels else autoencoder
        check_memory(fitting, dataset, worked_on, start.conditions if start else None)
    trained = diffusion_steps(recipe, dataset, autoencoder, out, start)
    console.print("training the diffusion model", soft_wrap=True)
    watch("diffusion", trained, out)


def diffusion_steps(
    recipe: DiffusionRecipe,
    dataset: Dataset,
    autoencoder: StoredAutoencoder | None,
    out: Path,
    start: Model | None = None,
) -> Generator[Report]:
    """The same without the bar of stage two: its reports."""
    from carrara.generation.model import latent_of
    from carrara.interop.exportable import exportable
    from carrara.training.conditioning import TrainingRows, checked, cut_notes, derive_for, learned, reads_of
    from carrara.training.fastest import fastest_encoding
    from carrara.training.parallel import Placement
    from carrara.training.stages import feed_of, fitted, train_diffusion

    fitting = fitted(recipe, dataset)
    if dropped := sorted(recipe.model.conditions.keys() - fitting.model.conditions.keys()):
        if start:
            raise UserError(
                f"the model to begin from needs {', '.join(dropped)}, for which the data has no column"
            )
        console.print(
            f"the data has no column for {', '.join(dropped)}: training without it, unconditionally",
            soft_wrap=True,
        )
    reads = reads_of(fitting.model, dataset)
    parts = dict(start.conditions.items()) if start else fitting.model.conditions
    for known in checked(parts, dataset, reads=reads):
        console.print(f"note: {known}", soft_wrap=True)
    placement = Placement.choose(precision=recipe.train.precision)
    worked_on = fitting.pixels.autoencoder() if fitting.pixels else autoencoder
    assert worked_on is not None
    if not fitting.pixels:
        placement = fastest_encoding(worked_on, placement, recipe.train.precision)
    feed = feed_of(fitting, dataset, worked_on)
    for needed in feed.needed():
        encode_missing(dataset, worked_on, placement, feed.variants, rows=needed.rows, size=needed.size)
    if not fitting.pixels:
        keep_scale(worked_on, feed.measured)
        if not start and (note := feed.scale_note()):
            console.print(note, soft_wrap=True)
    if start:
        conditions = start.conditions
    else:
        conditions = learned(fitting.model, dataset, latent_of(feed.scaled()), fitting.train.seed)
    conditions.to(placement.device)
    for note in cut_notes(conditions, reads, dataset):
        console.print(f"note: {note}", soft_wrap=True)
    with Bar("conditions") as bar:
        for report in derive_for(conditions, reads, dataset):
            bar.show(report.done / max(1, report.total), f"{report.done} of {report.total} pictures")
    console.print(f"export: {exportable(fitting, worked_on, TrainingRows(dataset))}", soft_wrap=True)
    _say_mirrored(fitting)
    return train_diffusion(fitting, dataset, autoencoder, out, conditions=conditions, start=start)


def _say_mirrored(recipe: AutoencoderRecipe | DiffusionRecipe) -> None:
    from carrara.training.mirroring import note

    if said := note(recipe):
        console.print(f"note: {said}", soft_wrap=True)


def watch(title: str, reports: Iterator[Report], out: Path) -> None:
    """Shows a training's reports; Ctrl-C saves and says how to go on."""
    import time

    from carrara.training.machine import Sharing

    saved = f"stopped and saved in {out}; the same command again continues"
    any_step = False
    with Bar(title) as bar:
        recent: tuple[float, int] | None = None
        rate, sharing = 0.0, Sharing()
        for report in until_interrupted(reports, saved=saved):
            any_step, now = True, time.monotonic()
            recent = recent or (now, report.seen)
            if now - recent[0] > 2 or (now > recent[0] and not rate):
                rate, recent = (report.seen - recent[1]) / (now - recent[0]), (now, report.seen)
            if report.note:
                bar.say(report.note)
            if not report.losses:
                continue
            loss = sum(report.losses.values())
            speed = f" · {per_second(rate, 'pictures')}" if rate else ""
            words = f"loss {loss:.4f} · {report.seen} seen{speed}{sharing.words()}"
            bar.show(report.fraction, words + (f" · {report.next}" if report.next else ""))
    if not any_step:
        console.print(
            f"nothing to do: {out} is trained already; a larger --budget goes on from it", soft_wrap=True
        )
