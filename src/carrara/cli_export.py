"""`carrara data export`: a data set as files that other programs read."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from carrara.cli_models import writable
from carrara.console import Bar, console


def data_export(
    dataset: Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")],
    destination: Annotated[Path, typer.Argument(help="The folder to make.", callback=writable)],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="Output format: webdataset, parquet, folder, or hf (for Hugging Face's load_from_disk).",
        ),
    ],
) -> None:
    """Write all pictures with their captions and labels in another format, which `carrara data import` reads too."""
    from carrara.data.exporting import export_pictures
    from carrara.data.table import Dataset

    pictures = Dataset.open(dataset)
    with Bar("exporting") as bar, closing(export_pictures(pictures, destination, form)) as reports:
        for report in reports:
            bar.show(report.done / report.total, f"{report.done} written", total=report.total)
    console.print(f"{len(pictures)} pictures in {destination} ({form})", soft_wrap=True)
