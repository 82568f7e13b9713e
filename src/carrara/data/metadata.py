"""``metadata.csv``, ``.jsonl``, ``.parquet``: what tables say of pictures, kept on the disk meanwhile."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from carrara.data.rows import BadPicture, Rejected
from carrara.data.words import COLUMNS, Words, json_row, plain, row_words
from carrara.errors import UserError

if TYPE_CHECKING:
    from carrara.data.files import File

MAX_LINE = 16 * 2**20  # bytes of a line of JSON
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_NAMES = ("file_name", "file")

Row = dict[str, str | None]


class Line(NamedTuple):
    """A row of a table by its number, as its columns, or the reason why it is none."""

    number: int
    row: Row | str


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
        self._kept.execute("CREATE UNIQUE INDEX one ON said (picture, place)")
        self._found = bytearray()  # of each row by its number
        self._count = 0

    def take(
        self, where: str, table: str, file: File, is_picture: Callable[[str], bool]
    ) -> Iterator[Rejected]:
        """Remembers the rows of a table; those that are none, or name a picture again, are rejected.

        ``table`` is its name among the pictures', which its rows name from its own folder. Columns: ``file_name``
        or ``file``, and those of `words.row_words`. A later table goes before an earlier one. UserError where the
        table cannot be read, or none of its rows names what ``is_picture``.
        """
        folder, last = str(PurePosixPath(table).parent), PurePosixPath(table).name
        read = {".csv": _csv, ".parquet": _parquet}.get(PurePosixPath(table).suffix, _jsonl)
        unit = "row" if table.endswith(".parquet") else "line"
        place, total, one_is, first = self._count, 0, False, ""
        self._count += 1
        self._kept.execute("BEGIN")
        try:
            for number, row in read(where, file):
                total += 1
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
                done = self._kept.execute(
                    "INSERT OR IGNORE INTO said VALUES (?, ?, ?, ?, ?)",
                    (len(self._found), _key(picture), place, line, said),
                )
                if done.rowcount:
                    self._found.append(0)
                else:
                    yield Rejected(line, f"names {name!r} a second time")
            self._kept.execute("COMMIT")
        except sqlite3.Error as error:
            raise OSError(f"no room for what {where} says: {error}") from None
        if total and not one_is:
            raise UserError(f"none of the {total} rows of {where} names a picture of this folder ({first})")

    def said_of(self, picture: str) -> tuple[Words, list[Rejected]]:
        """What the tables say of a picture, and the rows that say what cannot be."""
        words, rejected = Words(), list[Rejected]()
        if not self._found:
            return words, rejected
        for number, line, row in self._kept.execute(
            "SELECT number, line, row FROM said WHERE picture = ? ORDER BY place", (_key(picture),)
        ):
            self._found[number] = 1
            try:
                words = row_words(json.loads(row), "it").over(words)
            except UserError as error:
                rejected.append(Rejected(line, str(error)))
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
    return picture.encode("utf-8", "surrogatepass")


def _csv(where: str, file: File) -> Iterator[Line]:
    try:
        with io.TextIOWrapper(file.open(), encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            _check_names(where, [str(name).strip() for name in reader.fieldnames or ()])
            for row in reader:
                found = {str(k).strip(): v for k, v in row.items() if isinstance(v, str)}
                yield Line(reader.line_num, found)  # type: ignore[arg-type]
    except (OSError, BadPicture, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{where} is not a readable CSV table: {error}") from None


def _jsonl(where: str, file: File) -> Iterator[Line]:
    """Line by line, so that a bad one is one; UserError where all are."""
    fault, whole = "", False
    try:
        with file.open() as lines:
            for number, line in enumerate(_lines(lines), 1):
                if not line.strip():
                    continue
                try:
                    if len(line) > MAX_LINE:
                        raise ValueError(f"longer than {MAX_LINE} bytes")
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    row: Row = json_row(text)
                except ValueError as error:
                    reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
                    fault = fault or f"line {number} is not a JSON object: {reason}"
                    yield Line(number, f"not a JSON object: {reason}")
                else:
                    whole = True
                    yield Line(number, row)
    except (OSError, BadPicture) as error:
        raise UserError(f"{where} is not readable: {error}") from None
    if fault and not whole:
        raise UserError(f"{where} {fault}")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines; of one that is too long only the beginning, and a byte more than it may have."""
    while line := file.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 1)
        yield line


def _parquet(where: str, file: File) -> Iterator[Line]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with file.open() as opened, ParquetFile(opened) as table:
            # Only these: the others may hold the pictures again.
            names = [n for n in table.schema_arrow.names if n in _NAMES]
            _check_names(where, names)
            said = [n for n in table.schema_arrow.names if n.lower() in COLUMNS or n.startswith("caption_")]
            number = 0
            for batch in table.iter_batches(1024, columns=[*names, *said]):
                for row in _rows(batch):
                    number += 1
                    yield Line(number, row)
    except (OSError, BadPicture, pa.ArrowException) as error:
        raise UserError(f"{where} is not readable Parquet: {' '.join(str(error).split())[:200]}") from None


def _rows(batch: Any) -> Iterator[Row | str]:
    """The rows of a batch as texts; one whose text is none does not take the others along."""
    for number in range(batch.num_rows):
        try:
            (row,) = batch.slice(number, 1).to_pylist()
            yield {name: text for name, value in row.items() if (text := plain(value)) is not None}
        except UnicodeDecodeError:
            yield "a text of the row is not UTF-8"


def _check_names(where: str, names: list[str]) -> None:
    if not any(name in _NAMES for name in names):
        raise UserError(f"{os.fspath(where)} names no pictures; expected a column 'file_name' or 'file'")
