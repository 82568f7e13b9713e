"""`carrara show`: pictures that teach, as PNG, GIF or page by the ending of the name given with --out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from carrara.cli import progress
from carrara.cli.options import Destination, ModelFolder, Seed, options
from carrara.config import Config
from carrara.errors import UserError
from carrara.generation.options import Label
from carrara.terminal import console

if TYPE_CHECKING:
    from carrara.lessons.output import Exhibit

show = typer.Typer(no_args_is_help=True, help="See how diffusion works: pictures that teach.")

Moments = Annotated[int, Field(ge=2, le=20, description="Number of moments shown.")]
Prompt = Annotated[str, typer.Argument(help="What to show; may be omitted.")]


Still = Annotated[Destination, Field(description="File to write: .png or .html.")]
Moving = Annotated[Destination, Field(description="File to write: .png, .gif or .html.")]
Grid = Annotated[str | None, Field(description="How the steps are spaced; by default as suits the model.")]
Guidance = Annotated[
    str | None,
    Field(
        description="Strength of the guidance: how closely to follow the prompt; 1 is off; or by name, apg:4."
    ),
]


class Forward(Config):
    """The forward process of a picture."""

    out: Moving
    schedule: str = Field("linear", description="The schedule: linear (DDPM), cosine, flow and more.")
    size: int = Field(96, ge=8, le=512, description="Side in pixels at which it is shown.")
    columns: Moments = 9
    seed: Seed = 0


class Reverse(Config):
    """The reverse process of a model."""

    out: Moving
    label: Label = None
    steps: int = Field(50, description="Number of steps from noise to picture.")
    sampler: str = Field("ddim", description="The sampler: ddim, ancestral (DDPM's own) and more.")
    grid: Grid = None
    guidance: Guidance = None
    columns: Moments = 9
    seed: Seed = 0


class Schedules(Config):
    """A plot of the schedules."""

    out: Still


class Compared(Config):
    """Samplers beside each other."""

    out: Still
    evaluations: str = Field(
        "10,20,40", description="Evaluations of the network per sampler, separated by commas."
    )
    samplers: str = Field("", description="Samplers to compare, separated by commas; by default nine.")
    count: int = Field(2, ge=1, le=64, description="Number of pictures over which distances are averaged.")
    grid: Grid = None
    guidance: Guidance = None
    seed: Seed = 0


@show.command()
@options(Forward)
def forward(picture: Annotated[Path, typer.Argument(help="Your picture.")], chosen: Forward) -> None:
    """Show the forward process on your own picture: step by step, and at once."""
    from carrara.lessons import forward as lesson
    from carrara.lessons.output import check_name

    check_name(chosen.out, moves=True)
    opened = lesson.open_picture(picture, chosen.size)
    how = chosen.model_dump(include={"schedule", "seed", "columns"})
    _keep(lesson.forward(opened, **how), chosen.out)


@show.command()
@options(Reverse)
def reverse(model: ModelFolder, chosen: Reverse, prompt: Prompt = "") -> None:
    """Show the reverse process of a model: z from noise to picture, and the estimate of the clean picture."""
    from carrara.cli.models import say_about
    from carrara.generation.sample import settings_for
    from carrara.interop.models import open_model
    from carrara.lessons.output import check_name
    from carrara.lessons.reverse import request
    from carrara.lessons.reverse import reverse as lesson
    from carrara.training.fastest import fastest_sampling

    check_name(chosen.out, moves=True)
    opened = open_model(model)
    row = request(opened, prompt, chosen.label)
    say_about(opened, prompt)
    given = chosen.model_dump(include={"seed", "steps", "sampler", "grid", "guidance"})
    settings = settings_for(opened, given)
    opened = fastest_sampling(opened, [row], settings)
    watching = lesson(opened, prompt, settings, columns=chosen.columns, label=chosen.label)
    _keep(progress.show(watching), chosen.out)


@show.command()
@options(Schedules)
def schedules(chosen: Schedules) -> None:
    """Plot alpha, sigma and log-SNR of every schedule."""
    from carrara.lessons.output import check_name
    from carrara.lessons.schedules import schedules as lesson

    check_name(chosen.out, moves=False)
    _keep(lesson(), chosen.out)


@show.command()
@options(Compared)
def samplers(model: ModelFolder, chosen: Compared, prompt: Prompt = "") -> None:
    """Compare samplers at equal numbers of evaluations, with the distance to a reference of 500 steps."""
    from carrara.cli.models import say_about
    from carrara.generation.sample import settings_for
    from carrara.interop.models import open_model
    from carrara.lessons.output import check_name
    from carrara.lessons.reverse import request
    from carrara.lessons.samplers import USUAL
    from carrara.lessons.samplers import samplers as lesson
    from carrara.training.fastest import fastest_sampling

    check_name(chosen.out, moves=False)
    wanted = _numbers(chosen.evaluations)
    names = tuple(name.strip() for name in chosen.samplers.split(",") if name.strip()) or USUAL
    opened = open_model(model)
    row = request(opened, prompt)
    say_about(opened, prompt)
    settings = settings_for(opened, chosen.model_dump(include={"seed", "grid", "guidance"}))
    opened = fastest_sampling(opened, [row] * chosen.count, settings)
    watching = lesson(opened, prompt, settings, evaluations=wanted, names=names, count=chosen.count)
    _keep(progress.show(watching), chosen.out)


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
