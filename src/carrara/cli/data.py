"""`carrara data …`: pictures come in, and are encoded once for training on latents.

`carrara data export`: a data set as files that other programs read.

`carrara data index`: the indexes that a search would make when it is first asked, made before.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.cli.clean import data_caption, data_filter, data_stats
from carrara.cli.dedup import data_dedup, data_split
from carrara.cli.models import writable
from carrara.cli.options import Engine, Workers
from carrara.cli.progress import show
from carrara.cli.search import browse, search
from carrara.cli.versions import data_clean, data_restore, data_tag, data_versions
from carrara.errors import UserError
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
def data_import(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of pictures, a zip or tar, WebDataset, Parquet, COCO, a Hugging Face set on disk, a table "
            "of urls (CSV, JSONL, Parquet), or the word 'emoji' or 'scenes'."
        ),
    ],
    dataset: Annotated[Path, typer.Argument(help="The data set to make or to add to.")],
    held_out: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the pictures held out: never trained on.")
    ] = 0.05,
    subset: Annotated[
        str, typer.Option("--set", help="'emoji' only: default, all, or categories separated by commas.")
    ] = "default",
    count: Annotated[
        int | None, typer.Option(min=1, help="'scenes' only: number of pictures (4000 by default).")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of pictures that state none.")] = None,
    languages: Annotated[
        str,
        typer.Option(help="Language of captions that state none: a code (en), or keep (none), or detect."),
    ] = "detect",
    caption: Annotated[
        str | None,
        typer.Option(
            help='Caption of pictures that come without one, with columns in braces: "a photo of a {label}".'
        ),
    ] = None,
    numbers: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            help="Black and white of floats and of numbers beyond 16 bits: LOW..HIGH, or of one column depth=0..40.",
        ),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try again what could not be read or downloaded.")
    ] = False,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="URL lists only: download from private addresses too.")
    ] = False,
    ignore_robots_tag: Annotated[
        bool,
        typer.Option(
            "--ignore-robots-tag",
            help="URL lists only: download pictures even where X-Robots-Tag asks not to.",
        ),
    ] = False,
    most_megabytes: Annotated[
        int, typer.Option(min=1, max=128, help="URL lists only: skip files larger than this, in MB.")
    ] = 32,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.1, max=86400, help="URL lists only: time for one download in seconds, all tries together."
        ),
    ] = 60,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="URL lists only: downloads at a time.")] = 16,
    per_host: Annotated[
        int, typer.Option(min=1, max=64, help="URL lists only: downloads at a time from one host.")
    ] = 4,
    engine: Engine = "local",
    workers: Workers = None,
) -> None:
    """Import captioned pictures into a data set. Run it again to continue, or to add what is new."""
    summary = import_into(
        source,
        dataset,
        held_out=held_out,
        subset=subset,
        count=count,
        licence=licence,
        languages=languages,
        caption=caption,
        range=tuple(numbers or ()),
        retry=retry,
        allow_private=allow_private,
        ignore_robots_tag=ignore_robots_tag,
        most_megabytes=most_megabytes,
        seconds=seconds,
        at_once=at_once,
        per_host=per_host,
        engine=hands(engine, workers).importing(),
    )
    for line in summary.lines():
        console.print(line, soft_wrap=True)


@data.command("encode")
def data_encode(
    dataset: Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")],
    autoencoder: Annotated[
        Path | None,
        typer.Option(
            "--with", help="Autoencoder that makes latents: a model folder, or the run that made it."
        ),
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Store what pictures look like, to search by likeness.")
    ] = False,
    meaning: Annotated[
        bool, typer.Option("--meaning", help="Store what captions mean, to search by meaning.")
    ] = False,
    embedder: Annotated[
        list[str] | None,
        typer.Option(
            help="Store vectors of another embedder: a run of contrastive, a text encoder's folder, or a name."
        ),
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Encode the mirrored pictures too.")] = False,
    crops: Annotated[
        int,
        typer.Option(
            help="Crops of pictures that are not square: 1 takes the centre, 3 the start and the end too."
        ),
    ] = 1,
    engine: Engine = "local",
    workers: Workers = None,
) -> None:
    """Encode every picture once, for training on latents or for search. Run it again for new pictures."""
    from carrara.cli.search import chosen_embedders, embed_all
    from carrara.dataset.dataset import Dataset

    chosen = chosen_embedders(features, meaning, embedder or [])
    if not chosen and autoencoder is None:
        raise UserError(
            "nothing to encode with: give --with AUTOENCODER, --features, --meaning or --embedder"
        )
    if autoencoder is None and (flip or crops != 1):
        raise UserError("--flip and --crops are for latents: give --with AUTOENCODER")
    with hands(engine, workers) as working:
        if autoencoder is not None:
            _encode_latents(Dataset.open(dataset), autoencoder, flip, crops, working)
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
    from carrara.dataset.dataset import Dataset
    from carrara.exporting.exporting import export_pictures

    pictures = Dataset.open(dataset)
    show(export_pictures(pictures, destination, form))
    console.print(f"{len(pictures)} pictures in {destination} ({form})", soft_wrap=True)


data.command("export")(data_export)
data.command("stats")(data_stats)
data.command("dedup")(data_dedup)
data.command("split")(data_split)
data.command("filter")(data_filter)
data.command("caption")(data_caption)


def data_index(
    dataset: Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")],
    engine: Engine = "local",
    workers: Workers = None,
) -> None:
    """Build the indexes for search, or bring them up to date: of the words, and of large columns of vectors."""
    from carrara.dataset.dataset import Dataset
    from carrara.search.by_vector import index_vectors
    from carrara.search.by_words import index_words
    from carrara.search.indexes import covered
    from carrara.search.vector_columns import vector_columns

    pictures = Dataset.open(dataset)
    pictures.check_newest("be indexed")
    columns = vector_columns(pictures)
    with hands(engine, workers) as working:
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
