"""Pictures and what is said of them apart, joined by number in a nameless file, however many there are.

An annotation names its picture by a number and stands anywhere in a document of gigabytes, before or after the list
of pictures. What is read goes into a temporary table (SQLite's, below TMPDIR), which sorts it.
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
    """A picture by its place in the order of first mention, and all that was noted of it, in that order."""

    place: int
    notes: list[Any]


class Annotated:
    """The table; what is noted are values that JSON has."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("", check_same_thread=False)
        self._waiting: list[tuple[Any, str]] = []
        self._run(
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            f"PRAGMA cache_size = -{_CACHE}",
            "CREATE TABLE pictures (place INTEGER PRIMARY KEY, id UNIQUE)",
            "CREATE TABLE notes (number INTEGER PRIMARY KEY, id, note TEXT)",
        )

    def list(self, known_by: object) -> None:
        """Notes that there is a picture of this number, if that is new. TypeError for what can be no number."""
        self._run("INSERT OR IGNORE INTO pictures (id) VALUES (?)", values=(_key(known_by),))

    def note(self, known_by: object, note: Any) -> None:
        """Notes something of the picture of this number, listed before or after."""
        self._waiting.append((_key(known_by), json.dumps(note)))
        if len(self._waiting) >= _TOGETHER:
            self._put_away()

    def __len__(self) -> int:
        (count,) = self._base.execute("SELECT count(*) FROM pictures").fetchone()
        return int(count)

    def unlisted(self) -> Iterator[Any]:
        """The notes of pictures that nobody listed."""
        self._put_away()
        found = "SELECT note FROM notes WHERE id NOT IN (SELECT id FROM pictures) ORDER BY number"
        yield from (json.loads(note) for (note,) in self._base.execute(found))

    def pictures(self) -> Iterator[Noted]:
        """All pictures in order."""
        self._put_away()
        # With the notes in it, what belongs to one picture lies together, and sorting it needs no memory.
        self._run("CREATE INDEX IF NOT EXISTS by_picture ON notes (id, number, note)")
        for place, known_by in self._base.execute("SELECT place, id FROM pictures ORDER BY place"):
            notes = self._base.execute("SELECT note FROM notes WHERE id = ? ORDER BY number", (known_by,))
            yield Noted(place, [json.loads(note) for (note,) in notes])

    def close(self) -> None:
        """The file goes."""
        self._base.close()

    def _put_away(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            self._base.executemany("INSERT INTO notes (id, note) VALUES (?, ?)", waiting)
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
