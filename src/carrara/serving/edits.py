"""Edits: what a person may change on the page: a caption, and whether a picture is left out; each makes a version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from carrara.config import Config
from carrara.dataset.columns import CAPTIONED_BY, FLAGS, LANGUAGE, LEFT_OUT, caption_column
from carrara.dataset.word_changes import amend
from carrara.errors import UserError
from carrara.serving.thumbnails import NotThere
from carrara.text import tidy

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

HEADER = "x-carrara-token"


class Edit(Config):
    """Either a caption of a picture, or whether it is left out."""

    language: str | None = Field(None, max_length=40, description="The language of the caption to write.")
    was: str | None = Field(None, description="What the caption said when it was shown; None for nothing.")
    text: str = Field("", max_length=2**20, description="What it is to say; empty removes it.")
    left_out: bool | None = Field(None, strict=True, description="Whether training leaves the picture out.")


def edit(dataset: Dataset, row: int, name: str, wanted: Edit) -> None:
    """Writes it as one new version. NotThere where ``row`` is not the picture ``name``.

    UserError where another has changed the caption meanwhile, or the data set cannot be changed.
    """
    if row >= len(dataset) or dataset.take([row], ["id"])["id"][0] != name:
        raise NotThere(row)
    if wanted.left_out is not None:
        column, was = FLAGS, _now(dataset, row, FLAGS)
        flags = {*(was or "").split()} - {LEFT_OUT} | ({LEFT_OUT} if wanted.left_out else set())
        value = " ".join(sorted(flags)) or None
    elif LANGUAGE.fullmatch(wanted.language or ""):
        column, was = caption_column(wanted.language or ""), wanted.was
        value = tidy(wanted.text)
    else:
        raise UserError(f"{wanted.language!r} is no language code such as 'en'")
    values = {column: {row: value}}
    if column != FLAGS and (by := _now(dataset, row, CAPTIONED_BY)):  # now a person did
        kept = [one for one in by.split() if one.partition(":")[0] != wanted.language]
        values[CAPTIONED_BY] = {row: " ".join(kept) or None}
    amend(dataset, values, was={column: {row: was}})
    if _now(dataset, row, column) != value:
        raise UserError("someone else has changed this picture meanwhile; reload the page to see it")


def _now(dataset: Dataset, row: int, column: str) -> str | None:
    if column not in dataset.columns:
        return None
    value: str | None = dataset.take([row], [column])[column][0]
    return value
