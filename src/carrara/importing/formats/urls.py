"""A table of pictures that lie elsewhere: a url, or a path below the table, a row, as LAION's and many CSVs are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from carrara.errors import BadPicture, UserError, one_line
from carrara.images.header import SUFFIXES
from carrara.importing.archives import TARS, unsafe
from carrara.importing.column_names import COLUMNS, row_words
from carrara.importing.download import Remote
from carrara.importing.file_listing import any_below, below, deep, digest_of, on_disk
from carrara.importing.formats.folder import file_at
from carrara.importing.options import Options
from carrara.importing.row import Rejected, Row, Survey
from carrara.importing.table_rows import (
    NOT_UTF8,
    Line,
    arrow_texts,
    csv_names,
    csv_rows,
    is_text,
    json_rows,
    lines_of,
    text_of,
)
from carrara.text import printable

DOWNLOADS = True  # its rows are to be fetched
URLS = ("url", "image_url", "img_url", "image_link", "coco_url")
PATHS = ("image_path", "img_path", "file_path", "filepath", "path", "file_name", "filename", "file")
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_DELIMITERS = {".tsv": "\t"}  # of the others the header tells
_LOOKED_AT = 100  # lines of JSON, one of which tells the columns
_LONGEST = 8192  # letters of an address


def matches(source: str) -> bool:
    """The source is a CSV, TSV, JSONL or Parquet file, or a folder of Parquet, with a column of urls or paths and none
    of pictures; or a text with a url a line."""
    path = Path(source)
    return bool(files := _files(path)) and _where(files[0]) is not None


def survey(source: str, options: Options) -> Survey:
    """Counts the rows and digests the files' names, sizes and times."""
    # What an option lets in now makes another import of it than the one that refused it.
    lets = {
        name: value
        for name in ("allow_private", "ignore_robots_tag", "most_megabytes")
        if (value := getattr(options, name)) != Options.model_fields[name].default
    }
    files = _files(Path(source))
    digest = digest_of(Path(source), files, repr(options.licence) + (repr(lets) if lets else ""))
    if not (total := sum(1 for path in files for _ in _lines(path, count=True))):
        raise UserError(f"{source} has no rows")
    return Survey(total, digest)


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """A row per row, named by its url or path; those of urls have a `download.Remote` to read."""
    for path in _files(Path(source)):
        if (column := _where(path)) is None:
            yield Rejected(printable(path.name), f"no column of urls (known: {', '.join(URLS)})")
            continue
        name = printable(below(Path(source), path))
        for number, said in _lines(path):
            if isinstance(said, str):
                yield Rejected(f"{name}:{number}", said)
                continue
            there = (said.get(column) or "").strip()
            if not there:
                yield Rejected(f"{name}:{number}", f"the row has no {column}")
                continue
            if len(there) > _LONGEST:
                yield Rejected(f"{name}:{number}", f"a {column} of {len(there)} letters")
                continue
            try:
                words = row_words(said, "the row")
            except UserError as error:
                yield Rejected(f"{name}:{number}", str(error))
                continue
            told = words.told(options.licence)
            if column.lower() in URLS:
                told["url"] = printable(there)
                yield Row(source=printable(there), read=Remote(there), **told)
            else:
                yield Row(source=printable(there), read=partial(_read_below, path.parent, there), **told)


def _read_below(folder: Path, name: str) -> bytes:
    """The bytes of a file that a table names; only such as lie below it."""
    if (reason := unsafe(name)) is not None:
        raise BadPicture(f"{reason}; only files below the table's folder are read")
    path = on_disk(folder, name)
    if not os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep):
        raise BadPicture("a link out of the table's folder")
    return file_at(path, os.stat(path)).read()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() in (*_TABLES, ".txt") else []
    if not path.is_dir() or any_below(path, (*SUFFIXES, *TARS)):
        return []
    return [p for p in deep(path, (".parquet",)) if p.name != "metadata.parquet"]


def _where(path: Path) -> str | None:
    """The column that says where the pictures are; None where the file is no such table."""
    try:
        names = _columns(path)
    except (OSError, UserError):
        return None
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in (*URLS, *PATHS) if name in lower), None)


def _columns(path: Path) -> list[str]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        import pyarrow.types as is_

        fields = list(_schema(path))
        kinds = [part.type for f in fields for part in ([f, *f.type] if is_.is_struct(f.type) else [f])]
        if any(is_.is_binary(k) or is_.is_large_binary(k) for k in kinds):
            return []  # it has the pictures themselves
        return [f.name for f in fields if is_.is_string(f.type) or is_.is_large_string(f.type)]
    with text_of(open(path, "rb")) as text:
        if kind in (".csv", ".tsv"):
            return csv_names(text, _DELIMITERS.get(kind))
        if kind == ".jsonl":
            first = itertools.islice(json_rows(text), _LOOKED_AT)
            return list(next((row for _, row in first if not isinstance(row, str)), ()))
        head = next((line for line in lines_of(text) if line.strip()), "")
    return ["url"] if head.startswith(("http://", "https://")) and len(head.split()) == 1 else []


def _lines(path: Path, *, count: bool = False) -> Iterator[Line]:
    """The number of each row with what it says, or why it says nothing; to ``count``, what it says is left out."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path, count=count)
        return
    with text_of(open(path, "rb")) as text:
        if kind in (".csv", ".tsv"):
            yield from csv_rows(text, _DELIMITERS.get(kind))
        elif kind == ".jsonl":
            yield from json_rows(text)
        else:
            for number, line in enumerate(lines_of(text), 1):
                if url := line.strip():
                    yield Line(number, {"url": url} if is_text(line) else NOT_UTF8)


def _parquet(path: Path, *, count: bool) -> Iterator[Line]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        if count:
            yield from (Line(k, "") for k in range(file.metadata.num_rows))
            return
        names = file.schema_arrow.names
        known = {*URLS, *PATHS, *COLUMNS}
        wanted = [n for n in names if n.lower() in known or n.lower().startswith("caption_")]
        number = 0
        try:
            for batch in file.iter_batches(1024, columns=wanted):
                for row in arrow_texts(batch):
                    yield Line(number, row)
                    number += 1
        except (OSError, pa.ArrowException) as error:
            yield Line(number, f"not read any further: {one_line(error)}")


def _schema(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            return file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not readable Parquet: {error}") from None
