"""`carrara adopt` and `carrara export`: other programs' weights and formats, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carrara.console import console
from carrara.errors import UserError, nearest

_FORMATS = ("diffusers",)


def adopt(
    source: Annotated[
        Path,
        typer.Argument(help="A folder in the layout of diffusers: an autoencoder, or a pipeline with one."),
    ],
    out: Annotated[Path, typer.Argument(help="The model folder to make.")],
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Side in pixels of the pictures for it; else what it says itself."),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the passport.")] = None,
) -> None:
    """Make an existing autoencoder a Carrara model, to train diffusion on, fine-tune, and export again."""
    from carrara.interop.diffusers_autoencoder import find, read
    from carrara.model_folder import ABOUT

    _check_free(out)
    if not source.exists():
        siblings = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
        raise UserError(f"there is nothing at {source}{nearest(source.name, siblings) if siblings else ''}")
    if (source / ABOUT).is_file():
        raise UserError(f"{source} is a model of Carrara already: give it as it is")
    if find(source) is None:
        raise UserError(f"{source} is no autoencoder of diffusers: expected a folder with a config.json")
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


def export(
    model: Annotated[Path, typer.Argument(help="A model folder, or the run that made it.")],
    dest: Annotated[Path, typer.Argument(help="The folder to make.")],
    format: Annotated[str, typer.Option(help=f"What to write: {', '.join(_FORMATS)}.")] = _FORMATS[0],
) -> None:
    """Write an autoencoder, or that of a diffusion model, for another program."""
    from carrara.cli import open_autoencoder
    from carrara.interop.diffusers_autoencoder import write

    if format not in _FORMATS:
        raise UserError(f"no format is called {format!r}{nearest(format, _FORMATS)}")
    _check_free(dest)
    stored = open_autoencoder(model)
    remarks = write(stored, dest)
    console.print(f"{dest}: the autoencoder, as {format} reads it", soft_wrap=True)
    for remark in remarks:
        console.print(f"note: {remark}", soft_wrap=True)


def _check_free(folder: Path) -> None:
    """UserError where something is there that would be lost."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise UserError(f"{folder} exists already; name another folder, or remove it")
