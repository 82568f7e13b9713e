"""``metadata.csv``, ``.jsonl``, ``.parquet``: what tables say of pictures, kept on the disk meanwhile."""

from __future__ import annotations

import itertools
import json
import operator
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from carrara.errors import BadPicture, UserError, one_line
from carrara.importing.column_names import COLUMNS, Words, row_words
from carrara.importing.row import Rejected
from carrara.importing.table_rows import Line, arrow_texts, csv_names, csv_rows, json_rows, text_of
from carrara.text import nfc

if TYPE_CHECKING:
    from carrara.importing.file import File

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_NAMES = ("file_name", "file")


class Tables:
    """The rows of metadata tables by the picture that they name, and which of them have found theirs.

    They lie in a nameless file of SQLite's, which goes with this process: memory holds a byte a row.
    """

    def __init__(self) -> None:
        # Rows are looked up where the source is read, which need not be the thread that made this.
        self._kept = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._kept.execute("PRAGMA journal_mode = OFF")
        self._kept.execute(
            "CREATE TABLE said (number INTEGER PRIMARY KEY, picture BLOB, place INT, line TEXT, row TEXT)"
        )
        self._kept.execute("CREATE INDEX one ON said (picture, place, number)")
        self._found = bytearray()  # of each row by its number
        self._count = 0

    def take(
        self, where: str, table: str, file: File, is_picture: Callable[[str], bool]
    ) -> Iterator[Rejected]:
        """Remembers the rows of a table; those that are none are rejected.

        ``table`` is its name among the pictures', which its rows name from its own folder. Columns: ``file_name``
        or ``file``, and those of `column_names.row_words`. A later table goes before an earlier one, and an earlier
        row of one before a later one. UserError where the table cannot be read, or none of its rows names what
        ``is_picture``.
        """
        folder, last = str(PurePosixPath(table).parent), PurePosixPath(table).name
        read = {".csv": _csv, ".parquet": _parquet}.get(PurePosixPath(table).suffix, _jsonl)
        unit = "row" if table.endswith(".parquet") else "line"
        place, total, readable, one_is, first = self._count, 0, 0, False, ""
        self._count += 1
        self._kept.execute("BEGIN")
        try:
            for number, row in _readable(read(where, file), where):
                total += 1
                readable += not isinstance(row, str)
                line = f"{last} {unit} {number}"
                fault = row if isinstance(row, str) else None
                name = None if isinstance(row, str) else row.get("file_name") or row.get("file")
                if fault is None and not name:
                    fault = "names no picture; expected a column 'file_name' or 'file'"
                if isinstance(row, str) or not name:
                    first = first or f"{line}: {fault}"
                    yield Rejected(line, str(fault))
                    continue
                picture = _below(folder, name)
                if not one_is:
                    one_is = is_picture(picture)
                    first = first or f"names {name[:300]!r}, which is not among the pictures"
                said = json.dumps({k: v for k, v in row.items() if k not in _NAMES})
                self._kept.execute(
                    "INSERT INTO said VALUES (?, ?, ?, ?, ?)",
                    (len(self._found), _key(picture), place, line, said),
                )
                self._found.append(0)
            self._kept.execute("COMMIT")
        except sqlite3.Error as error:
            raise OSError(f"no room for what {where} says: {error}") from None
        if total and not readable:
            raise UserError(f"no row of {where} can be read ({first})")
        if total and not one_is:
            raise UserError(f"none of the {total} rows of {where} names a picture of this folder ({first})")

    def said_of(self, picture: str) -> tuple[Words, list[Rejected]]:
        """What the tables say of a picture, and the rows that say what cannot be."""
        words, rejected = Words(), list[Rejected]()
        if not self._found:
            return words, rejected
        rows = self._kept.execute(
            "SELECT number, place, line, row FROM said WHERE picture = ? ORDER BY place, number",
            (_key(picture),),
        )
        for _, same in itertools.groupby(rows, key=operator.itemgetter(1)):  # rows of one table
            said = Words()
            for number, _, line, row in same:
                self._found[number] = 1
                try:
                    another = row_words(json.loads(row), "it")
                except UserError as error:
                    rejected.append(Rejected(line, str(error)))
                    continue
                if lost := said.contradicts(another):
                    rejected.append(
                        Rejected(line, f"names its picture again, with another {' and '.join(lost)}")
                    )
                said = said.over(another)
            words = said.over(words)
        return words, rejected

    def unused(self) -> Iterator[Rejected]:
        """The rows whose picture nobody asked for, in their order."""
        at = self._found.find(0)
        while at >= 0:
            line, picture = self._kept.execute(
                "SELECT line, picture FROM said WHERE number = ?", (at,)
            ).fetchone()
            name = picture.decode("utf-8", "surrogatepass")
            yield Rejected(line, f"names {name[:300]!r}, which is not among the pictures")
            at = self._found.find(0, at + 1)

    def close(self) -> None:
        """Forgets everything."""
        self._kept.close()


def _below(folder: str, name: str) -> str:
    """The path that a row means by a name; one from the root stays one, and so means no picture."""
    if name.startswith("/"):
        return name
    return "/".join(part for part in f"{folder}/{name}".split("/") if part not in ("", "."))


def _key(picture: str) -> bytes:
    return nfc(picture).encode("utf-8", "surrogatepass")


def _readable(lines: Iterator[Line], where: str) -> Iterator[Line]:
    """The rows of a table. UserError where it is damaged."""
    import pyarrow as pa

    try:
        yield from lines
    except (OSError, BadPicture, pa.ArrowException) as error:
        raise UserError(f"{where} is not a readable table: {one_line(error)}") from None


def _csv(where: str, file: File) -> Iterator[Line]:
    with text_of(file.open()) as text:
        _check_names(where, csv_names(text))
        text.seek(0)
        yield from csv_rows(text)


def _jsonl(where: str, file: File) -> Iterator[Line]:
    with text_of(file.open()) as text:
        yield from json_rows(text)


def _parquet(where: str, file: File) -> Iterator[Line]:
    from pyarrow.parquet import ParquetFile

    with file.open() as opened, ParquetFile(opened) as table:
        # Only these: the others may hold the pictures again.
        names = [n for n in table.schema_arrow.names if n in _NAMES]
        _check_names(where, names)
        said = [n for n in table.schema_arrow.names if n.lower() in COLUMNS or n.startswith("caption_")]
        batches = table.iter_batches(1024, columns=[*names, *said])
        rows = itertools.chain.from_iterable(map(arrow_texts, batches))
        yield from itertools.starmap(Line, enumerate(rows, 1))


def _check_names(where: str, names: list[str]) -> None:
    if not any(name in _NAMES for name in names):
        raise UserError(f"{os.fspath(where)} names no pictures; expected a column 'file_name' or 'file'")
