"""`carrara data stats, filter, caption`: a data set looked at and cleaned before a training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from carrara.cli.options import DatasetFolder, Destination, DryRun, Json, Page, Seed, options
from carrara.cli.progress import show
from carrara.config import Config
from carrara.errors import UserError
from carrara.files import write_atomically
from carrara.search.query import Condition
from carrara.terminal import console

if TYPE_CHECKING:
    from carrara.cleaning.captioning import Captioner
    from carrara.cleaning.figures import Statistics
    from carrara.dataset.dataset import Dataset
    from carrara.tensors import Index

A_FEW = 8  # lines of a list in the terminal


class Looking(Config):
    """How a data set is counted and shown."""

    out: Page = None
    size: int = Field(256, ge=8, le=16384, description="The resolution that crops are measured for.")
    as_json: Json = False


@options(Looking)
def data_stats(dataset: DatasetFolder, looking: Looking) -> None:
    """Count and show what a data set holds: sizes, words, classes, copies, and what would be cropped."""
    from carrara.cleaning.statistics import measure
    from carrara.pages.dataset import collection_page

    pictures = opened(dataset)
    page = page_for(pictures, looking.out, "stats")
    found = show(measure(pictures, size=looking.size), quiet=looking.as_json)
    write_atomically(page, collection_page(found, pictures))
    if looking.as_json:
        print_json(found.document() | {"page": str(page)})
        return
    for line in _lines(found):
        console.print(line, soft_wrap=True)
    for sentence in found.advice:
        console.print(f"  - {sentence}", soft_wrap=True)
    console.print(f"{page}", soft_wrap=True)


class Filter(Config):
    """Which pictures of a data set are taken into a new one."""

    new: Destination | None = Field(
        None,
        description="The new data set; not needed with --dry-run.",
        json_schema_extra={"argument": True},
    )
    where: Condition = None
    sample: int | None = Field(None, ge=1, description="At most this many, chosen at random.")
    balance: str | None = Field(None, description="Take equally many of each value of this column.")
    at_most: int | None = Field(
        None,
        ge=1,
        description="With --balance: at most this many of each value; by default as many as the rarest has.",
    )
    seed: Seed = 0
    dry_run: DryRun = False
    as_json: Json = False

    @model_validator(mode="after")
    def _chooses(self) -> Filter:
        if self.where is None and self.sample is None and self.balance is None:
            raise ValueError("nothing to filter by: give --where, --sample or --balance")
        if self.at_most is not None and self.balance is None:
            raise ValueError("--at-most is for --balance COLUMN")
        if self.new is None and not self.dry_run:
            raise ValueError("give the new data set a name, or --dry-run to count the pictures only")
        return self

    def why(self) -> str:
        """In words, for the new data set."""
        many = f"at most {self.at_most}" if self.at_most else "equally many"
        parts = [
            f"where {self.where}" if self.where else "",
            f"{many} of each {self.balance}" if self.balance else "",
            f"{self.sample} at random" if self.sample else "",
            f"seed {self.seed}" if self.sample or self.balance else "",
        ]
        return ", ".join(filter(None, parts))


@options(Filter)
def data_filter(dataset: DatasetFolder, chosen: Filter) -> None:
    """Make a new data set of the pictures for which a condition holds, with all that was derived for them."""
    from carrara.dataset.subset import choose, subset
    from carrara.embedders.embedders import carry

    pictures = opened(dataset)
    how = chosen.model_dump(include={"sample", "balance", "at_most", "seed"})
    rows = choose(pictures, chosen.where, **how)
    report: dict[str, Any] = {"pictures": len(pictures), "chosen": len(rows)}
    say(f"{len(rows)} of {len(pictures)} pictures", quiet=chosen.as_json)
    if chosen.dry_run:
        _few(pictures, rows, quiet=chosen.as_json)
    elif chosen.new is not None:
        made = subset(pictures, rows, chosen.new, why=chosen.why())
        carry(pictures, made)
        report |= {"into": str(chosen.new), "held_out": len(made.indices("held_out"))}
        say(
            f"{chosen.new}: {len(made)} pictures, {report['held_out']} of them held out", quiet=chosen.as_json
        )
    if chosen.as_json:
        print_json(report)


class Captioning(Config):
    """What writes captions, and for which pictures."""

    captioner: str | None = Field(
        None,
        description="A Python file or module with caption(images), or the folder of a transformers model.",
        json_schema_extra={"flag": "--with"},
    )
    from_columns: str | None = Field(
        None, description='A sentence with columns in braces: "a picture of {label}".'
    )
    language: str = Field("en", description="Language of the captions it writes.")
    every: bool = Field(
        False,
        description="Also caption pictures that have a caption, and replace it.",
        json_schema_extra={"flag": "--all"},
    )
    batch: int = Field(16, ge=1, description="Pictures at a time.")
    as_json: Json = False

    @field_validator("language")
    @classmethod
    def _is_a_language(cls, value: str) -> str:
        from carrara.dataset.columns import LANGUAGE

        if value != "und" and not LANGUAGE.fullmatch(value):
            raise UserError(f"{value!r} is no language; expected something like en, de or zh-tw")
        return value.lower()

    @model_validator(mode="after")
    def _one_writer(self) -> Captioning:
        if (self.captioner is None) == (self.from_columns is None):
            raise ValueError("nothing to write captions with: give either --with or --from-columns")
        return self


@options(Captioning)
def data_caption(dataset: DatasetFolder, chosen: Captioning) -> None:
    """Let your own captioner write captions for pictures that have none. Run it again to continue."""
    from carrara.cleaning.captioning import caption, to_name

    language, pictures = chosen.language, opened(dataset)
    speaker = _captioner(pictures, chosen.captioner, chosen.from_columns)
    rows = to_name(pictures, language, every=chosen.every)
    last = show(caption(pictures, speaker, rows, language, batch=chosen.batch), quiet=chosen.as_json)
    empty = f", {last.empty} got none" if last.empty else ""
    overtaken = f", {last.overtaken} got one from elsewhere meanwhile" if last.overtaken else ""
    if chosen.as_json:
        counts = {"captioned": last.kept, "empty": last.empty, "overtaken": last.overtaken}
        print_json({"asked": last.total, **counts, "version": pictures.version})
    elif not last.total:
        console.print(
            f"nothing to do: every picture has a caption in {language!r} (--all writes new ones)",
            soft_wrap=True,
        )
    else:
        console.print(
            f"{last.kept} captions in {language!r} by {speaker.name}{empty}{overtaken}", soft_wrap=True
        )


def opened(path: Path) -> Dataset:
    """The data set; UserError where there is none, or none of its pictures are left at this version."""
    from carrara.dataset.dataset import Dataset

    pictures = Dataset.open(path)
    if not len(pictures):
        raise UserError(f"{path} has no pictures")
    return pictures


def _captioner(pictures: Dataset, place: str | None, sentence: str | None) -> Captioner:
    from carrara.cleaning.captioning import OfColumns, from_python

    if sentence is not None:
        return OfColumns(pictures, sentence)
    assert place is not None
    if Path(place).is_dir():
        from carrara.cleaning.captioning import from_folder
        from carrara.training.devices import Placement

        return from_folder(pictures, Path(place), device=Placement.choose().device)
    return from_python(pictures, place)


def _few(pictures: Dataset, rows: Index, *, quiet: bool) -> None:
    if quiet or not len(rows):
        return
    taken = pictures.take(rows[:A_FEW], ["source", "width", "height", "label"])
    for row, source, width, height, label in zip(rows[:A_FEW], *taken.values(), strict=True):
        console.print(
            f"  {row}: {source}, {width} x {height}" + (f", {label}" if label else ""), soft_wrap=True
        )


def _lines(found: Statistics) -> list[str]:
    """The numbers that fit into a terminal."""
    sizes, files, copies = found.sizes, found.files, found.copies
    lines = [f"{found.pictures} pictures" + "".join(f", {n} {name}" for name, n in found.splits.items())]
    if sizes.width and sizes.height and sizes.ratio:
        lines.append(
            f"sizes: median {sizes.width.median:.0f} x {sizes.height.median:.0f}, "
            f"{sizes.width.lowest:.0f} to {sizes.width.highest:.0f} wide, {sizes.height.lowest:.0f} to "
            f"{sizes.height.highest:.0f} high"
        )
    lines.append("modes: " + ", ".join(f"{mode} {n}" for mode, n in files.modes.items()))
    cuts = {"squares": found.square, "buckets": found.bucketed}
    cut = ", ".join(f"{name} lose {one.lost.mean:.1%}" for name, one in cuts.items() if one.lost)
    lines.append(f"at {found.size} pixels: {cut} of a picture; {found.square.enlarged} would be enlarged")
    if found.languages:
        spoken = (
            f"{'unstated' if name == 'und' else name} {one.captions} (median {one.characters.median:.0f} characters)"
            for name, one in found.languages.items()
            if one.characters
        )
        lines.append("captions: " + ", ".join(spoken))
    if found.classes:
        lines.append(
            f"classes: {found.classes.count}, "
            + ", ".join(f"{name} {n}" for name, n in found.classes.largest[:5])
        )
    lines.append("licences: " + ", ".join(f"{name} {n}" for name, n in found.licences.items()))
    among = "" if copies.looked_at == found.pictures else f" among {copies.looked_at} looked at"
    lines.append(f"look-alikes: {copies.pictures}{among}, in {copies.groups} groups")
    if found.flags:
        lines.append("flags: " + ", ".join(f"{flag} {n}" for flag, n in found.flags.items()))
    return lines


def page_for(pictures: Dataset, out: Path | None, what: str) -> Path:
    """Where the page goes; UserError, before any work, where it cannot be one."""
    from carrara.cli.models import make_folder

    if out is None:
        store = pictures.store  # beside a data set in object storage there is no place for a page
        folder = store.work.resolve().parent if store.work == store.path else Path.cwd()
        out = folder / f"{pictures.path.name}-{what}.html"
    if out.suffix.lower() != ".html":
        raise UserError(f"{out}: expected a name that ends in .html")
    make_folder(out.parent)
    return out


def say(line: str, *, quiet: bool) -> None:
    """A line, unless a machine reads what is printed."""
    if not quiet:
        console.print(line, soft_wrap=True)


def print_json(document: dict[str, Any]) -> None:
    """A document for a machine, on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
