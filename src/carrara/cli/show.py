"""`carrara show`: pictures that teach, as PNG, GIF or page by the ending of the name given with --out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carrara.cli import progress
from carrara.cli.models import writable
from carrara.errors import UserError
from carrara.terminal import console

if TYPE_CHECKING:
    from carrara.lessons.output import Exhibit

show = typer.Typer(no_args_is_help=True, help="See how diffusion works: pictures that teach.")

Out = Annotated[
    Path,
    typer.Option(help="File to write: .png, .gif or .html.", callback=writable),
]
StillOut = Annotated[Path, typer.Option(help="File to write: .png or .html.", callback=writable)]
ModelFolder = Annotated[Path, typer.Argument(help="A model folder, or the run that made it.")]
Prompt = Annotated[str, typer.Argument(help="What to show; may be omitted.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same pictures.")]
Grid = Annotated[str | None, typer.Option(help="How the steps are spaced; by default as suits the model.")]
Guidance = Annotated[
    float | None, typer.Option(help="Strength of the guidance: how closely to follow the prompt; 1 is off.")
]


@show.command()
def forward(
    picture: Annotated[Path, typer.Argument(help="Your picture.")],
    out: Out,
    schedule: Annotated[
        str, typer.Option(help="The schedule: linear (DDPM), cosine, flow and more.")
    ] = "linear",
    size: Annotated[int, typer.Option(min=8, max=512, help="Side in pixels at which it is shown.")] = 96,
    columns: Annotated[int, typer.Option(min=2, max=20, help="Number of moments shown.")] = 9,
    seed: Seed = 0,
) -> None:
    """Show the forward process on your own picture: step by step, and at once."""
    from carrara.lessons import forward as lesson
    from carrara.lessons.output import check_name

    check_name(out, moves=True)
    opened = lesson.open_picture(picture, size)
    _keep(lesson.forward(opened, schedule=schedule, seed=seed, columns=columns), out)


@show.command()
def reverse(
    model: ModelFolder,
    out: Out,
    prompt: Prompt = "",
    label: Annotated[
        str | None, typer.Option(help="The class to show, for a model that was trained on classes.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of steps from noise to picture.")] = 50,
    sampler: Annotated[
        str, typer.Option(help="The sampler: ddim, ancestral (DDPM's own) and more.")
    ] = "ddim",
    grid: Grid = None,
    guidance: Guidance = None,
    columns: Annotated[int, typer.Option(min=2, max=20, help="Number of moments shown.")] = 9,
    seed: Seed = 0,
) -> None:
    """Show the reverse process of a model: z from noise to picture, and the estimate of the clean picture."""
    from carrara.cli.models import say_about
    from carrara.generation.sample import settings_for
    from carrara.interop.models import open_model
    from carrara.lessons.output import check_name
    from carrara.lessons.reverse import request
    from carrara.lessons.reverse import reverse as lesson
    from carrara.training.fastest import fastest_sampling

    check_name(out, moves=True)
    opened = open_model(model)
    row = request(opened, prompt, label)
    say_about(opened, prompt)
    given = {"seed": seed, "steps": steps, "sampler": sampler, "grid": grid, "guidance": guidance}
    settings = settings_for(opened, given)
    opened = fastest_sampling(opened, [row], settings)
    _keep(progress.show(lesson(opened, prompt, settings, columns=columns, label=label)), out)


@show.command()
def schedules(out: StillOut) -> None:
    """Plot alpha, sigma and log-SNR of every schedule."""
    from carrara.lessons.output import check_name
    from carrara.lessons.schedules import schedules as lesson

    check_name(out, moves=False)
    _keep(lesson(), out)


@show.command()
def samplers(
    model: ModelFolder,
    out: StillOut,
    prompt: Prompt = "",
    evaluations: Annotated[
        str, typer.Option(help="Evaluations of the network per sampler, separated by commas.")
    ] = "10,20,40",
    only: Annotated[
        str, typer.Option("--samplers", help="Samplers to compare, separated by commas; by default nine.")
    ] = "",
    count: Annotated[
        int, typer.Option(min=1, max=64, help="Number of pictures over which distances are averaged.")
    ] = 2,
    grid: Grid = None,
    guidance: Guidance = None,
    seed: Seed = 0,
) -> None:
    """Compare samplers at equal numbers of evaluations, with the distance to a reference of 500 steps."""
    from carrara.cli.models import say_about
    from carrara.generation.sample import settings_for
    from carrara.interop.models import open_model
    from carrara.lessons.output import check_name
    from carrara.lessons.reverse import request
    from carrara.lessons.samplers import USUAL
    from carrara.lessons.samplers import samplers as lesson
    from carrara.training.fastest import fastest_sampling

    check_name(out, moves=False)
    wanted = _numbers(evaluations)
    names = tuple(name.strip() for name in only.split(",") if name.strip()) or USUAL
    opened = open_model(model)
    row = request(opened, prompt)
    say_about(opened, prompt)
    settings = settings_for(opened, {"seed": seed, "grid": grid, "guidance": guidance})
    opened = fastest_sampling(opened, [row] * count, settings)
    watching = lesson(opened, prompt, settings, evaluations=wanted, names=names, count=count)
    _keep(progress.show(watching), out)


def _numbers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= 1000 for word in words):
        raise UserError(
            f"cannot read the evaluations {text!r}; expected numbers from 1 to 1000, e.g. 10,20,40"
        )
    return sorted({int(word) for word in words})


def _keep(exhibit: Exhibit, out: Path) -> None:
    from carrara.lessons.output import save

    save(exhibit, out)
    console.print(str(out), soft_wrap=True)
