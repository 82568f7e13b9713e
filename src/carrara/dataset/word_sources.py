"""Which source said what of a picture: a source may take back its own words, and no other's."""

from __future__ import annotations

import hashlib

UNKNOWN = "0" * 16


def source_id(where: str) -> str:
    """Sixteen hexadecimal digits for a source, by its place as it is noted."""
    return hashlib.sha256(where.encode()).hexdigest()[:16]


class Owners:
    """The sources of one row, by id: the one that brought it, and for columns that another filled, that one.

    In the table as ``ID caption_de=ID …``.
    """

    def __init__(self, text: str | None) -> None:
        self._first, *others = (text or UNKNOWN).split()
        self._others = dict(other.split("=", 1) for other in others)

    def __str__(self) -> str:
        return " ".join([self._first, *(f"{column}={name}" for column, name in sorted(self._others.items()))])

    def __getitem__(self, column: str) -> str:
        return self._others.get(column, self._first)

    def __setitem__(self, column: str, name: str) -> None:
        self._others.pop(column, None)
        if name != self._first:
            self._others[column] = name

    def are_all(self, name: str) -> bool:
        """Whether one source said all there is."""
        return self._first == name and not self._others
