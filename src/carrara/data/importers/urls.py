"""A table of pictures that lie elsewhere: a url, or a path below the table, a row, as LAION's and many CSVs are."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from carrara.data.archives import TARS, unsafe
from carrara.data.captions import MAX_TEXT
from carrara.data.fetching import Remote
from carrara.data.files import any_below, below, deep, printable
from carrara.data.importers.folder import file_at
from carrara.data.importing import Options
from carrara.data.pictures import SUFFIXES
from carrara.data.rows import BadPicture, Rejected, Row, Survey
from carrara.data.words import COLUMNS, json_row, plain, row_words
from carrara.errors import UserError

DOWNLOADS = True  # its rows are to be fetched
URLS = ("url", "image_url", "img_url", "image_link", "coco_url")
PATHS = ("image_path", "img_path", "file_path", "filepath", "path", "file_name", "filename", "file")
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_ALTERNATIVES = {"alt": "text", "alt_text": "text", "top_caption": "text"}
_HEAD = 1 << 16
_LONGEST = 8192  # letters of an address

Said = dict[str, str | None]


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
    total, digest = 0, hashlib.sha256((repr(options.licence) + (repr(lets) if lets else "")).encode())
    for path in _files(Path(source)):
        about = path.stat()
        digest.update(f"{below(Path(source), path)!r} {about.st_size} {about.st_mtime_ns}\n".encode())
        total += sum(1 for _ in _lines(path, count=True))
    if not total:
        raise UserError(f"{source} has no rows")
    return Survey(total, digest.hexdigest())


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """A row per row, named by its url or path; those of urls have a `fetching.Remote` to read."""
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
                words = row_words({_ALTERNATIVES.get(k.lower(), k): v for k, v in said.items()}, "the row")
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
    path = os.path.join(folder, name)
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
    with open(path, encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        head = file.readline(_HEAD)
    if kind == ".jsonl":
        try:
            return list(json_row(head))
        except ValueError:
            return []
    if kind == ".txt":
        return ["url"] if head.startswith(("http://", "https://")) and len(head.split()) == 1 else []
    try:
        return [str(name).strip() for name in next(csv.reader([head], delimiter=_delimiter(path, head)), [])]
    except csv.Error:
        return []


def _lines(path: Path, *, count: bool = False) -> Iterator[tuple[int, Said | str]]:
    """The number of each row with what it says, or why it says nothing; to ``count``, what it says is left out."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path, count=count)
        return
    with open(path, encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        if kind in (".csv", ".tsv"):
            yield from _csv(file, _delimiter(path, _columns_line(path)))
            return
        number = 0
        while line := file.readline(MAX_TEXT):
            number += 1
            if not line.strip():
                continue
            try:
                yield number, {"url": line.strip()} if kind == ".txt" else json_row(line)
            except ValueError as error:
                yield number, f"not a JSON object: {str(error)[:100]}"


def _csv(file: Any, delimiter: str) -> Iterator[tuple[int, Said | str]]:
    csv.field_size_limit(MAX_TEXT)  # of one caption; 128 KB otherwise
    reader = csv.reader(file, delimiter=delimiter)
    names: list[str] | None = None
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, f"not readable: {error}"
            continue
        if names is None:
            names = [name.strip() for name in values]
        elif values:
            yield reader.line_num, {name: v for name, v in zip(names, values, strict=False) if v}


def _parquet(path: Path, *, count: bool) -> Iterator[tuple[int, Said | str]]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        if count:
            yield from ((k, "") for k in range(file.metadata.num_rows))
            return
        names = file.schema_arrow.names
        known = {*URLS, *PATHS, *COLUMNS, *_ALTERNATIVES}
        wanted = [n for n in names if n.lower() in known or n.lower().startswith("caption_")]
        number = 0
        try:
            for batch in file.iter_batches(1024, columns=wanted):
                for values in batch.to_pylist():
                    yield number, {k: text for k, v in values.items() if (text := plain(v)) is not None}
                    number += 1
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            yield number, f"not read any further: {' '.join(str(error).split())[:200]}"


def _schema(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            return file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not readable Parquet: {error}") from None


def _columns_line(path: Path) -> str:
    with open(path, encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        return file.readline(_HEAD)


def _delimiter(path: Path, head: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(",;\t|", key=lambda sign: (head.count(sign), sign == ","))
