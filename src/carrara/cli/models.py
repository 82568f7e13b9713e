"""Models as a command names them: by their folder or by the run that made them, and what is said of them.

`carrara adopt` and `carrara export`: other programs' weights and formats, in and out.

`carrara inspect`: a model measured, as a page and as numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import Field, field_validator

from carrara.cli.options import (
    AutoencoderFolder,
    DatasetFolder,
    Destination,
    ModelFolder,
    NewFolder,
    options,
)
from carrara.cli.progress import show
from carrara.config import Config
from carrara.errors import UserError, nearest
from carrara.files import check_writable, write_atomically
from carrara.interop.models import open_model
from carrara.terminal import console

if TYPE_CHECKING:
    from carrara.evaluation.autoencoder import Inspection as Measured
    from carrara.generation.model import Model


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


def say_about(model: Model, prompt: str) -> None:
    """What a user should know of this prompt and this model, on standard error."""
    from carrara.generation.request import remarks

    for remark in remarks(model, prompt):
        sys.stderr.write(f"note: {remark}\n")


def make_folder(path: Path) -> None:
    """The folder, made where it is missing; UserError where it cannot be."""
    check_writable(path)
    path.mkdir(parents=True, exist_ok=True)


class Adoption(Config):
    """What a model in the layout of diffusers does not say itself."""

    size: int | None = Field(
        None, ge=1, description="Side of its pictures in pixels; by default what the model states."
    )
    licence: str | None = Field(None, description="Licence of the weights, for the passport.")
    autoencoder: Path | None = Field(
        None,
        description="Denoisers only: the autoencoder whose latents it works on; without one, it works on pixels.",
    )
    text: tuple[Path, ...] = Field(
        (), description="Denoisers only: the folder of its text encoder; give it twice for two."
    )
    scheduler: Path | None = Field(
        None, description="Denoisers only: the folder with its scheduler_config.json."
    )


@options(Adoption)
def adopt(
    source: Annotated[
        Path,
        typer.Argument(help="A folder in the layout of diffusers: a pipeline, a denoiser or an autoencoder."),
    ],
    out: NewFolder,
    chosen: Adoption,
) -> None:
    """Turn a model in the layout of diffusers into a Carrara model, to sample, fine-tune and export again."""
    from carrara.interop.diffusers.autoencoder import find, read
    from carrara.interop.diffusers.pipeline import is_denoiser
    from carrara.model_folder import ABOUT

    _check_free(out)
    if not source.exists():
        siblings = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
        raise UserError(f"there is nothing at {source}{nearest(source.name, siblings) if siblings else ''}")
    if (source / ABOUT).is_file():
        raise UserError(f"{source} is a model of Carrara already: give it as it is")
    if is_denoiser(source):
        _adopt_model(source, out, chosen)
        return
    if find(source) is None:
        raise UserError(
            f"{source} is neither a pipeline nor an autoencoder of diffusers: expected a folder with a "
            "model_index.json or a config.json"
        )
    for option in ("autoencoder", "text", "scheduler"):
        if getattr(chosen, option):
            raise UserError(f"{source} is an autoencoder: --{option} belongs to a denoiser")
    stored = read(source, size=chosen.size, licence=chosen.licence)
    stored.save(out)
    weights = sum(p.numel() for p in stored.module.parameters())
    console.print(
        f"{out}: {stored.config.kind}, {stored.config.image_channels} channels of {stored.size} px to "
        f"{stored.module.channels} of {stored.size // stored.config.factor} (factor {stored.config.factor}), "
        f"{weights:,} weights",
        soft_wrap=True,
    )
    console.print(f"next: carrara train text_ldm DATASET --autoencoder {out} --out RUN", soft_wrap=True)


def _adopt_model(source: Path, out: Path, chosen: Adoption) -> None:
    from carrara.interop.diffusers.pipeline import read

    model, remarks, guidance = read(
        source,
        size=chosen.size,
        licence=chosen.licence,
        autoencoder=chosen.autoencoder,
        texts=list(chosen.text),
        scheduler=chosen.scheduler,
    )
    model.save(out)
    weights = sum(p.numel() for p in model.network.parameters())
    channels, height, width = model.latent_shape
    guides = ", ".join(model.conditions) or "nothing"
    console.print(
        f"{out}: diffusion ({model.config.denoiser.kind}, {weights:,} weights) on {channels} channels of "
        f"{width} x {height}, for pictures of {model.size} px, guided by {guides}; "
        f"{model.config.schedule}, {model.config.parameterization}",
        soft_wrap=True,
    )
    for remark in remarks:
        console.print(f"note: {remark}", soft_wrap=True)
    asked = f" --guidance {guidance:g}" if guidance != 1 else ""
    console.print(f"next: carrara sample {out}{example_for(model)}{asked} --out pictures", soft_wrap=True)


class Export(Config):
    """For which program."""

    format: Literal["diffusers"] = Field("diffusers", description="Program that will read it.")


@options(Export)
def export(model: ModelFolder, dest: NewFolder, chosen: Export) -> None:
    """Write a diffusion model as a pipeline, or an autoencoder, for another program."""
    from carrara.generation.model import load_model
    from carrara.interop.diffusers import autoencoder as diffusers_autoencoder
    from carrara.interop.diffusers import pipeline_export
    from carrara.interop.models import is_diffusion, open_autoencoder
    from carrara.model_place import model_in

    _check_free(dest)
    if is_diffusion(model):
        remarks = pipeline_export.write(load_model(model_in(model)), dest)
        what = "the model"
    else:
        remarks = diffusers_autoencoder.write(open_autoencoder(model), dest)
        what = "the autoencoder"
    console.print(f"{dest}: {what}, as {chosen.format} reads it", soft_wrap=True)
    for remark in remarks:
        console.print(f"note: {remark}", soft_wrap=True)


def _check_free(folder: Path) -> None:
    """UserError where something is there that would be lost."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise UserError(f"{folder} exists already; name another folder, or remove it")


app = typer.Typer(no_args_is_help=True, help="Measure a model: a page to read, and its numbers as JSON.")


@app.callback()
def inspect() -> None:
    """Measure a model."""


class Inspection(Config):
    """How an autoencoder is measured."""

    out: Destination | None = Field(
        None, description="HTML page to write; by default, in the run or beside the model's folder."
    )
    count: int = Field(1000, ge=1, description="Largest number of pictures to measure on.")
    lpips_weights: Path | None = Field(
        None, description="Weights of AlexNet for LPIPS: a .pth, .safetensors or .ckpt file."
    )
    feature_weights: Path | None = Field(
        None,
        description="Weights of EfficientNet-Lite0 for the kernel distance: a .pth or .safetensors file.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "fp32",
        description="Precision of the arithmetic: fp32 (comparable between machines), bf16, or auto for the faster.",
    )

    @field_validator("out")
    @classmethod
    def _is_a_page(cls, out: Path | None) -> Path | None:
        if out is not None and out.suffix.lower() != ".html":
            raise UserError(f"{out}: expected a name that ends in .html")
        return out


@app.command()
@options(Inspection)
def autoencoder(model: AutoencoderFolder, dataset: DatasetFolder, chosen: Inspection) -> None:
    """Measure an autoencoder on held-out pictures: reconstruction, latents, and a verdict in words."""
    from carrara.dataset.channels import check_channels
    from carrara.dataset.dataset import Dataset
    from carrara.evaluation.autoencoder import inspect
    from carrara.interop.models import open_autoencoder
    from carrara.model_place import model_in
    from carrara.training.devices import Placement
    from carrara.training.fastest import fastest_encoding

    opened, pictures = open_autoencoder(model), Dataset.open(dataset)
    if note := check_channels(pictures, int(opened.config.image_channels), opened.bits):
        console.print(f"note: {note}", soft_wrap=True)
    folder = model_in(model).resolve()
    name = "inspect.html" if folder.name == "model" else f"{folder.name}-inspect.html"
    page = chosen.out or folder.parent / name
    make_folder(page.parent)
    precision = chosen.precision
    placement = fastest_encoding(opened, Placement.choose(precision=precision), precision)
    measuring = inspect(
        opened,
        pictures,
        placement.device,
        autocast=placement.autocast,
        count=chosen.count,
        lpips=chosen.lpips_weights,
        features=chosen.feature_weights,
    )
    _report(show(measuring), page, "bf16" if placement.bf16 else "fp32")


def _report(found: Measured, page: Path, precision: str) -> None:
    """The page, the numbers beside it, and the most important of them on the terminal."""
    from carrara.evaluation.autoencoder_page import inspection_page
    from carrara.evaluation.verdict import judge

    verdict = judge(found.numbers)
    document = found.document() | {"verdict": verdict.document(), "precision": precision}
    numbers = page.with_suffix(".json")
    write_atomically(numbers, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
    write_atomically(page, inspection_page(found, verdict))
    for figure in ("psnr", "ssim", "lpips", "kernel_distance"):
        value, unit, protocol = found.figures[figure]
        words = f"not measured: {protocol}" if value is None else f"{value:.4g} {unit}"
        console.print(f"{figure.replace('_', ' ')}: {words}", soft_wrap=True)
    if precision == "bf16":
        console.print("computed in bfloat16: compare only with figures that were, too", soft_wrap=True)
    console.print(f"{verdict}", soft_wrap=True)
    for finding in verdict.findings:
        console.print(f"  {finding.words}; {finding.rule.advice}", soft_wrap=True)
    console.print(f"{page}    {numbers}", soft_wrap=True)
