"""`carrara data …`: pictures come in, and are encoded once for training on latents.

`carrara data export`: a data set as files that other programs read.

`carrara data index`: the indexes that a search would make when it is first asked, made before.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from carrara.cli.clean import data_caption, data_filter, data_stats
from carrara.cli.dedup import data_dedup, data_split
from carrara.cli.options import DatasetFolder, NewFolder, Work, options
from carrara.cli.progress import show
from carrara.cli.search import browse, search
from carrara.cli.versions import data_clean, data_restore, data_tag, data_versions
from carrara.config import Config
from carrara.errors import UserError
from carrara.importing.options import Options
from carrara.ray_engine.engine import Hands, hands
from carrara.terminal import console

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.importing.summary import Summary


data = typer.Typer(no_args_is_help=True, help="Import pictures, put them in order, search and encode them.")
data.command("versions")(data_versions)
data.command("tag")(data_tag)
data.command("restore")(data_restore)
data.command("clean")(data_clean)


@data.command("import")
@options(Options, Work)
def data_import(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of pictures, a zip or tar, WebDataset, Parquet, COCO, a Hugging Face set on disk, a table "
            "of urls (CSV, JSONL, Parquet), or the word 'emoji' or 'scenes'."
        ),
    ],
    dataset: Annotated[Path, typer.Argument(help="The data set to make or to add to.")],
    chosen: Options,
    work: Work,
) -> None:
    """Import captioned pictures into a data set. Run it again to continue, or to add what is new."""
    engine = hands(work.engine, work.workers).importing()
    summary = import_into(source, dataset, **dict(chosen), engine=engine)
    for line in summary.lines():
        console.print(line, soft_wrap=True)


class Encoding(Config):
    """What a data set is encoded with."""

    autoencoder: Path | None = Field(
        None,
        description="Autoencoder that makes latents: a model folder, or the run that made it.",
        json_schema_extra={"flag": "--with"},
    )
    features: bool = Field(False, description="Store what pictures look like, to search by likeness.")
    meaning: bool = Field(False, description="Store what captions mean, to search by meaning.")
    embedder: tuple[str, ...] = Field(
        (),
        description="Store vectors of another embedder: a run of contrastive, a text encoder's folder, or a name.",
    )
    flip: bool = Field(False, description="Encode the mirrored pictures too.")
    crops: int = Field(
        1,
        description="Crops of pictures that are not square: 1 takes the centre, 3 the start and the end too.",
    )


@data.command("encode")
@options(Encoding, Work)
def data_encode(dataset: DatasetFolder, encoding: Encoding, work: Work) -> None:
    """Encode every picture once, for training on latents or for search. Run it again for new pictures."""
    from carrara.cli.search import chosen_embedders, embed_all
    from carrara.dataset.dataset import Dataset

    chosen = chosen_embedders(encoding.features, encoding.meaning, encoding.embedder)
    if not chosen and encoding.autoencoder is None:
        raise UserError(
            "nothing to encode with: give --with AUTOENCODER, --features, --meaning or --embedder"
        )
    if encoding.autoencoder is None and (encoding.flip or encoding.crops != 1):
        raise UserError("--flip and --crops are for latents: give --with AUTOENCODER")
    with hands(work.engine, work.workers) as working:
        if encoding.autoencoder is not None:
            _encode_latents(
                Dataset.open(dataset), encoding.autoencoder, encoding.flip, encoding.crops, working
            )
        embed_all(Dataset.open(dataset), chosen, working)


def _encode_latents(pictures: Dataset, autoencoder: Path, flip: bool, crops: int, hands: Hands) -> None:
    from carrara.dataset.channels import check_channels
    from carrara.dataset.latents import encode_missing, encoded, keep_scale, measured_scale, variants
    from carrara.interop.models import open_autoencoder
    from carrara.training.devices import Placement
    from carrara.training.fastest import fastest_encoding

    wanted = variants(flip, crops)
    opened = open_autoencoder(autoencoder)
    if note := check_channels(pictures, int(opened.config.image_channels), opened.bits):
        console.print(note, soft_wrap=True)
    if crops > 1 and not pictures.table.count_rows(filter="width != height"):
        console.print("all pictures are square: their crops are the same", soft_wrap=True)
    there = encoded(pictures, opened, wanted)
    placement = fastest_encoding(opened, Placement.choose())
    if there is None:
        console.print(f"encoding {len(pictures)} pictures ({placement})", soft_wrap=True)
        by = partial(hands.latents, autoencoder)
        show(encode_missing(pictures, opened, placement.device, wanted, autocast=placement.autocast, by=by))
        there = encoded(pictures, opened, wanted) or []
        done = "encoded"
    else:
        done = "nothing to do: encoded already"
    if note := keep_scale(opened, lambda: measured_scale(pictures, there)):
        console.print(note, soft_wrap=True)
    found = ", ".join(f"{variant} in {column}" for variant, column in zip(wanted, there, strict=True))
    console.print(f"{done}: {len(pictures)} pictures, {found}", soft_wrap=True)


class Export(Config):
    """What a data set is written as."""

    form: str = Field(
        description="Output format: webdataset, parquet, folder, or hf (for Hugging Face's load_from_disk).",
        json_schema_extra={"flag": "--format"},
    )


@options(Export)
def data_export(dataset: DatasetFolder, destination: NewFolder, chosen: Export) -> None:
    """Write all pictures with their captions and labels in another format, which `carrara data import` reads too."""
    from carrara.dataset.dataset import Dataset
    from carrara.exporting.exporting import export_pictures

    pictures = Dataset.open(dataset)
    show(export_pictures(pictures, destination, chosen.form))
    console.print(f"{len(pictures)} pictures in {destination} ({chosen.form})", soft_wrap=True)


data.command("export")(data_export)
data.command("stats")(data_stats)
data.command("dedup")(data_dedup)
data.command("split")(data_split)
data.command("filter")(data_filter)
data.command("caption")(data_caption)


@options(Work)
def data_index(dataset: DatasetFolder, work: Work) -> None:
    """Build the indexes for search, or bring them up to date: of the words, and of large columns of vectors."""
    from carrara.dataset.dataset import Dataset
    from carrara.search.by_vector import index_vectors
    from carrara.search.by_words import index_words
    from carrara.search.indexes import covered
    from carrara.search.vector_columns import vector_columns

    pictures = Dataset.open(dataset)
    pictures.check_newest("be indexed")
    columns = vector_columns(pictures)
    with hands(work.engine, work.workers) as working:
        made = index_words(pictures, working.indexes())
        made += [v.column for v in columns if index_vectors(pictures, v, working.indexes())]
    there = covered(pictures)
    for column in made:
        console.print(f"{column}: indexed, {there[column]} rows", soft_wrap=True)
    if not made:
        console.print("nothing to do: every index is up to date", soft_wrap=True)
    if small := [found.column for found in columns if found.column not in there]:
        console.print(f"compared one by one, as they are small: {', '.join(small)}", soft_wrap=True)


data.command("index")(data_index)
data.command("search")(search)
data.command("browse")(browse)


def import_into(source: str, dataset: Path, **options: Any) -> Summary:
    """Imports with a bar; returns the summary."""
    from carrara.importing.importing import import_pictures

    return show(import_pictures(source, dataset, **options))
