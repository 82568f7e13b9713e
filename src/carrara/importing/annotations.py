"""Annotations and their pictures, joined by number in a nameless file, however many there are.

An annotation names its picture by a number and stands anywhere in a document of gigabytes, before or after the list
of pictures. What is read goes into a temporary table (SQLite's, below TMPDIR), which sorts it. Numbers mean something
within their document only; the pictures of several are joined by their names.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple

from carrara.errors import UserError

_TOGETHER = 1000
_CACHE = 64 * 1024  # KiB of it that are held in memory


class Noted(NamedTuple):
    """A picture by its name, and all that was noted of it: (document, note) in the order of notes."""

    name: str
    notes: list[tuple[int, Any]]


class Annotated:
    """The table; what is noted are values that JSON has."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("", check_same_thread=False)
        self._waiting: list[tuple[int, Any, str]] = []
        self._run(
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            f"PRAGMA cache_size = -{_CACHE}",
            "CREATE TABLE pictures (place INTEGER PRIMARY KEY, name TEXT UNIQUE)",
            "CREATE TABLE listed (document INT, id, picture INT, UNIQUE (document, id))",
            "CREATE TABLE notes (number INTEGER PRIMARY KEY, document INT, id, note TEXT)",
        )

    def list(self, document: int, known_by: object, name: str) -> str:
        """Lists a picture of this name under this number of a document, and gives the name that the number has: that
        of the first that was listed under it. TypeError for what can be no number."""
        named = json.dumps(name)  # which takes half surrogate pairs, too
        self._run("INSERT OR IGNORE INTO pictures (name) VALUES (?)", values=(named,))
        self._run(
            "INSERT OR IGNORE INTO listed SELECT ?, ?, place FROM pictures WHERE name = ?",
            values=(document, _key(known_by), named),
        )
        (first,) = self._base.execute(
            "SELECT name FROM listed JOIN pictures ON place = picture WHERE document = ? AND id = ?",
            (document, _key(known_by)),
        ).fetchone()
        return str(json.loads(first))

    def note(self, document: int, known_by: object, note: Any) -> None:
        """Notes something of the picture of this number, listed before or after."""
        self._waiting.append((document, _key(known_by), json.dumps(note)))
        if len(self._waiting) >= _TOGETHER:
            self._put_away()

    def __len__(self) -> int:
        (count,) = self._base.execute("SELECT count(*) FROM pictures").fetchone()
        return int(count)

    def unlisted(self) -> Iterator[int]:
        """The document of each note of a picture that it does not list."""
        self._put_away()
        found = "SELECT document FROM notes WHERE (document, id) NOT IN (SELECT document, id FROM listed)"
        yield from (document for (document,) in self._base.execute(f"{found} ORDER BY number"))

    def pictures(self) -> Iterator[Noted]:
        """All pictures in the order in which they were first listed; one that no number means has no notes."""
        self._put_away()
        # With the notes in it, what belongs to one picture lies together, and sorting it needs no memory.
        self._run(
            "CREATE INDEX IF NOT EXISTS by_picture ON notes (document, id, number, note)",
            "CREATE INDEX IF NOT EXISTS by_place ON listed (picture, document, id)",
        )
        for place, name in self._base.execute("SELECT place, name FROM pictures ORDER BY place"):
            notes = self._base.execute(
                "SELECT notes.document, note FROM listed JOIN notes USING (document, id) WHERE picture = ? "
                "ORDER BY number",
                (place,),
            )
            yield Noted(json.loads(name), [(document, json.loads(note)) for document, note in notes])

    def close(self) -> None:
        """The file goes."""
        self._base.close()

    def _put_away(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            self._base.executemany("INSERT INTO notes (document, id, note) VALUES (?, ?, ?)", waiting)
        except sqlite3.Error as error:
            raise _cannot(error) from None

    def _run(self, *commands: str, values: tuple[Any, ...] = ()) -> None:
        try:
            for command in commands:
                self._base.execute(command, values)
        except sqlite3.Error as error:
            raise _cannot(error) from None


def _cannot(error: sqlite3.Error) -> UserError:
    return UserError(f"annotations cannot be put aside: {error} (TMPDIR says where that is done)")


def _key(known_by: object) -> int | str:
    """A number of a picture as SQLite can hold it: 1 and "1" are two of them, as in JSON."""
    if isinstance(known_by, int) and not isinstance(known_by, bool) and abs(known_by) < 1 << 62:
        return known_by
    if isinstance(known_by, list | dict):
        raise TypeError(f"a {type(known_by).__name__} where the number of a picture is expected")
    if isinstance(known_by, float) and known_by.is_integer():
        return _key(int(known_by))
    return json.dumps(known_by)
