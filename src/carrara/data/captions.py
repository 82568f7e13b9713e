"""What is said beside pictures: ``x.txt``, ``x.de.txt``, ``x.json``, ``x.boxes.json``, ``metadata.csv`` …."""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from carrara.data.rows import UNSTATED, BadPicture, Rejected, tidy
from carrara.data.words import COLUMNS, LANGUAGE, Words, json_row, plain, row_words
from carrara.errors import UserError

if TYPE_CHECKING:
    from carrara.data.files import File

# Texts that come with collections and describe no single picture.
ABOUT_THE_COLLECTION = (
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "credits",
    "attribution",
    "changelog",
)
TEXT_SUFFIXES = (".txt", ".caption")
BOXES_SUFFIX = ".boxes.json"
MAX_TEXT = 1 << 20  # bytes of what is said of one picture

Found = tuple[dict[str, Words], list[Rejected]]


def from_texts(where: str, texts: Mapping[str, File], pictures: Sequence[str]) -> Found:
    """The captions in text files, by picture; texts that name no picture are rejected.

    ``x.txt``, ``x.caption`` and ``x.png.txt`` describe ``x.png``, ``x.de.txt`` does in German. UserError where there
    are several texts and not one has its picture.
    """
    named = by_name(pictures)
    captions: dict[str, dict[str, str]] = defaultdict(dict)
    rejected, matched = [], 0
    for text, file in texts.items():
        stem = os.path.splitext(text)[0]
        language, described = UNSTATED, named.get(stem, [])
        if not described:
            stem, _, suffix = stem.rpartition(".")
            if LANGUAGE.fullmatch(suffix):
                language, described = suffix.lower().replace("_", "-"), named.get(stem, [])
        if not described:
            rejected.append(
                Rejected(_shown(text), f"a caption without its picture (expected {_expected(text)})")
            )
            continue
        matched += 1
        try:
            caption = tidy(as_text(file.read()))
        except (OSError, ValueError) as error:
            rejected.append(Rejected(_shown(text), f"a caption that cannot be read: {_reason(error)}"))
            continue
        for picture in described if caption else ():
            if captions[picture].setdefault(language, caption or "") != caption:
                rejected.append(Rejected(_shown(text), "a second caption of its picture in this language"))
    strays = [t for t in texts if PurePosixPath(t).name.split(".")[0].casefold() not in ABOUT_THE_COLLECTION]
    if len(strays) > 1 and not matched:
        raise UserError(
            f"none of the {len(strays)} captions in {where} has its picture "
            f"({_shown(strays[0])} expects {_expected(strays[0])} or the like beside it)"
        )
    return {picture: Words(found) for picture, found in captions.items()}, rejected


def from_boxes(files: Mapping[str, File], pictures: Sequence[str]) -> Found:
    """The boxes in files beside pictures, as text and by picture; files that name no picture are rejected."""
    named = by_name(pictures)
    words: dict[str, Words] = {}
    rejected = []
    for name, file in files.items():
        described = named.get(name[: -len(BOXES_SUFFIX)], [])
        if not described:
            rejected.append(Rejected(_shown(name), "boxes without their picture"))
            continue
        try:
            text = as_text(file.read())
        except (OSError, ValueError) as error:
            rejected.append(Rejected(_shown(name), f"boxes that cannot be read: {_reason(error)}"))
            continue
        words |= {picture: Words(boxes=text) for picture in described}
    return words, rejected


def from_records(files: Mapping[str, File], pictures: Sequence[str]) -> Found:
    """What ``x.json`` says of ``x.png`` under the names that a table's columns have."""
    named = by_name(pictures)
    words: dict[str, Words] = {}
    rejected = []
    for name, file in files.items():
        described = named.get(os.path.splitext(name)[0], [])
        if not described:
            rejected.append(Rejected(_shown(name), "not a picture (.json)"))
            continue
        try:
            found = row_words(json_row(as_text(file.read())), "it")
        except (OSError, ValueError) as error:
            rejected.append(Rejected(_shown(name), f"words that cannot be read: {_reason(error)}"))
            continue
        words |= {picture: found for picture in described}
    return words, rejected


def by_name(pictures: Sequence[str]) -> dict[str, list[str]]:
    """What lies beside ``x.png`` may call it ``x`` or ``x.png``: the pictures that a name means."""
    named: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        named[picture].append(picture)
        named[os.path.splitext(picture)[0]].append(picture)
    return named


def from_metadata(where: str, table: str, file: File, pictures: Collection[str]) -> Found:
    """The words in a metadata table, by picture; rows that name no picture, or one twice, are rejected.

    ``table`` is its name among the pictures', which its rows name from its own folder. Columns: ``file_name`` or
    ``file``, and those of `words.row_words`. UserError where the table cannot be read or none of its rows has its
    picture.
    """
    words: dict[str, Words] = {}
    rejected: list[Rejected] = []
    total = 0
    folder, last = PurePosixPath(table).parent, PurePosixPath(table).name
    read = {".csv": _csv, ".parquet": _parquet}.get(PurePosixPath(table).suffix, _jsonl)
    unit = "row" if table.endswith(".parquet") else "line"
    for number, row in read(where, file):
        total += 1
        name = row.get("file_name") or row.get("file")
        if not name:
            raise UserError(
                f"{where} {unit} {number} names no picture; expected a column 'file_name' or 'file'"
            )
        picture = str(folder / name)
        if picture not in pictures:
            rejected.append(
                Rejected(f"{last} {unit} {number}", f"names {name[:300]!r}, which is not among the pictures")
            )
        elif picture in words:
            rejected.append(Rejected(f"{last} {unit} {number}", f"names {name!r} a second time"))
        else:
            words[picture] = row_words(row, f"{where} {unit} {number}")
    if total and not words:
        raise UserError(
            f"none of the {total} rows of {where} names a picture of this folder ({rejected[0].reason})"
        )
    return words, rejected


Line = tuple[int, dict[str, str | None]]


def _csv(where: str, file: File) -> Iterator[Line]:
    try:
        with io.TextIOWrapper(file.open(), encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            for row in reader:
                yield reader.line_num, {str(k).strip(): v for k, v in row.items() if isinstance(v, str)}
    except (OSError, BadPicture, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{where} is not a readable CSV table: {error}") from None


def _jsonl(where: str, file: File) -> Iterator[Line]:
    line = 0
    try:
        with io.TextIOWrapper(file.open(), encoding="utf-8-sig") as text:
            for line, row in enumerate(text, 1):
                if row.strip():
                    yield line, json_row(row)
    except (OSError, BadPicture, UnicodeDecodeError) as error:
        raise UserError(f"{where} is not readable: {error}") from None
    except ValueError as error:
        raise UserError(f"{where} line {line} is not a JSON object: {error}") from None


def _parquet(where: str, file: File) -> Iterator[Line]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with file.open() as opened, ParquetFile(opened) as table:
            # Only these: the others may hold the pictures again.
            names = [n for n in table.schema_arrow.names if n in ("file_name", "file")]
            if not names:
                raise UserError(f"{where} names no pictures; expected a column 'file_name' or 'file'")
            said = [n for n in table.schema_arrow.names if n.lower() in COLUMNS or n.startswith("caption_")]
            batches = table.iter_batches(1024, columns=[*names, *said])
            for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                yield (
                    number,
                    {name: text for name, value in row.items() if (text := plain(value)) is not None},
                )
    except (OSError, BadPicture, pa.ArrowException) as error:
        raise UserError(f"{where} is not readable Parquet: {' '.join(str(error).split())[:200]}") from None


def as_text(data: bytes) -> str:
    """What a small file says; ValueError where it is none, or no text."""
    if len(data) > MAX_TEXT:
        raise ValueError(f"more than {MAX_TEXT} bytes")
    for mark, encoding in (
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):  # Windows' editors put it before
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                break
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _reason(error: OSError | ValueError) -> str:
    return str((error.strerror if isinstance(error, OSError) else None) or error)


def _expected(text: str) -> str:
    return PurePosixPath(_shown(text)).stem + ".png"


def _shown(name: str) -> str:
    from carrara.data.files import printable

    return printable(name)
