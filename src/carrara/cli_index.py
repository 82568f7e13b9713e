"""`carrara data index`: the indexes that a search would make when it is first asked, made before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carrara.cli_engine import Engine, Workers, hands
from carrara.console import console


def data_index(
    dataset: Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")],
    engine: Engine = "local",
    workers: Workers = None,
) -> None:
    """Build the indexes for search, or bring them up to date: of the words, and of large columns of vectors."""
    from carrara.data.search.indexing import covered
    from carrara.data.search.nearest import index_vectors
    from carrara.data.search.vectors import vector_columns
    from carrara.data.search.words import index_words
    from carrara.data.table import Dataset

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
