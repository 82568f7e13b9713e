"""`carrara sample`: pictures from a model, each PNG with the recipe that made it."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from carrara.cli_models import make_folder, open_model, writable
from carrara.console import Bar, console
from carrara.errors import UserError
from carrara.model_folder import STARTER

_LARGE = 4  # times the area that a model learned at: from here on the user is told


def sample(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A model folder, the run that made it, or starter: a small model of emoji that comes with Carrara."
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Argument(help="What to show; may be omitted for a model without captions.")
    ] = "",
    seed: Annotated[int, typer.Option(help="The same seed gives the same pictures.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 4,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Number of steps from noise to picture; by default 20, or as the model was released."
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="The sampler: ancestral, ddim, heun and more; by default dpmpp_2m, or as the model was released."
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="How the steps are spaced: uniform, karras …; by default as suits the model."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Strength of the guidance: how closely to follow the prompt; 1 is off, 2 is usual."
        ),
    ] = None,
    negative: Annotated[str, typer.Option(help="Negative prompt: what the picture should not show.")] = "",
    label: Annotated[
        str | None, typer.Option(help="The class to show, for a model that was trained on classes.")
    ] = None,
    picture: Annotated[
        list[str] | None,
        typer.Option(
            help="Picture for a model that takes one: a small picture, a map …; if it takes several, COLUMN=FILE each."
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="A picture that is white where --picture is to be filled in.")
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option(
            help='A layout as JSON, or a file with it: \'[{"label": "cat", "box": \\[x, y, width, height]}]\'.'
        ),
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(
            help="Pretend the original was this size, e.g. 1024x768 (models with a size condition)."
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Width x height in pixels, e.g. 96x64; by default the model's own size."),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(help="Arithmetic of the network: fp32, bf16, or auto for what is faster here."),
    ] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the PNGs.", callback=writable)] = Path("pictures"),
) -> None:
    """Make pictures from a prompt, a class, a picture …; each PNG carries the recipe that made it."""
    from carrara.generation.generate import decode, denoise, settings_for
    from carrara.generation.pictures import picture_recipe, png_note, save_png, short_hash
    from carrara.generation.requests import Asked, read
    from carrara.training.fastest import fastest_sampling

    if model is None:
        raise UserError(
            f"which model? Give its folder, the run that made it, or {STARTER}, which comes with Carrara: "
            f'carrara sample {STARTER} "red heart"'
        )
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
    if (areas := math.prod(settings.size(opened)) / opened.size**2) > _LARGE:
        sys.stderr.write(
            f"note: this model was trained at {opened.size} pixels; pictures {areas:.0f} times as large take at least "
            "as many times as long, and show things at their original scale\n"
        )
    make_folder(out)
    shown = request.told.get("caption") or label or ""
    hash_, written = opened.hash, []
    batch = 16
    opened = fastest_sampling(opened, [request.row] * min(count, batch), settings, precision)
    exact = {"precision": "bf16"} if opened.bf16 else {}
    with Bar("sampling") as bar:
        for first in range(0, count, batch):
            numbers = list(range(first, min(first + batch, count)))
            for moment in denoise(opened, [request.row] * len(numbers), numbers, settings):
                done = (first + len(numbers) * moment.step / moment.steps) / count
                words = f"step {moment.step} of {moment.steps}"
                bar.show(done, words, total=count * moment.steps, unit="denoisings")
            for number, made in zip(numbers, decode(opened, moment.z), strict=True):
                recipe = picture_recipe(hash_, settings, {**request.told, **exact}, number)
                path = out / f"{_slug(shown)}_{seed}_{number}_{short_hash(recipe)}.png"
                save_png(request.finish(made), path, recipe)
                written.append(path)
    for path in written:
        console.print(str(path), soft_wrap=True)


def _sides(size: str) -> tuple[int, int]:
    """Width and height from "96x64" or "64"; UserError of anything else."""
    match = re.fullmatch(r"\s*(\d+)\s*(?:[xX×*]\s*(\d+))?\s*", size)
    if not match:
        raise UserError(f"cannot read the size {size!r}; expected width x height, for example 96x64")
    return int(match[1]), int(match[2] or match[1])


def _slug(prompt: str) -> str:
    words = re.sub(r"[^\w]+", "-", prompt.strip().lower()).strip("-")
    return words[:60].encode()[:120].decode(errors="ignore") or "picture"
