"""What an import remembers of the pictures that are in a table: little enough for millions of them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection
from typing import Any, NamedTuple

from carrara.data import boxes
from carrara.data.beside import KINDS, id_column
from carrara.data.rows import CAPTIONED_BY, MORE_CAPTIONS, caption_language

Record = dict[str, Any]

DESCRIPTION = ("label", "group", "category", "split", "licence", "url", "flags", MORE_CAPTIONS, CAPTIONED_BY)
AMENDED = "amended"  # names of columns, spaces between, that were set otherwise than by the source (`amend`)
IDS = {name: id_column(name) for name in KINDS}  # of the pictures beside a picture


class Known(NamedTuple):
    """What the writer remembers of a picture: short hashes of what is said about it, and where its row is."""

    said: bytes
    source: bytes
    group: bytes
    held_out: bool
    row: int  # in the table; -1, -2 … are those that this import brought

    @classmethod
    def of(cls, record: Record, row: int, amended: Collection[str] = ()) -> Known:
        said = [(k, v) for k, v in sorted(record.items()) if v and is_said(k) and k not in amended]
        group = "" if "group" in amended else record["group"]
        held_out = "split" not in amended and record["split"] == "held_out"
        return cls(short(repr(said)), short(record["source"]), short(group), held_out, row)

    @classmethod
    def unpacked(cls, packed: bytes) -> Known:
        """What `packed` made."""
        return cls(*_PACKED.unpack(packed))

    def packed(self) -> bytes:
        """A quarter of the memory."""
        return _PACKED.pack(*self)

    @property
    def fresh(self) -> bool:
        """Whether this import brought it."""
        return self.row < 0

    def says(self, other: Known) -> bool:
        """Whether both were said to be the same."""
        return self[:4] == other[:4]


_PACKED = struct.Struct("<8s8s8s?q")


def is_said(column: str) -> bool:
    """Whether a column says something about a picture that its source may change."""
    described = column in DESCRIPTION or column == boxes.COLUMN or column in IDS.values()
    return described or caption_language(column) is not None


def short(text: str) -> bytes:
    """A hash of eight bytes, to tell a change by."""
    return hashlib.sha256(text.encode()).digest()[:8]
