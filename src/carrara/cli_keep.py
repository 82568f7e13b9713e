"""`carrara data stats, dedup, split, filter, caption`: a data set looked at and put in order before a training."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.console import Bar, console
from carrara.errors import UserError

if TYPE_CHECKING:
    from carrara.data.keep.captioning import Captioner
    from carrara.data.keep.duplicates import Group, Likeness
    from carrara.data.keep.neighbours import Index
    from carrara.data.keep.statistics import Statistics
    from carrara.data.table import Dataset

_A_FEW = 8  # lines of a list in the terminal

Where = Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON, for a machine.")]


class By(StrEnum):
    """What look-alikes are found by."""

    hash = "hash"
    features = "features"


def data_stats(
    dataset: Where,
    out: Annotated[Path | None, typer.Option(help="The page, .html; without it beside the data set.")] = None,
    size: Annotated[
        int, typer.Option(min=8, max=16384, help="The resolution that crops are measured for.")
    ] = 256,
    as_json: Json = False,
) -> None:
    """Count what a data set holds, and show it: sizes, words, classes, copies, what would be cropped."""
    from carrara.data.keep.statistics import measure
    from carrara.evaluation.collection_page import collection_page

    pictures = _opened(dataset)
    page = _page(pictures, out, "stats")
    found = _finished(measure(pictures, size=size), "looking", quiet=as_json)
    _write(page, collection_page(found, pictures))
    if as_json:
        _json(found.document() | {"page": str(page)})
        return
    for line in _lines(found):
        console.print(line, soft_wrap=True)
    for sentence in found.advice:
        console.print(f"  - {sentence}", soft_wrap=True)
    console.print(f"{page}", soft_wrap=True)


def data_dedup(
    dataset: Where,
    by: Annotated[
        By, typer.Option(help="hash: how pictures look at a glance; features: what a network sees.")
    ] = By.hash,
    within: Annotated[
        float | None,
        typer.Option(
            help="How near: bits of 64 (8), or with --by features the cosine (0.95).", min=0, max=24
        ),
    ] = None,
    mirrored: Annotated[bool, typer.Option("--mirrored", help="Mirror images are copies too.")] = False,
    into: Annotated[Path | None, typer.Option(help="Make a new data set without the copies.")] = None,
    mark: Annotated[
        bool,
        typer.Option("--split", help="Put look-alikes into one group, so that a split keeps them together."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The page, .html; without it beside the data set.")] = None,
    as_json: Json = False,
) -> None:
    """Show pictures that are there twice; with --into NEW, a data set without them."""
    import numpy as np

    from carrara.data.keep.duplicates import document, groups
    from carrara.evaluation.duplicates_page import duplicates_page

    pictures = _opened(dataset)
    page = _page(pictures, out, "copies")
    likeness, how = _likeness(pictures, by, within, mirrored=mirrored, quiet=as_json)
    found = groups(pictures, likeness)
    _write(page, duplicates_page(pictures, found, how))
    copies = sorted(copy.row for group in found for copy in group.copies)
    report: dict[str, Any] = {"pictures": len(pictures), "by": how, "copies": len(copies), "page": str(page)}
    if not as_json:
        _say_groups(pictures, found, how)
    if mark:
        report["marked"] = _mark(pictures, likeness)
        _say(f"{report['marked']} pictures are in one group with their look-alikes now", quiet=as_json)
    if into is not None:
        from carrara.data.subset import subset

        kept = np.setdiff1d(np.arange(len(pictures)), copies)
        made = subset(pictures, kept, into, why=f"without {len(copies)} copies, found by {how}")
        report["into"] = str(into)
        _say(f"{len(made)} pictures in {into}", quiet=as_json)
    elif copies and not mark:
        _say(
            f"nothing is dropped; `carrara data dedup {dataset} --into NEW` makes a data set without them",
            quiet=as_json,
        )
    if as_json:
        _json(report | {"groups": document(pictures, found)})
    else:
        console.print(f"{page}", soft_wrap=True)


def data_split(
    dataset: Where,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of pictures never trained on.")
    ] = 0.05,
    by: Annotated[
        str, typer.Option(help="What stays together: group, near (look-alikes too), or a column.")
    ] = "group",
    within: Annotated[
        float | None, typer.Option(min=0, max=24, help="With --by near: bits of 64 (8).")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Choose anew by chance; without it, what is held out stays so where it can."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
    as_json: Json = False,
) -> None:
    """Hold pictures out anew, by whole groups, so that what looks alike is on one side."""
    from carrara.data.keep.holding_out import (
        apply,
        divide,
        names_by_column,
        names_by_likeness,
        trained_on_before,
    )

    pictures = _opened(dataset)
    if within is not None and by != "near":
        raise UserError("--within is for --by near")
    if by == "near":
        names = names_by_likeness(
            pictures, _likeness(pictures, By.hash, within, mirrored=True, quiet=as_json)[0]
        )
    else:
        names = names_by_column(pictures, by)
    division = divide(pictures, names, held_out, seed=seed)
    tags = trained_on_before(pictures, division)
    changed = 0 if dry_run else apply(pictures, division)
    held = int(division.held_out.sum())
    report = {
        "pictures": len(pictures),
        "held_out": held,
        "groups": division.groups,
        "held_out_groups": division.held_groups,
        "moved_to_held_out": division.now_held,
        "moved_to_train": division.now_trained,
        "trained_on_by": tags,
        "changed": changed,
        "version": pictures.version,
    }
    if as_json:
        _json(report)
        return
    console.print(
        f"{held} of {len(pictures)} pictures ({held / max(1, len(pictures)):.1%}) {'would be' if dry_run else 'are'} "
        f"held out: {division.held_groups} of {division.groups} groups, by {by}",
        soft_wrap=True,
    )
    if abs(held / max(1, len(pictures)) - held_out) > 0.01 and division.largest > 0.01 * len(pictures):
        console.print(
            f"note: the largest group has {division.largest} pictures, and groups stay whole", soft_wrap=True
        )
    if division.now_held or division.now_trained:
        console.print(
            f"{division.now_held} that were trained on are held out, {division.now_trained} that were held out are "
            "trained on",
            soft_wrap=True,
        )
    for tag, count in tags.items():
        console.print(
            f"warning: {tag} was trained on {count} of the pictures now held out: its figures on them would flatter; "
            "measure it at its own version of the table",
            soft_wrap=True,
        )
    if division.now_held and not tags:
        console.print(
            "warning: a model that was trained on the split before has seen some of what is held out now; "
            "measure it no longer on this data set",
            soft_wrap=True,
        )


def data_filter(
    dataset: Where,
    new: Annotated[Path | None, typer.Argument(help="The new data set; not needed with --dry-run.")] = None,
    where: Annotated[
        str | None,
        typer.Option(help="A condition on the columns, in SQL: \"width >= 256 AND label = 'cat'\"."),
    ] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="At most so many, by chance.")] = None,
    balance: Annotated[str | None, typer.Option(help="Equally many of each value of this column.")] = None,
    at_most: Annotated[
        int | None,
        typer.Option(min=1, help="With --balance: of each value; without it as many as the rarest has."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another choice by chance.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them, and name a few.")] = False,
    as_json: Json = False,
) -> None:
    """Make a new data set of the pictures for which a condition holds, with all that was derived for them."""
    from carrara.data.keep.choosing import choose
    from carrara.data.subset import subset

    pictures = _opened(dataset)
    if where is None and sample is None and balance is None:
        raise UserError("nothing is asked for; expected --where, --sample or --balance")
    if at_most is not None and balance is None:
        raise UserError("--at-most is for --balance COLUMN")
    if new is None and not dry_run:
        raise UserError("where should they go? give the new data set a name, or --dry-run to count them only")
    rows = choose(pictures, where, sample=sample, balance=balance, at_most=at_most, seed=seed)
    report: dict[str, Any] = {"pictures": len(pictures), "chosen": len(rows)}
    _say(f"{len(rows)} of {len(pictures)} pictures", quiet=as_json)
    if dry_run:
        _few(pictures, rows, quiet=as_json)
    else:
        assert new is not None
        parts = [f"where {where}" if where else "", f"{sample} by chance" if sample else ""]
        parts.insert(1, f"{at_most or 'equally'} many of each {balance}" if balance else "")
        chance = f"seed {seed}" if sample or balance else ""
        made = subset(pictures, rows, new, why=", ".join(filter(None, [*parts, chance])))
        report |= {"into": str(new), "held_out": len(made.indices("held_out"))}
        _say(f"{new}: {len(made)} pictures, {report['held_out']} of them held out", quiet=as_json)
    if as_json:
        _json(report)


def data_caption(
    dataset: Where,
    captioner: Annotated[
        str | None,
        typer.Option(
            "--with", help="A Python file or module with caption(images), or a folder of transformers."
        ),
    ] = None,
    from_columns: Annotated[
        str | None, typer.Option(help='A sentence with columns in braces: "a picture of {label}".')
    ] = None,
    language: Annotated[str, typer.Option(help="The language that it speaks.")] = "en",
    every: Annotated[
        bool, typer.Option("--all", help="Also pictures that have a caption; theirs is replaced.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 16,
    as_json: Json = False,
) -> None:
    """Let a captioner of yours name the pictures that have no caption; again, it goes on where it stopped."""
    from carrara.data.keep.captioning import caption, to_name
    from carrara.data.words import LANGUAGE

    if (captioner is None) == (from_columns is None):
        raise UserError("who should caption? give --with or --from-columns, one of them")
    if language != "und" and not LANGUAGE.fullmatch(language):
        raise UserError(f"{language!r} is no language; expected something like en, de or zh-tw")
    pictures = _opened(dataset)
    speaker = _captioner(pictures, captioner, from_columns)
    rows = to_name(pictures, language.lower(), every=every)
    with (
        Bar("captioning") as bar,
        closing(caption(pictures, speaker, rows, language.lower(), batch=batch)) as reports,
    ):
        for report in reports:
            last = report
            if report.total and not as_json:
                bar.show(report.done / report.total, f"{report.kept} named", total=report.total)
    empty = f", {last.empty} got none" if last.empty else ""
    if as_json:
        _json({"asked": last.total, "captioned": last.kept, "empty": last.empty, "version": pictures.version})
    elif not last.total:
        console.print(
            f"nothing to do: every picture has a caption in {language!r} (--all names them anew)",
            soft_wrap=True,
        )
    else:
        console.print(f"{last.kept} captions in {language!r} by {speaker.name}{empty}", soft_wrap=True)


def _opened(path: Path) -> Dataset:
    """The data set; UserError where there is none, or none of its pictures are left at this version."""
    from carrara.data.table import Dataset

    pictures = Dataset.open(path)
    if not len(pictures):
        raise UserError(f"{path} has no pictures")
    return pictures


def _captioner(pictures: Dataset, place: str | None, sentence: str | None) -> Captioner:
    from carrara.data.keep.captioning import OfColumns, from_python

    if sentence is not None:
        return OfColumns(pictures, sentence)
    assert place is not None
    if Path(place).is_dir():
        from carrara.data.keep.pretrained_captioner import from_folder
        from carrara.training.parallel import Placement

        return from_folder(pictures, Path(place), device=Placement.choose().device)
    return from_python(pictures, place)


def _likeness(
    pictures: Dataset, by: By, within: float | None, *, mirrored: bool, quiet: bool
) -> tuple[Likeness, str]:
    """What is alike, and by what in words; derives the glances that are missing."""
    from carrara.data.keep.duplicates import COSINE, RADIUS, by_features, by_hash, features_column
    from carrara.data.perceptual_hash import derive_glances

    if by is By.features:
        if mirrored:
            raise UserError("--mirrored is for --by hash; features see a mirror image as nearly the same")
        cosine = COSINE if within is None else within
        if not 0 < cosine <= 1:
            raise UserError(f"--within is {cosine:g}; with --by features it is a cosine, at most 1")
        return by_features(
            pictures, features_column(pictures), cosine
        ), f"features, cosine {cosine:g} or more"
    radius = RADIUS if within is None else within
    if radius != int(radius):
        raise UserError(f"--within is {radius:g}; with --by hash it is a whole number of bits")
    with Bar("glances") as bar, closing(derive_glances(pictures)) as reports:
        for report in reports:
            column = report.column
            if column is None and not quiet:
                bar.show(report.done / report.total, f"{report.done} looked at", total=report.total)
    assert column is not None
    words = f"perceptual hash, {radius:g} of 64 bits or fewer apart" + (", or mirrored" if mirrored else "")
    return by_hash(pictures, column, int(radius), mirrored=mirrored), words


def _mark(pictures: Dataset, likeness: Likeness) -> int:
    """Gives look-alikes the group of the first of them; returns how many pictures changed theirs."""
    from carrara.data.amend import amend
    from carrara.data.keep.holding_out import names_by_likeness

    groups, names = pictures.column("group"), names_by_likeness(pictures, likeness).tolist()
    changes = {row: groups[name] for row, name in enumerate(names) if groups[row] != groups[name]}
    if changes:
        amend(pictures, {"group": changes})
    return len(changes)


def _say_groups(pictures: Dataset, found: list[Group], how: str) -> None:
    copies = sum(len(group.copies) for group in found)
    console.print(
        f"{copies} of {len(pictures)} pictures are much like another one, in {len(found)} groups ({how})",
        soft_wrap=True,
    )
    counts = Counter(copy.how for group in found for copy in group.copies)
    if exact := counts.get("the same pixels"):
        console.print(f"{exact} of them have the very same pixels in another file", soft_wrap=True)
    rows = [row for group in found[:_A_FEW] for row in group.rows]
    named = dict(zip(rows, pictures.take(rows, ["source"])["source"], strict=True)) if rows else {}
    for group in found[:_A_FEW]:
        others = ", ".join(f"{named[copy.row]} ({copy.how})" for copy in group.copies[:3])
        more = f" and {len(group.copies) - 3} more" if len(group.copies) > 3 else ""
        console.print(f"  {named[group.kept]}: {others}{more}", soft_wrap=True)
    splits = pictures.column("split")
    if across := sum(len({splits[row] for row in group.rows}) > 1 for group in found):
        console.print(
            f"{across} groups are partly held out and partly trained on: "
            f"`carrara data split {pictures.path} --by near`",
            soft_wrap=True,
        )


def _few(pictures: Dataset, rows: Index, *, quiet: bool) -> None:
    if quiet or not len(rows):
        return
    taken = pictures.take(rows[:_A_FEW], ["source", "width", "height", "label"])
    for row, source, width, height, label in zip(rows[:_A_FEW], *taken.values(), strict=True):
        console.print(
            f"  {row}: {source}, {width} x {height}" + (f", {label}" if label else ""), soft_wrap=True
        )


def _lines(found: Statistics) -> list[str]:
    """The numbers that fit into a terminal."""
    sizes, files, copies = found.sizes, found.files, found.copies
    lines = [f"{found.pictures} pictures" + "".join(f", {n} {name}" for name, n in found.splits.items())]
    if sizes.width and sizes.height and sizes.ratio:
        lines.append(
            f"sizes: {sizes.width.median:.0f} x {sizes.height.median:.0f} in the middle, "
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


def _finished(measuring: Generator[Any, None, Statistics], title: str, *, quiet: bool) -> Statistics:
    with Bar(title) as bar:
        while True:
            try:
                progress = next(measuring)
            except StopIteration as end:
                found: Statistics = end.value
                return found
            if not quiet:
                bar.show(progress.fraction, progress.words)


def _page(pictures: Dataset, out: Path | None, what: str) -> Path:
    """Where the page goes; UserError, before any work, where it cannot be one."""
    from carrara.cli import make_folder

    if out is None:
        store = pictures.store  # beside a data set in object storage there is no place for a page
        folder = store.work.resolve().parent if store.work == store.path else Path.cwd()
        out = folder / f"{pictures.path.name}-{what}.html"
    if out.suffix.lower() != ".html":
        raise UserError(f"{out}: expected a name that ends in .html")
    make_folder(out.parent)
    return out


def _write(file: Path, text: str) -> None:
    """Whole or not at all; UserError where it cannot be written."""
    part = file.with_name(file.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None


def _say(line: str, *, quiet: bool) -> None:
    if not quiet:
        console.print(line, soft_wrap=True)


def _json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
