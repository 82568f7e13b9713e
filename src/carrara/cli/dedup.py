"""`carrara data dedup, split`: what is there twice, and what training never sees."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrara.cli.clean import A_FEW, Json, Where, opened, page_for, print_json, say
from carrara.cli.models import number, writable
from carrara.cli.progress import show
from carrara.errors import UserError
from carrara.files import write_atomically
from carrara.terminal import console

if TYPE_CHECKING:
    from carrara.cleaning.duplicates import Group, Likeness
    from carrara.dataset.dataset import Dataset


class By(StrEnum):
    """What look-alikes are found by."""

    hash = "hash"
    features = "features"


def data_dedup(
    dataset: Where,
    by: Annotated[
        By,
        typer.Option(help="How pictures are compared: hash (a perceptual hash) or features (of a network)."),
    ] = By.hash,
    within: Annotated[
        float | None,
        typer.Option(
            help="How similar: at most this many of 64 bits differ (8); with --by features at least this cosine (0.9).",
            min=0,
            max=24,
            callback=number,
        ),
    ] = None,
    mirrored: Annotated[bool, typer.Option("--mirrored", help="Count mirror images as copies too.")] = False,
    into: Annotated[
        Path | None, typer.Option(help="Make a new data set without the copies.", callback=writable)
    ] = None,
    mark: Annotated[
        bool,
        typer.Option("--split", help="Put look-alikes into one group, so that a split keeps them together."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="HTML page to write; by default, beside the data set.", callback=writable),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show duplicate pictures; with --into NEW, make a data set without the copies."""
    import numpy as np

    from carrara.cleaning.duplicates import document, groups
    from carrara.pages.dataset import duplicates_page

    pictures = opened(dataset)
    page = page_for(pictures, out, "copies")
    likeness, how = _likeness(pictures, by, within, mirrored=mirrored, quiet=as_json)
    found = groups(pictures, likeness)
    write_atomically(page, duplicates_page(pictures, found, how))
    copies = sorted(copy.row for group in found for copy in group.copies)
    report: dict[str, Any] = {"pictures": len(pictures), "by": how, "copies": len(copies), "page": str(page)}
    if not as_json:
        _say_groups(pictures, found, how)
    if mark:
        report["marked"] = _mark(pictures, likeness)
        say(f"{report['marked']} pictures are in one group with their look-alikes now", quiet=as_json)
    if into is not None:
        from carrara.dataset.subset import subset
        from carrara.embedders.embedders import carry

        kept = np.setdiff1d(np.arange(len(pictures)), copies)
        made = subset(pictures, kept, into, why=f"without {len(copies)} copies, found by {how}")
        carry(pictures, made)
        report["into"] = str(into)
        say(f"{len(made)} pictures in {into}", quiet=as_json)
    elif copies and not mark:
        say(
            f"nothing is dropped; `carrara data dedup {dataset} --into NEW` makes a data set without them",
            quiet=as_json,
        )
    if as_json:
        print_json(report | {"groups": document(pictures, found)})
    else:
        console.print(f"{page}", soft_wrap=True)


def data_split(
    dataset: Where,
    held_out: Annotated[
        float,
        typer.Option(
            min=0, max=0.9, help="Share of the pictures held out: never trained on.", callback=number
        ),
    ] = 0.05,
    by: Annotated[
        str, typer.Option(help="What stays on one side: group, near (look-alikes too), or a column.")
    ] = "group",
    within: Annotated[
        float | None,
        typer.Option(
            min=0, max=24, callback=number, help="With --by near: at most this many of 64 bits differ (8)."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**63 - 1,
            help="Seed of a new random choice; without it, what is held out stays so where possible.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: Json = False,
) -> None:
    """Choose again which pictures are held out, by whole groups, so that look-alikes are on one side."""
    from carrara.cleaning.split import (
        apply,
        divide,
        names_by_column,
        names_by_likeness,
        trained_on_before,
        with_groups,
    )

    pictures = opened(dataset)
    if within is not None and by != "near":
        raise UserError("--within is for --by near")
    if by == "near":
        names = names_by_likeness(
            pictures, _likeness(pictures, By.hash, within, mirrored=True, quiet=as_json)[0]
        )
    else:
        names = with_groups(pictures, names_by_column(pictures, by))
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
        print_json(report)
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
            f"{division.now_held} that were in training are now held out, {division.now_trained} that were held out "
            "are now in training",
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
            "do not measure it on this data set any more",
            soft_wrap=True,
        )


def _likeness(
    pictures: Dataset, by: By, within: float | None, *, mirrored: bool, quiet: bool
) -> tuple[Likeness, str]:
    """What is alike, and by what in words; derives the glances that are missing."""
    from carrara.cleaning.duplicates import COSINE, by_features, by_hash, features_column
    from carrara.dataset.fingerprints import derivation, derive_glances
    from carrara.images.fingerprint import RADIUS

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
    show(derive_glances(pictures), quiet=quiet)
    column = derivation(pictures).column
    words = f"perceptual hash, at most {radius:g} of 64 bits differ" + (", or mirrored" if mirrored else "")
    return by_hash(pictures, column, int(radius), mirrored=mirrored), words


def _mark(pictures: Dataset, likeness: Likeness) -> int:
    """Gives look-alikes the group of the first of them; returns how many pictures changed theirs."""
    from carrara.cleaning.split import names_by_likeness
    from carrara.dataset.word_changes import amend

    groups, names = pictures.column("group"), names_by_likeness(pictures, likeness).tolist()
    changes = {row: groups[name] for row, name in enumerate(names) if groups[row] != groups[name]}
    if changes:
        amend(pictures, {"group": changes})
    return len(changes)


def _say_groups(pictures: Dataset, found: list[Group], how: str) -> None:
    copies = sum(len(group.copies) for group in found)
    console.print(
        f"{copies} of {len(pictures)} pictures are copies of another one, in {len(found)} groups ({how})",
        soft_wrap=True,
    )
    counts = Counter(copy.how for group in found for copy in group.copies)
    if exact := counts.get("the same pixels"):
        console.print(f"{exact} of them have exactly the same pixels in another file", soft_wrap=True)
    rows = [row for group in found[:A_FEW] for row in group.rows]
    named = dict(zip(rows, pictures.take(rows, ["source"])["source"], strict=True)) if rows else {}
    for group in found[:A_FEW]:
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
