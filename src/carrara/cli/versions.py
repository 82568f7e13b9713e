"""`carrara data versions`, `tag`, `restore`, `clean`: what a data set was, and is no longer."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from carrara.cli.options import DatasetFolder, options
from carrara.cli.progress import show
from carrara.config import Config
from carrara.terminal import console


def data_versions(dataset: DatasetFolder) -> None:
    """List the versions of a data set: number, when, pictures, tags, what made it."""
    from carrara.dataset.dataset import Dataset
    from carrara.dataset.versions import versions

    opened = Dataset.open(dataset)
    found = versions(opened)
    width = max((len(" ".join(v.tags)) for v in found), default=0)
    for v in found:
        names = " ".join(v.tags).ljust(width)
        console.print(
            f"{v.number:>5}  {v.when:%Y-%m-%d %H:%M}  {v.pictures:>9}  {names}  {v.what}", soft_wrap=True
        )
    console.print(f"refer to a version as {opened.path}@{found[-1].number}, or by its tag", soft_wrap=True)


class Tagging(Config):
    """Which version gets the name, or loses it."""

    version: int | None = Field(None, ge=1, description="The version to name; by default the newest.")
    remove: bool = Field(False, description="Remove the name instead.")


@options(Tagging)
def data_tag(
    dataset: Annotated[Path, typer.Argument(help="A data set, or DATASET@NUMBER for an older version.")],
    name: Annotated[str, typer.Argument(help="The name, as in DATASET@NAME.")],
    chosen: Tagging,
) -> None:
    """Name a version of a data set, so that it is kept and can be opened by that name."""
    from carrara.dataset.dataset import Dataset
    from carrara.dataset.versions import tag, untag

    opened = Dataset.open(dataset, version=chosen.version)
    if chosen.remove:
        untag(opened, name)
        console.print(f"removed: the versions stay until `carrara data clean {opened.path}`", soft_wrap=True)
        return
    tag(opened, name)
    console.print(
        f"tagged: {opened.path}@{name} is version {opened.version}, {len(opened)} pictures", soft_wrap=True
    )


class Restoring(Config):
    """What is brought back."""

    changed: bool = Field(False, description="Also bring back words that have been replaced since.")


@options(Restoring)
def data_restore(
    dataset: Annotated[Path, typer.Argument(help="The version with what was lost: DATASET@NUMBER.")],
    chosen: Restoring,
) -> None:
    """Bring back captions and other words that an older version had and the newest lacks."""
    from carrara.dataset.dataset import Dataset
    from carrara.dataset.versions import restore

    opened = Dataset.open(dataset)
    done = restore(opened, changed=chosen.changed)
    left = f"; {done.left} say something else now and stay (--changed replaces it)" if done.left else ""
    console.print(
        f"restored from version {opened.version}: the words of {done.rows} pictures{left}",
        soft_wrap=True,
    )


class Cleaning(Config):
    """What is removed, and what is looked at before."""

    keep_hours: float = Field(
        24,
        ge=0,
        le=1e6,
        description="Keep versions without a tag that are younger than this many hours.",
    )
    verify: bool = Field(False, description="First compare every picture with its id, to find damaged ones.")


@options(Cleaning)
def data_clean(dataset: DatasetFolder, chosen: Cleaning) -> None:
    """Remove old versions without a tag and leftovers of interrupted work, then join small files."""
    from carrara.dataset.bit_rot import verify
    from carrara.dataset.dataset import Dataset
    from carrara.dataset.versions import clean

    opened = Dataset.open(dataset)
    if chosen.verify:
        show(verify(opened))
        console.print(f"verified: all {len(opened)} pictures are what was imported", soft_wrap=True)
    console.print(f"cleaned: {clean(opened, older_than=timedelta(hours=chosen.keep_hours))}", soft_wrap=True)
