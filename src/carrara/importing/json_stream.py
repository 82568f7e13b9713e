"""A JSON document larger than memory, read as it comes: of the lists in it, entry after entry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TextIO

PIECE = 1 << 20  # letters that are read at once
MOST = 64 << 20  # letters of one entry
_UNDECIDED = 2  # letters behind a number that may be the start of its exponent


class Member(NamedTuple):
    """Something in the outermost object: that a list begins, one of its entries, or a value that is no list."""

    key: str
    kind: Literal["list", "entry", "value"]
    value: Any = None


def members(file: TextIO) -> Iterator[Member]:
    """What the object in a file holds, in its order, as `json.load` understands it. ValueError where it is none."""
    text = _Text(file)
    text.take("{")
    more = text.sign() != "}"
    while more:
        if not isinstance(key := text.value(), str):
            raise text.fault("a name is expected")
        text.take(":")
        if text.sign() == "[":
            text.take("[")
            yield Member(key, "list")
            within = text.sign() != "]"
            while within:
                yield Member(key, "entry", text.value())
                if within := text.sign() == ",":
                    text.take(",")
            text.take("]")
        else:
            yield Member(key, "value", text.value())
        if more := text.sign() == ",":
            text.take(",")
    text.take("}")
    if text.sign():
        raise text.fault("something follows its end")


class _Text:
    """The part of a document that is in memory, and how far it is read."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at, self._before, self._ended = file, "", 0, 0, False
        self._decode = json.JSONDecoder().raw_decode

    def sign(self) -> str:
        """The next letter that is no space, which stays; nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\n\r":
                self._at += 1
            if self._at < len(self._text) or not self._more(PIECE):
                return self._text[self._at : self._at + 1]

    def take(self, sign: str) -> None:
        """Passes over this letter."""
        if (found := self.sign()) != sign:
            raise self.fault(f"{sign!r} is expected" + ("" if found else ", and it ends"))
        self._at += 1

    def value(self) -> Any:
        """The value that begins here. What may go on behind the part in memory is looked at again with twice as
        much of it."""
        self.sign()
        while True:
            fault = "it goes on"
            try:
                value, end = self._decode(self._text, self._at)
                if self._ended or end + _UNDECIDED < len(self._text):
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                fault = error.msg
            if len(self._text) - self._at > MOST:
                raise self.fault(f"{fault}, after {MOST} letters of one entry")
            if not self._more(max(PIECE, len(self._text))):
                if fault == "it goes on":  # it does not
                    continue
                raise self.fault(fault)

    def fault(self, what: str) -> ValueError:
        return ValueError(f"{what} (at letter {self._before + self._at})")

    def _more(self, letters: int) -> bool:
        piece = self._file.read(letters)
        self._before += self._at
        self._text, self._at, self._ended = self._text[self._at :] + piece, 0, not piece
        return bool(piece)
