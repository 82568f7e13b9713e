"""Options of an import, the same for every kind of source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from carrara.config import Config
from carrara.dataset.columns import LANGUAGE
from carrara.dataset.ranges import UNSTATED, of, parse, words
from carrara.errors import UserError

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.dataset.ranges import Span


class Options(Config):
    """What may be chosen at an import."""

    held_out: float = Field(
        default=0.05, ge=0, lt=1, description="share of the groups that training never sees"
    )
    subset: str = Field(
        default="default", description="emoji: 'default', 'all', or category names with commas between"
    )
    count: int | None = Field(default=None, ge=1, description="scenes: how many; 4000 if nothing is said")
    licence: str | None = Field(
        default=None, description="the licence of the pictures that name none themselves"
    )
    languages: str = Field(
        default="detect",
        description="the language of captions that state none: 'detect' finds it where it is certain, 'keep' leaves "
        "them so, and a code like 'en' says that all of them are in it",
    )
    caption: str | None = Field(
        default=None,
        description="a caption for pictures that come without one, with columns in braces: 'a photo of a {label}'; "
        "remembered for the source, and '' ends it",
    )
    range: tuple[str, ...] = Field(
        default=(),
        description="LOW..HIGH or COLUMN=LOW..HIGH: black and white of floats and other numbers without a usual range",
    )
    retry: bool = Field(default=False, description="try again what could not be read or downloaded")
    allow_private: bool = Field(default=False, description="urls: also from addresses that are not public")
    ignore_robots_tag: bool = Field(
        default=False, description="urls: also what X-Robots-Tag asks not to take (noai, noindex …)"
    )
    most_megabytes: int = Field(default=32, ge=1, le=128, description="urls: larger files are not downloaded")
    seconds: float = Field(
        default=60.0, gt=0, le=86400, description="urls: for one download, all its tries together"
    )
    at_once: int = Field(default=16, ge=1, le=256, description="urls: downloads at a time")
    per_host: int = Field(default=4, ge=1, le=64, description="urls: of these, from one host")

    @field_validator("languages")
    @classmethod
    def _is_a_language(cls, value: str) -> str:
        if value not in ("detect", "keep") and not LANGUAGE.fullmatch(value):
            raise ValueError(f"expected a language code such as 'en', or 'detect', or 'keep', got {value!r}")
        return value.lower().replace("_", "-")


def chosen_ranges(texts: Sequence[str], dataset: Dataset | None) -> dict[str, Span]:
    """The ranges of an import into a data set (None: a new one): its own and those asked for.

    UserError where it has pictures already that are read otherwise.
    """
    asked = parse(texts)
    if dataset is None:
        return asked
    own = of(dataset.about)
    for column, span in asked.items():
        if own.get(column, span) != span:
            raise UserError(
                f"{dataset.path} reads {column!r} as {words(own[column])}; import with another range apart"
            )
        condition = UNSTATED if column == "image" else f"{column} IS NOT NULL"
        if column not in own and column in dataset.columns and dataset.table.count_rows(filter=condition):
            raise UserError(
                f"{dataset.path} has pictures in {column!r} already, read as their kind of number says; "
                "a range is chosen at the first import: make a new data set"
            )
    return {**asked, **own}
