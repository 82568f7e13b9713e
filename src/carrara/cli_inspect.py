"""`carrara inspect`: a model measured, as a page and as numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from carrara.cli_models import writable
from carrara.console import Bar, console
from carrara.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Measure a model: a page to read, and its numbers as JSON.")


@app.callback()
def inspect() -> None:
    """Measure a model."""


@app.command()
def autoencoder(
    model: Annotated[Path, typer.Argument(help="An autoencoder's folder, or the run that made it.")],
    dataset: Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="HTML page to write; by default, in the run or beside the model's folder.", callback=writable
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Largest number of pictures to measure on.")] = 1000,
    lpips_weights: Annotated[
        Path | None, typer.Option(help="Weights of AlexNet for LPIPS: a .pth, .safetensors or .ckpt file.")
    ] = None,
    feature_weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights of EfficientNet-Lite0 for the kernel distance: a .pth or .safetensors file."
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(
            help="Arithmetic: fp32, so that figures compare between machines, bf16, or auto for the faster."
        ),
    ] = "fp32",
) -> None:
    """Measure an autoencoder on held-out pictures: reconstruction, latents, and a verdict in words."""
    from carrara.cli_models import make_folder, open_autoencoder
    from carrara.data.channels import check_channels
    from carrara.data.table import Dataset
    from carrara.evaluation.inspection import inspect
    from carrara.evaluation.inspection_page import inspection_page
    from carrara.evaluation.verdict import judge
    from carrara.model_folder import model_in
    from carrara.training.fastest import fastest_encoding
    from carrara.training.parallel import Placement

    if out is not None and out.suffix.lower() != ".html":
        raise UserError(f"{out}: expected a name that ends in .html")
    opened, pictures = open_autoencoder(model), Dataset.open(dataset)
    if note := check_channels(pictures, int(opened.config.image_channels), opened.bits):
        console.print(f"note: {note}", soft_wrap=True)
    folder = model_in(model).resolve()
    name = "inspect.html" if folder.name == "model" else f"{folder.name}-inspect.html"
    page = out or folder.parent / name
    make_folder(page.parent)
    placement = fastest_encoding(opened, Placement.choose(precision=precision), precision)
    measuring = inspect(
        opened,
        pictures,
        placement.device,
        autocast=placement.autocast,
        count=count,
        lpips=lpips_weights,
        features=feature_weights,
    )
    with Bar("inspecting") as bar:
        while True:
            try:
                bar.show(*next(measuring))
            except StopIteration as end:
                found = end.value
                break
    verdict = judge(found.numbers)
    exact = "bf16" if placement.bf16 else "fp32"
    document = found.document() | {"verdict": verdict.document(), "precision": exact}
    numbers = page.with_suffix(".json")
    _write(numbers, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
    _write(page, inspection_page(found, verdict))
    for figure in ("psnr", "ssim", "lpips", "kernel_distance"):
        value, unit, protocol = found.figures[figure]
        words = f"not measured: {protocol}" if value is None else f"{value:.4g} {unit}"
        console.print(f"{figure.replace('_', ' ')}: {words}", soft_wrap=True)
    if placement.bf16:
        console.print("computed in bfloat16: compare only with figures that were, too", soft_wrap=True)
    console.print(f"{verdict}", soft_wrap=True)
    for finding in verdict.findings:
        console.print(f"  {finding.words}; {finding.rule.advice}", soft_wrap=True)
    console.print(f"{page}    {numbers}", soft_wrap=True)


def _write(file: Path, text: str) -> None:
    """Whole or not at all; UserError where it cannot be written."""
    part = file.with_name(file.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None
