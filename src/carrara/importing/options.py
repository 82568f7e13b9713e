"""Options of an import, the same for every kind of source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from carrara.config import Config
from carrara.dataset.columns import LANGUAGE
from carrara.dataset.ranges import UNSTATED, of, parse, words
from carrara.errors import UserError

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.dataset.ranges import Span


HeldOut = Annotated[
    float, Field(ge=0, le=0.9, description="Share of the pictures held out: never trained on.")
]
EmojiSet = Annotated[
    str,
    Field(
        description="Emoji only: default (food, animals, smileys), all, or categories separated by commas.",
        json_schema_extra={"flag": "--set"},
    ),
]


class Options(Config):
    """What may be chosen at an import."""

    held_out: HeldOut = 0.05
    subset: EmojiSet = "default"
    count: int | None = Field(
        default=None, ge=1, description="Scenes only: number of pictures (4000 by default)."
    )
    licence: str | None = Field(default=None, description="Licence of pictures that state none.")
    languages: str = Field(
        default="detect",
        description="Language of captions that state none: a code (en), or keep (none), or detect.",
    )
    caption: str | None = Field(
        default=None,
        description='Caption of pictures that come without one, with columns in braces: "a photo of a {label}".',
    )
    range: tuple[str, ...] = Field(
        default=(),
        description="What is black and white in pictures of floats or of more than 16 bits: LOW..HIGH, or for one "
        "column depth=0..40.",
    )
    retry: bool = Field(default=False, description="Try again what could not be read or downloaded.")
    allow_private: bool = Field(
        default=False, description="URL lists only: download from private addresses too."
    )
    ignore_robots_tag: bool = Field(
        default=False, description="URL lists only: download pictures even where X-Robots-Tag asks not to."
    )
    most_megabytes: int = Field(
        default=32, ge=1, le=128, description="URL lists only: skip files larger than this, in MB."
    )
    seconds: float = Field(
        default=60,
        ge=0.1,
        le=86400,
        description="URL lists only: time for one download in seconds, all tries together.",
    )
    at_once: int = Field(default=16, ge=1, le=256, description="URL lists only: downloads at a time.")
    per_host: int = Field(
        default=4, ge=1, le=64, description="URL lists only: downloads at a time from one host."
    )

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
