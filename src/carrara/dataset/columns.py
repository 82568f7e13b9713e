"""The columns of a data set: their names, and the schema of those that every table has."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Kind:
    """How such a picture is read: as whole numbers that mean something each, or as grey or colour."""

    values: Literal["numbers", "grey", "colour"]
    bits: Literal[8, 16]
    mirrored: Literal["as seen", "negates red", "swaps sides"] = "as seen"  # what a mirrored picture means

    @property
    def channels(self) -> int:
        """Of a loaded one."""
        return 3 if self.values == "colour" else 1


# The words are no language codes, so that `x.map.png` and `x.de.txt` cannot be taken for one another.
KINDS = {
    "map": Kind("numbers", 16),
    "mask": Kind("numbers", 16),
    "depth": Kind("grey", 16),
    "edges": Kind("grey", 8),
    "normal": Kind("colour", 8, mirrored="negates red"),  # red is x, to the right
    "pose": Kind("colour", 8, mirrored="swaps sides"),  # left and right limbs have colours of their own
}


def id_column(name: str) -> str:
    """The column with the SHA-256 of the bytes in the column ``name``, so that a change is told without them."""
    return f"{name}_id"


CAPTIONED_BY = (
    "captioned_by"  # the column of who made captions, if no person: "en:blip" and so on, spaces between
)

MORE_CAPTIONS = "captions_more"  # the column of further captions, a JSON list

DESCRIPTION = ("label", "group", "category", "split", "licence", "url", "flags", MORE_CAPTIONS, CAPTIONED_BY)
ORIGIN = "origin"  # the column of `word_sources.Owners`
AMENDED = "amended"  # names of columns, spaces between, that were set otherwise than by the source (`amend`)
IDS = {name: id_column(name) for name in KINDS}  # of the pictures beside a picture

UNSTATED = "und"  # BCP 47's word for a language that nobody named
# ASCII alone: other letters without regard to case are among [a-z] too, and İ is two characters as a small letter.
LANGUAGE = re.compile(r"[a-z]{2,3}([-_][a-z0-9]{2,8})*", re.IGNORECASE | re.ASCII)
SPLITS = ("train", "held_out")
LEFT_OUT = "left_out"  # the flag of a picture that is neither trained nor measured on

FLAGS = "flags"  # the column of words to filter by, spaces between

KEPT = "kept, but "  # how a remark on a picture begins that came in all the same


def caption_column(language: str) -> str:
    """The column of a language: "caption" where it is not stated, "caption_de" …; ValueError where it is none."""
    if not LANGUAGE.fullmatch(language):
        raise ValueError(f"{language!r} is no language code")
    return "caption" if language == UNSTATED else f"caption_{language.lower().replace('-', '_')}"


def caption_language(column: str) -> str | None:
    """The language of a caption column; None for any other column."""
    if column == "caption":
        return UNSTATED
    language = column.removeprefix("caption_")
    is_one = language != column and language == language.lower() and LANGUAGE.fullmatch(language)
    return language.replace("_", "-") if is_one else None


def content_id(data: bytes) -> str:
    """The name of a picture everywhere in Carrara: the SHA-256 of its bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


# The metadata of a derived column's field: what it was made from, and the shape of one value.
DERIVED_KEY = b"carrara.key"
DERIVED_SHAPE = b"carrara.shape"
DERIVED_FROM = b"carrara.from"  # the columns that a source may change; not there where none was read

AS_GIVEN = {
    "lance-encoding:compression": "none"
}  # compressed already; trying again takes eight times as long


def schema() -> pa.Schema:
    """The columns that every table has from its start; languages and derived columns are added to them."""
    import pyarrow as pa

    text = [
        pa.field(n, pa.string())
        for n in ("caption", "label", "group", "category", "split", "source", ORIGIN, "licence")
    ]
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("image", pa.large_binary(), nullable=False, metadata=AS_GIVEN),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("mode", pa.string()),
            *text,
        ]
    )
