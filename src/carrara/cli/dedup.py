"""`carrara data dedup, split`: what is there twice, and what training never sees."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from carrara.cli.clean import A_FEW, opened, page_for, print_json, say
from carrara.cli.options import DatasetFolder, Destination, DryRun, Json, Page, options
from carrara.cli.progress import show
from carrara.config import Config
from carrara.errors import UserError
from carrara.files import write_atomically
from carrara.importing.options import HeldOut
from carrara.terminal import console

if TYPE_CHECKING:
    from carrara.cleaning.duplicates import Group, Likeness
    from carrara.cleaning.split import Division
    from carrara.dataset.dataset import Dataset


By = Literal["hash", "features"]


class Duplicates(Config):
    """What counts as a copy, and what is done with copies."""

    by: By = Field(
        "hash", description="How pictures are compared: hash (a perceptual hash) or features (of a network)."
    )
    within: float | None = Field(
        None,
        ge=0,
        le=24,
        description="Largest number of 64 bits by which copies differ (8), or with --by features their least "
        "cosine (0.9).",
    )
    mirrored: bool = Field(False, description="Count mirror images as copies too.")
    into: Destination | None = Field(None, description="Make a new data set without the copies.")
    mark: bool = Field(
        False,
        description="Put look-alikes into one group, so that a split keeps them together.",
        json_schema_extra={"flag": "--split"},
    )
    out: Page = None
    as_json: Json = False


@options(Duplicates)
def data_dedup(dataset: DatasetFolder, chosen: Duplicates) -> None:
    """Show duplicate pictures; with --into NEW, make a data set without the copies."""
    from carrara.cleaning.duplicates import document, groups
    from carrara.pages.dataset import duplicates_page

    pictures, quiet = opened(dataset), chosen.as_json
    page = page_for(pictures, chosen.out, "copies")
    likeness, how = _likeness(pictures, chosen.by, chosen.within, mirrored=chosen.mirrored, quiet=quiet)
    found = groups(pictures, likeness)
    write_atomically(page, duplicates_page(pictures, found, how))
    copies = sorted(copy.row for group in found for copy in group.copies)
    report: dict[str, Any] = {"pictures": len(pictures), "by": how, "copies": len(copies), "page": str(page)}
    if not quiet:
        _say_groups(pictures, found, how)
    if chosen.mark:
        report["marked"] = _mark(pictures, likeness)
        say(f"{report['marked']} pictures are in one group with their look-alikes now", quiet=quiet)
    if chosen.into is not None:
        made = _without(pictures, copies, chosen.into, how)
        report["into"] = str(chosen.into)
        say(f"{len(made)} pictures in {chosen.into}", quiet=quiet)
    elif copies and not chosen.mark:
        say(
            f"nothing is dropped; `carrara data dedup {dataset} --into NEW` makes a data set without them",
            quiet=quiet,
        )
    if quiet:
        print_json(report | {"groups": document(pictures, found)})
    else:
        console.print(f"{page}", soft_wrap=True)


def _without(pictures: Dataset, copies: list[int], into: Path, how: str) -> Dataset:
    """A new data set of the rest."""
    import numpy as np

    from carrara.dataset.subset import subset
    from carrara.embedders.embedders import carry

    kept = np.setdiff1d(np.arange(len(pictures)), copies)
    made = subset(pictures, kept, into, why=f"without {len(copies)} copies, found by {how}")
    carry(pictures, made)
    return made


class Splitting(Config):
    """How many pictures are held out, and what stays on one side."""

    held_out: HeldOut = 0.05
    by: str = Field(
        "group",
        description="What the split keeps together: group, near (look-alikes too), or the values of a column.",
    )
    within: float | None = Field(
        None,
        ge=0,
        le=24,
        description="With --by near: largest number of 64 bits by which look-alikes differ (8).",
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=2**63 - 1,
        description="Seed of a new random choice; without it, what is held out stays so where possible.",
    )
    dry_run: DryRun = False
    as_json: Json = False

    @model_validator(mode="after")
    def _near(self) -> Splitting:
        if self.within is not None and self.by != "near":
            raise ValueError("--within is for --by near")
        return self


@options(Splitting)
def data_split(dataset: DatasetFolder, chosen: Splitting) -> None:
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
    if chosen.by == "near":
        likeness, _ = _likeness(pictures, "hash", chosen.within, mirrored=True, quiet=chosen.as_json)
        names = names_by_likeness(pictures, likeness)
    else:
        names = with_groups(pictures, names_by_column(pictures, chosen.by))
    division = divide(pictures, names, chosen.held_out, seed=chosen.seed)
    tags = trained_on_before(pictures, division)
    changed = 0 if chosen.dry_run else apply(pictures, division)
    if not chosen.as_json:
        _say_division(len(pictures), division, tags, chosen)
        return
    print_json(
        {
            "pictures": len(pictures),
            "held_out": int(division.held_out.sum()),
            "groups": division.groups,
            "held_out_groups": division.held_groups,
            "moved_to_held_out": division.now_held,
            "moved_to_train": division.now_trained,
            "trained_on_by": tags,
            "changed": changed,
            "version": pictures.version,
        }
    )


def _say_division(pictures: int, division: Division, tags: dict[str, int], chosen: Splitting) -> None:
    held = int(division.held_out.sum())
    share = held / max(1, pictures)
    console.print(
        f"{held} of {pictures} pictures ({share:.1%}) {'would be' if chosen.dry_run else 'are'} held out: "
        f"{division.held_groups} of {division.groups} groups, by {chosen.by}",
        soft_wrap=True,
    )
    if abs(share - chosen.held_out) > 0.01 and division.largest > 0.01 * pictures:
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

    if by == "features":
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
