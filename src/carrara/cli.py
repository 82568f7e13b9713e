"""The command line: one function a command; what a command needs is imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carrara.cli_average import average
from carrara.cli_data import data, encode_missing, keep_scale
from carrara.cli_doctor import doctor
from carrara.cli_exchange import adopt, export
from carrara.cli_inspect import app as inspect
from carrara.cli_plan import plan
from carrara.cli_reconstruct import reconstruct
from carrara.cli_search import run_contrastive
from carrara.cli_show import show
from carrara.console import Bar, Interrupted, console, fail, until_interrupted
from carrara.errors import UserError

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.data.table import Dataset
    from carrara.generation.model import Model
    from carrara.training.autoencoding import AutoencoderRecipe
    from carrara.training.diffusing import DiffusionRecipe
    from carrara.training.loop import Report

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, measure and use your own latent diffusion model, from a folder of captioned pictures.",
)
app.add_typer(data, name="data")
app.add_typer(show, name="show")
app.add_typer(inspect, name="inspect")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `carrara recipe`) or a TOML file.")],
    dataset: Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")],
    out: Annotated[Path, typer.Option(help="The run's folder; the same again continues it.")],
    autoencoder: Annotated[
        Path | None,
        typer.Option(help="For diffusion in latents: the autoencoder, a model folder or its run."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Begin from this model's network and weights, of the same kind (fine-tuning)."),
    ] = None,
    budget: Annotated[str | None, typer.Option(help="How long: 90s, 10m, 2h, or 4000steps.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value of the recipe, e.g. train.batch=16.")
    ] = None,
) -> None:
    """Train an autoencoder (stage one), a diffusion model (stage two, or on pixels), or a space to search in."""
    from carrara.data.table import Dataset
    from carrara.recipes.catalogue import named
    from carrara.training.autoencoding import AutoencoderRecipe, with_network
    from carrara.training.contrasting import ContrastiveRecipe

    changes = [*(change or []), *([f'train.budget="{budget}"'] if budget else [])]
    diffusion = start and is_diffusion(start)
    before = open_model(start) if start and diffusion else None
    begin = open_autoencoder(start) if start and not diffusion else None
    chosen = named(
        recipe, changes, network=begin.config if begin else None, model=before.config if before else None
    )
    pictures = Dataset.open(dataset)
    if isinstance(chosen, ContrastiveRecipe):
        if autoencoder or start:
            raise UserError(
                "this recipe makes a space of texts and pictures: leave --autoencoder and --start away"
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
        raise UserError("with --start the model is that one: leave the changes of model.… away, or --start")
    if chosen.pixels and autoencoder:
        raise UserError("this recipe works on pixels: leave --autoencoder away")
    if not chosen.pixels and not autoencoder and not before:
        raise UserError(
            "a diffusion model needs --autoencoder: train one with `carrara train kl_autoencoder …`"
        )
    stage_one = open_autoencoder(autoencoder) if autoencoder else before.autoencoder if before else None
    run_diffusion(chosen, pictures, stage_one, out, before)
    console.print(f"next: carrara sample {out}{example(out)} --out pictures", soft_wrap=True)


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="A model folder, or the run that made it.")],
    prompt: Annotated[
        str, typer.Argument(help="What to show; may stay away for a model without captions.")
    ] = "",
    seed: Annotated[int, typer.Option(help="The same seed gives the same pictures.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 4,
    steps: Annotated[int, typer.Option(help="Steps from noise to picture.")] = 20,
    sampler: Annotated[str, typer.Option(help="ancestral, ddim, heun, dpmpp_2m and more.")] = "dpmpp_2m",
    grid: Annotated[
        str | None, typer.Option(help="Where the steps are: uniform, karras …; usually what suits the model.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strongly the prompt pulls; 1 is off, 2 is usual.")
    ] = None,
    negative: Annotated[str, typer.Option(help="What to keep away from.")] = "",
    label: Annotated[
        str | None, typer.Option(help="The class, of a model that was trained on classes.")
    ] = None,
    picture: Annotated[
        list[str] | None,
        typer.Option(help="What a model is shown: a small picture, a map …; of several each as COLUMN=FILE."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="White where --picture is to be filled.")] = None,
    boxes: Annotated[
        str | None,
        typer.Option(help='A layout, or its file: \'[{"label": "cat", "box": [x, y, width, height]}]\'.'),
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(
            help="The size it is as if the original had, e.g. 1024x768, of a model that learned sizes."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Width x height in pixels, e.g. 96x64; the model's own otherwise.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the PNGs.")] = Path("pictures"),
) -> None:
    """Make pictures from a prompt, a class, a picture …; each PNG carries the recipe that made it."""
    from carrara.generation.generate import decode, denoise, settings_for
    from carrara.generation.pictures import picture_recipe, png_note, save_png, short_hash
    from carrara.generation.requests import Asked, read

    opened = open_model(model)
    note = png_note(opened.autoencoder.config.image_channels, opened.autoencoder.bits)
    width, height = _sides(size) if size else (None, None)
    given = {"seed": seed, "steps": steps, "sampler": sampler, "grid": grid, "guidance": guidance}
    settings = settings_for(opened, {**given, "width": width, "height": height})
    opened.latent_of(settings.size(opened))  # says where the size does not fit
    asked = Asked(prompt, negative, label, tuple(picture or ()), mask, boxes, original)
    request = read(opened, asked, settings.guidance)
    for remark in request.remarks:
        sys.stderr.write(f"note: {remark}\n")
    if note:
        sys.stderr.write(f"note: {note}\n")
    make_folder(out)
    hash_, written = opened.hash, []
    batch = 16
    with Bar("sampling") as bar:
        for first in range(0, count, batch):
            numbers = list(range(first, min(first + batch, count)))
            for moment in denoise(opened, [request.row] * len(numbers), numbers, settings):
                done = (first + len(numbers) * moment.step / moment.steps) / count
                words = f"step {moment.step} of {moment.steps}"
                bar.show(done, words, total=count * moment.steps, unit="denoisings")
            for number, made in zip(numbers, decode(opened, moment.z), strict=True):
                recipe = picture_recipe(hash_, settings, request.told, number)
                path = out / f"{_slug(prompt or label or '')}_{seed}_{number}_{short_hash(recipe)}.png"
                save_png(request.finish(made), path, recipe)
                written.append(path)
    for path in written:
        console.print(str(path), soft_wrap=True)


@app.command("recipe")
def show_recipe(
    name: Annotated[str, typer.Argument(help="A recipe; without it they are listed.")] = "",
) -> None:
    """List the recipes, or print one as TOML to change and train with."""
    from carrara.config import to_toml
    from carrara.recipes.catalogue import named, recipes

    if name:
        typer.echo(to_toml(named(name)), nl=False)
        return
    for known, sentence in recipes().items():
        console.print(f"{known:16} {sentence}", soft_wrap=True)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/quickstart"),
    budget: Annotated[
        str, typer.Option(help="How long it may train: 3m, 30m, 2h, or 500steps a stage.")
    ] = "12m",
    subset: Annotated[
        str, typer.Option("--set", help="default (food, animals, smileys), all, or categories.")
    ] = "default",
) -> None:
    """Make a text-to-image model from pictures that come with pip, and a page that shows what it can do."""
    from carrara.quickstart import quickstart as run

    run(out, budget, subset)


app.command()(adopt)
app.command()(average)
app.command()(plan)
app.command()(doctor)
app.command()(export)
app.command()(reconstruct)


# --- what commands share ---


def run_autoencoder(
    recipe: AutoencoderRecipe, dataset: Dataset, out: Path, start: StoredAutoencoder | None = None
) -> StoredAutoencoder:
    """Stage one with a bar, from ``start``'s weights if given; returns the autoencoder."""
    from carrara.autoencoders.stored import load_autoencoder
    from carrara.data.channels import check_channels
    from carrara.evaluation.reconstruction import mean_psnr
    from carrara.training.parallel import Placement
    from carrara.training.stages import train_autoencoder

    if converted := check_channels(dataset, recipe.network.image_channels, recipe.bits):
        console.print(f"note: {converted}", soft_wrap=True)
    placement = Placement.choose(precision=recipe.train.precision)
    console.print(
        f"training the autoencoder on {len(dataset.indices('train'))} pictures ({placement})", soft_wrap=True
    )
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
    from carrara.generation.model import latent_of
    from carrara.training.conditioning import checked, cut_notes, derive_for, learned, reads_of
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
    console.print(f"training the diffusion model ({placement})", soft_wrap=True)
    trained = train_diffusion(fitting, dataset, autoencoder, out, conditions=conditions, start=start)
    watch("diffusion", trained, out)


def watch(title: str, reports: Iterator[Report], out: Path) -> None:
    """Shows a training's reports; Ctrl-C saves and says how to go on."""
    import time

    saved = f"stopped and saved in {out}; the same command again continues"
    any_step = False
    with Bar(title) as bar:
        recent: tuple[float, int] | None = None
        rate = 0.0
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
            bar.show(report.fraction, f"loss {loss:.4f} · {report.seen} seen · {rate:.0f} pictures/s")
    if not any_step:
        console.print(f"nothing to do: {out} is trained already", soft_wrap=True)


def example(run: Path) -> str:
    """How a request to a run's model may be stated, e.g. " --label cat"."""
    return example_for(open_model(run))


def example_for(model: Model) -> str:
    """How a request to a model may be stated."""
    words = {
        "text": ' "a prompt"',
        "boxes": ' --boxes \'[{"label": …, "box": [0.1, 0.1, 0.5, 0.5]}]\'',
    }
    found = ""
    pictures = {str(encoder.column) for encoder in model.conditions.values() if encoder.form == "picture"}
    for encoder in model.conditions.values():
        form = str(encoder.form)
        if form == "picture":
            found += " --picture FILE" if len(pictures) == 1 else f" --picture {encoder.column}=FILE"
        found += f" --label {encoder.classes[0]!r}" if form == "label" else words.get(form, "")  # type: ignore[index]
        found += " --mask FILE" if form == "picture" and encoder.config.shows == "masked" else ""  # type: ignore[union-attr]
    return found


def open_autoencoder(path: Path) -> StoredAutoencoder:
    """From a model folder, from the run that made it, or from a folder in the layout of diffusers."""
    from carrara.interop import diffusers_autoencoder

    return diffusers_autoencoder.open_autoencoder(model_in(path))


def is_diffusion(path: Path) -> bool:
    """Whether a folder, or the run that made it, holds a diffusion model."""
    from carrara.model_folder import ABOUT, read_about

    found = model_in(path)
    return (found / ABOUT).is_file() and read_about(found).get("kind") == "diffusion"


def open_model(path: Path) -> Model:
    """A diffusion model from its folder or its run, on the GPU where there is one."""
    from carrara.generation.model import load_model
    from carrara.training.parallel import Placement

    return load_model(model_in(path)).to(Placement.choose().device)


def model_in(path: Path) -> Path:
    """``path`` itself, or the finished model inside a run."""
    if (path / "model" / "model.toml").is_file():
        return path / "model"
    if (path / "checkpoints").is_dir():
        raise UserError(f"the run in {path} has not finished: the same `carrara train` again continues it")
    return path


def say_about(model: Model, prompt: str) -> None:
    """What a user should know of this prompt and this model, on standard error."""
    from carrara.evaluation.prompts import remarks

    for remark in remarks(model, prompt):
        sys.stderr.write(f"note: {remark}\n")


def make_folder(path: Path) -> None:
    """The folder, made where it is missing; UserError where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from None


def _sides(size: str) -> tuple[int, int]:
    """Width and height from "96x64" or "64"; UserError of anything else."""
    import re

    match = re.fullmatch(r"\s*(\d+)\s*(?:[xX×*]\s*(\d+))?\s*", size)
    if not match:
        raise UserError(f"cannot read the size {size!r}; expected width x height, for example 96x64")
    return int(match[1]), int(match[2] or match[1])


def _slug(prompt: str) -> str:
    import re

    words = re.sub(r"[^\w]+", "-", prompt.strip().lower()).strip("-")
    return words[:60].encode()[:120].decode(errors="ignore") or "picture"


def main() -> None:
    """Runs a command; an error the user can mend is one line and exit status 2, Ctrl-C is 130."""
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer returns this for a Ctrl-C that it met
            fail("stopped; the same command again continues")
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        fail(str(error))
        sys.exit(2)
    except Interrupted as stop:
        fail(str(stop))
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command line itself
            if message := " ".join(error.format_message().split()):  # empty where the help was shown instead
                fail(message)
            sys.exit(2)
        raise
