"""`carrara adopt` and `carrara export`: other programs' weights and formats, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carrara.cli_models import writable
from carrara.console import console
from carrara.errors import UserError, nearest

_FORMATS = ("diffusers",)


def adopt(
    source: Annotated[
        Path,
        typer.Argument(help="A folder in the layout of diffusers: a pipeline, a denoiser or an autoencoder."),
    ],
    out: Annotated[Path, typer.Argument(help="The model folder to make.", callback=writable)],
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Side of its pictures in pixels; by default what the model states."),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the passport.")] = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option(
            help="Denoisers only: the autoencoder whose latents it works on; without one, it works on pixels."
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Denoisers only: the folder of its text encoder; give it twice for two."),
    ] = None,
    scheduler: Annotated[
        Path | None, typer.Option(help="Denoisers only: the folder with its scheduler_config.json.")
    ] = None,
) -> None:
    """Turn a model in the layout of diffusers into a Carrara model, to sample, fine-tune and export again."""
    from carrara.interop.diffusers_autoencoder import find, read
    from carrara.interop.diffusers_pipeline import is_denoiser
    from carrara.model_folder import ABOUT

    _check_free(out)
    if not source.exists():
        siblings = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
        raise UserError(f"there is nothing at {source}{nearest(source.name, siblings) if siblings else ''}")
    if (source / ABOUT).is_file():
        raise UserError(f"{source} is a model of Carrara already: give it as it is")
    if is_denoiser(source):
        _adopt_model(source, out, size, licence, autoencoder, text or [], scheduler)
        return
    if find(source) is None:
        raise UserError(
            f"{source} is neither a pipeline nor an autoencoder of diffusers: expected a folder with a "
            "model_index.json or a config.json"
        )
    for option, given in (("--autoencoder", autoencoder), ("--text", text), ("--scheduler", scheduler)):
        if given:
            raise UserError(f"{source} is an autoencoder: {option} belongs to a denoiser")
    stored = read(source, size=size, licence=licence)
    stored.save(out)
    weights = sum(p.numel() for p in stored.module.parameters())
    console.print(
        f"{out}: {stored.config.kind}, {stored.config.image_channels} channels of {stored.size} px to "
        f"{stored.module.channels} of {stored.size // stored.config.factor} (factor {stored.config.factor}), "
        f"{weights:,} weights",
        soft_wrap=True,
    )
    console.print(f"next: carrara train text_ldm DATASET --autoencoder {out} --out RUN", soft_wrap=True)


def _adopt_model(
    source: Path,
    out: Path,
    size: int | None,
    licence: str | None,
    autoencoder: Path | None,
    texts: list[Path],
    scheduler: Path | None,
) -> None:
    from carrara.cli_models import example_for
    from carrara.interop.diffusers_pipeline import read

    model, remarks, guidance = read(
        source, size=size, licence=licence, autoencoder=autoencoder, texts=texts, scheduler=scheduler
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


def export(
    model: Annotated[Path, typer.Argument(help="A model folder, or the run that made it.")],
    dest: Annotated[Path, typer.Argument(help="The folder to make.", callback=writable)],
    format: Annotated[str, typer.Option(help=f"What to write: {', '.join(_FORMATS)}.")] = _FORMATS[0],
) -> None:
    """Write a diffusion model as a pipeline, or an autoencoder, for another program."""
    from carrara.cli_models import is_diffusion, open_autoencoder
    from carrara.generation.model import load_model
    from carrara.interop import diffusers_autoencoder, diffusers_pipeline_export
    from carrara.model_folder import model_in

    if format not in _FORMATS:
        raise UserError(f"no format is called {format!r}{nearest(format, _FORMATS)}")
    _check_free(dest)
    if is_diffusion(model):
        remarks = diffusers_pipeline_export.write(load_model(model_in(model)), dest)
        what = "the model"
    else:
        remarks = diffusers_autoencoder.write(open_autoencoder(model), dest)
        what = "the autoencoder"
    console.print(f"{dest}: {what}, as {format} reads it", soft_wrap=True)
    for remark in remarks:
        console.print(f"note: {remark}", soft_wrap=True)


def _check_free(folder: Path) -> None:
    """UserError where something is there that would be lost."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise UserError(f"{folder} exists already; name another folder, or remove it")
