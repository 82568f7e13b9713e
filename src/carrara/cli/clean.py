"""`carrara data stats, filter, caption`: a data set looked at and cleaned before a training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.cli.models import writable
from carrara.cli.progress import show
from carrara.errors import UserError
from carrara.files import write_atomically
from carrara.terminal import console

if TYPE_CHECKING:
    from carrara.cleaning.captioning import Captioner
    from carrara.cleaning.figures import Statistics
    from carrara.dataset.dataset import Dataset
    from carrara.tensors import Index

A_FEW = 8  # lines of a list in the terminal

Where = Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


def data_stats(
    dataset: Where,
    out: Annotated[
        Path | None,
        typer.Option(help="HTML page to write; by default, beside the data set.", callback=writable),
    ] = None,
    size: Annotated[
        int, typer.Option(min=8, max=16384, help="The resolution that crops are measured for.")
    ] = 256,
    as_json: Json = False,
) -> None:
    """Count and show what a data set holds: sizes, words, classes, copies, and what would be cropped."""
    from carrara.cleaning.statistics import measure
    from carrara.pages.dataset import collection_page

    pictures = opened(dataset)
    page = page_for(pictures, out, "stats")
    found = show(measure(pictures, size=size), quiet=as_json)
    write_atomically(page, collection_page(found, pictures))
    if as_json:
        print_json(found.document() | {"page": str(page)})
        return
    for line in _lines(found):
        console.print(line, soft_wrap=True)
    for sentence in found.advice:
        console.print(f"  - {sentence}", soft_wrap=True)
    console.print(f"{page}", soft_wrap=True)


def data_filter(
    dataset: Where,
    new: Annotated[
        Path | None, typer.Argument(help="The new data set; not needed with --dry-run.", callback=writable)
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="A condition on the columns, in SQL: \"width >= 256 AND label = 'cat'\"."),
    ] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="At most this many, chosen at random.")] = None,
    balance: Annotated[
        str | None, typer.Option(help="Take equally many of each value of this column.")
    ] = None,
    at_most: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --balance: at most this many of each value; by default as many as the rarest has.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the random choice.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count the pictures, and name a few.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a new data set of the pictures for which a condition holds, with all that was derived for them."""
    from carrara.dataset.subset import choose, subset
    from carrara.embedders.embedders import carry

    pictures = opened(dataset)
    if where is None and sample is None and balance is None:
        raise UserError("nothing to filter by: give --where, --sample or --balance")
    if at_most is not None and balance is None:
        raise UserError("--at-most is for --balance COLUMN")
    if new is None and not dry_run:
        raise UserError("give the new data set a name, or --dry-run to count the pictures only")
    rows = choose(pictures, where, sample=sample, balance=balance, at_most=at_most, seed=seed)
    report: dict[str, Any] = {"pictures": len(pictures), "chosen": len(rows)}
    say(f"{len(rows)} of {len(pictures)} pictures", quiet=as_json)
    if dry_run:
        _few(pictures, rows, quiet=as_json)
    else:
        assert new is not None
        parts = [f"where {where}" if where else "", f"{sample} at random" if sample else ""]
        parts.insert(
            1, f"{f'at most {at_most}' if at_most else 'equally many'} of each {balance}" if balance else ""
        )
        chance = f"seed {seed}" if sample or balance else ""
        made = subset(pictures, rows, new, why=", ".join(filter(None, [*parts, chance])))
        carry(pictures, made)
        report |= {"into": str(new), "held_out": len(made.indices("held_out"))}
        say(f"{new}: {len(made)} pictures, {report['held_out']} of them held out", quiet=as_json)
    if as_json:
        print_json(report)


def data_caption(
    dataset: Where,
    captioner: Annotated[
        str | None,
        typer.Option(
            "--with",
            help="A Python file or module with caption(images), or the folder of a transformers model.",
        ),
    ] = None,
    from_columns: Annotated[
        str | None, typer.Option(help='A sentence with columns in braces: "a picture of {label}".')
    ] = None,
    language: Annotated[str, typer.Option(help="Language of the captions it writes.")] = "en",
    every: Annotated[
        bool, typer.Option("--all", help="Also caption pictures that have a caption, and replace it.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 16,
    as_json: Json = False,
) -> None:
    """Let your own captioner write captions for pictures that have none. Run it again to continue."""
    from carrara.cleaning.captioning import caption, to_name
    from carrara.dataset.columns import LANGUAGE

    if (captioner is None) == (from_columns is None):
        raise UserError("nothing to write captions with: give either --with or --from-columns")
    if language != "und" and not LANGUAGE.fullmatch(language):
        raise UserError(f"{language!r} is no language; expected something like en, de or zh-tw")
    pictures = opened(dataset)
    speaker = _captioner(pictures, captioner, from_columns)
    rows = to_name(pictures, language.lower(), every=every)
    last = show(caption(pictures, speaker, rows, language.lower(), batch=batch), quiet=as_json)
    empty = f", {last.empty} got none" if last.empty else ""
    overtaken = f", {last.overtaken} got one from elsewhere meanwhile" if last.overtaken else ""
    if as_json:
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
