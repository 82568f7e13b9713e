"""Table rows as texts: CSV, TSV, JSON lines and Arrow are read in this one way, whoever wants their rows.

Text is UTF-8, or UTF-16 or UTF-32 that begins with its mark; a row with other bytes is none, whatever a code page
makes of it.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO

from carrara.errors import one_line
from carrara.importing.column_names import json_row, plain

if TYPE_CHECKING:
    import pyarrow as pa

MAX_LINE = 16 * 2**20  # letters of a line, and of a field
NOT_UTF8 = "not UTF-8; save it as UTF-8"
_MARKS = {  # which programs of Windows put before; the longer ones first, as one of them begins like a shorter one
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

Row = dict[str, str | None]

csv.field_size_limit(MAX_LINE)  # 128 KB otherwise, and captions may be longer


class Line(NamedTuple):
    """A row of a table by its (last) line's number, as its columns, or the reason why it is none."""

    number: int
    row: Row | str


def text_of(file: BinaryIO, errors: str = "surrogateescape") -> TextIO:
    """The text in a file, whose ends of lines stay. Bytes that are none become half surrogate pairs, which
    `is_text` tells from letters."""
    head = file.read(4)
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8-sig")
    file.seek(0)
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")


def is_text(text: str) -> bool:
    """Whether all of it are letters that can be stored; UTF-16 without its mark has NULs between them."""
    try:
        return "\0" not in text and (text.isascii() or bool(text.encode()))
    except UnicodeEncodeError:
        return False


def lines_of(text: TextIO) -> Iterator[str]:
    """The lines; of one that is too long only the beginning, and a letter more than it may have."""
    try:
        while line := text.readline(MAX_LINE + 1):
            rest = line
            while len(rest) > MAX_LINE and not rest.endswith("\n"):
                rest = text.readline(MAX_LINE + 1)
            yield line
    except UnicodeDecodeError:  # half of a letter of UTF-16, or a number of UTF-32 that is none
        yield "\0"  # a line that `is_text` knows for none


def csv_rows(text: TextIO, delimiter: str | None = None) -> Iterator[Line]:
    """The rows below a header; the sign that is most frequent in it (of ``,;|`` and tab) parts the columns, where
    none is given. Empty fields are left out. A row with more fields than the header is none: which of them the text
    would be continued in, nobody knows."""
    lines = lines_of(text)
    before, head = next(((k, line) for k, line in enumerate(lines) if line.strip()), (0, ""))
    delimiter = delimiter or delimiter_of(head)
    reader = csv.reader(itertools.chain([""] * before, [head], lines), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        values, fault = [], ""
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = str(error)
        first, before = before + 1, reader.line_num
        if fault:
            through = f" (from line {first} on)" if before > first else ""
            yield Line(before, f"not readable: {fault}{through}")
        elif names is None and not values:
            continue
        elif names is None:
            names = [name.strip() for name in values]
            for name in dict.fromkeys(n for n in names if n and names.count(n) > 1):
                yield Line(before, f"the column {name!r} stands twice; the first is taken")
        elif sum(map(len, values)) + len(values) > MAX_LINE:
            yield Line(before, f"longer than {MAX_LINE} letters")
        elif not all(map(is_text, values)):
            yield Line(before, NOT_UTF8)
        elif any(map(str.strip, values[len(names) :])):
            many = f"{len(values)} fields, where the header has {len(names)}"
            yield Line(before, f"{many}; a text with {delimiter!r} in it stands in double quotes")
        elif values:
            pairs = zip(names, values, strict=False)
            yield Line(before, {name: value for name, value in reversed([*pairs]) if value})


def csv_names(text: TextIO, delimiter: str | None = None) -> list[str]:
    """The columns of a table; none where its first line is no header."""
    head = next((line for line in lines_of(text) if line.strip()), "")
    try:
        return [
            name.strip() for name in next(csv.reader([head], delimiter=delimiter or delimiter_of(head)), [])
        ]
    except csv.Error:
        return []


def delimiter_of(head: str) -> str:
    """What parts the columns of a header."""
    return max(",;\t|", key=lambda sign: (head.count(sign), sign == ","))


def json_rows(text: TextIO) -> Iterator[Line]:
    """A JSON object a line; empty lines are passed over."""
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE:
                raise ValueError(f"longer than {MAX_LINE} letters")
            yield Line(number, json_row(line) if is_text(line) else NOT_UTF8)
        except ValueError as error:
            yield Line(number, f"not a JSON object: {str(error)[:200]}")


def arrow_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows as Python's values, or why one has none: a text that is not UTF-8, a date beyond Python's. Such a row
    does not take the others along."""
    try:
        rows: Iterable[dict[str, Any] | str] = batch.to_pylist()
    except Exception:  # pyarrow meets hostile values: ValueError, OverflowError, KeyError (a time zone), …
        rows = (_only_row(batch.slice(number, 1)) for number in range(batch.num_rows))
    yield from rows


def arrow_texts(batch: pa.RecordBatch) -> Iterator[Row | str]:
    """The same as texts; what is missing is left out."""
    for row in arrow_rows(batch):
        try:
            yield (
                row
                if isinstance(row, str)
                else {name: text for name, value in row.items() if (text := plain(value)) is not None}
            )
        except UnicodeDecodeError:
            yield NOT_UTF8


def _only_row(batch: pa.RecordBatch) -> dict[str, Any] | str:
    try:
        row: dict[str, Any] = batch.to_pylist()[0]
        return row
    except UnicodeDecodeError:
        return NOT_UTF8
    except Exception as error:
        return f"a value that cannot be read: {one_line(error)}"
