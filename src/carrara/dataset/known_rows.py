"""What an import remembers of the rows that are in a table: little enough for millions of them."""

from __future__ import annotations

import functools
import hashlib
import json
import struct
import zlib
from array import array
from collections.abc import Collection
from typing import Any, NamedTuple

from carrara.dataset.columns import DESCRIPTION, IDS, caption_language
from carrara.images import boxes
from carrara.text import nfc

Record = dict[str, Any]


class Known(NamedTuple):
    """What the writer remembers of a picture: short hashes of what is said about it, and where its row is."""

    said: bytes
    source: bytes
    group: bytes
    held_out: bool
    row: int  # in the table; -1, -2 … are those that this import brought
    owner: bytes = b""  # of its group, an `word_sources.source_id`

    @classmethod
    def of(cls, record: Record, row: int, amended: Collection[str] = (), owner: bytes = b"") -> Known:
        said = [(k, v) for k, v in sorted(record.items()) if v and is_said(k) and k not in amended]
        group = "" if "group" in amended else record["group"] or ""
        held_out = "split" not in amended and record["split"] == "held_out"
        return cls(short(repr(said)), short(record["source"]), short(group), held_out, row, owner)

    @property
    def fresh(self) -> bool:
        """Whether this import brought it."""
        return self.row < 0

    def says(self, other: Known) -> bool:
        """Whether both were said to be the same."""
        return self[:4] == other[:4]


_PACKED = struct.Struct("<8s8s8s?q8s")


class KnownPictures:
    """What is `Known` of each picture by its id: a hundred bytes each, a third of what a dictionary takes."""

    def __init__(self) -> None:
        self._ids, self._packed = bytearray(), bytearray()
        self._slots = array("q", [_FREE]) * 1024  # places in these, found by an id's first bytes
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, name: str) -> Known | None:
        """What is known of the picture of this id."""
        place = self._slots[self._slot(bytes.fromhex(name))]
        size = _PACKED.size
        return None if place == _FREE else Known(*_PACKED.unpack_from(self._packed, place * size))

    def put(self, name: str, known: Known) -> None:
        """Remembers it, in place of what was known."""
        key = bytes.fromhex(name)
        slot = self._slot(key)
        place = self._slots[slot]
        if place != _FREE:
            _PACKED.pack_into(self._packed, place * _PACKED.size, *known)
            return
        self._slots[slot] = self._count
        self._ids += key
        self._packed += _PACKED.pack(*known)
        self._count += 1
        if self._count * 3 > len(self._slots) * 2:
            self._grow()

    def _slot(self, key: bytes) -> int:
        """Where an id is, or is to be: the first free slot from that of its first bytes, which are random."""
        slots, ids = self._slots, self._ids
        last = len(slots) - 1
        slot = int.from_bytes(key[:8], "little") & last
        while (place := slots[slot]) != _FREE and ids[place * _ID : place * _ID + _ID] != key:
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        self._slots = array("q", [_FREE]) * (2 * len(self._slots))
        for place in range(self._count):
            self._slots[self._slot(bytes(self._ids[place * _ID : place * _ID + _ID]))] = place


class Names:
    """Names by number, in the order in which they came: packed some thousand at a time, as paths are much alike."""

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        self._last: list[str] = []

    def __len__(self) -> int:
        return len(self._packed) * _TOGETHER + len(self._last)

    def add(self, name: str) -> None:
        """The next one."""
        self._last.append(name)
        if len(self._last) == _TOGETHER:
            self._packed.append(zlib.compress(json.dumps(self._last).encode(), 1))
            self._last = []

    def __getitem__(self, number: int) -> str:
        part, place = divmod(number, _TOGETHER)
        return self._last[place] if part == len(self._packed) else str(_unpacked(self._packed[part])[place])


_ID, _FREE, _TOGETHER = 32, -1, 1024


@functools.lru_cache(maxsize=4)
def _unpacked(packed: bytes) -> list[str]:
    names: list[str] = json.loads(zlib.decompress(packed))
    return names


def is_said(column: str) -> bool:
    """Whether a column says something about a picture that its source may change."""
    described = column in DESCRIPTION or column == boxes.COLUMN or column in IDS.values()
    return described or caption_language(column) is not None


def short(text: str) -> bytes:
    """A hash of eight bytes, to tell a change by."""
    return hashlib.sha256(nfc(text).encode()).digest()[:8]
