"""What is said beside pictures: ``x.txt``, ``x.de.txt``, ``x.boxes.json``, ``metadata.csv``, ``.jsonl`` …"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from carrara.data.rows import SPLITS, UNSTATED, Rejected, tidy
from carrara.errors import UserError

LANGUAGE = re.compile(r"[a-z]{2,3}([-_][a-z0-9]{2,8})*", re.IGNORECASE)
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
HELD_OUT = ("held_out", "held-out", "heldout", "test", "val", "valid", "validation", "dev")
BOXES = ("boxes", "objects")  # the columns of a table that may say them
BOXES_SUFFIX = ".boxes.json"
_COLUMNS = ("file_name", "file", "text", "caption", "label", "split", "group", "licence", "license", *BOXES)
_MAX_TEXT = 1 << 20


@dataclass(frozen=True)
class Words:
    """What is said about one picture."""

    captions: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    group: str | None = None
    split: str | None = None
    licence: str | None = None
    boxes: str | None = None

    def over(self, other: Words) -> Words:
        """These words, with another's where these say nothing."""
        return Words(
            {**other.captions, **self.captions},
            self.label or other.label,
            self.group or other.group,
            self.split or other.split,
            self.licence or other.licence,
            self.boxes or other.boxes,
        )


def from_texts(
    root: Path, texts: Sequence[str], pictures: Sequence[str]
) -> tuple[dict[str, Words], list[Rejected]]:
    """The captions in text files, by picture; texts that name no picture are rejected.

    ``x.txt`` and ``x.png.txt`` describe ``x.png``, ``x.de.txt`` does in German. UserError where there are
    several texts and not one has its picture.
    """
    named = by_name(pictures)
    captions: dict[str, dict[str, str]] = defaultdict(dict)
    rejected, matched = [], 0
    for text in texts:
        stem = text[: -len(".txt")]
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
            caption = tidy(_read_text(os.path.join(root, text)))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            rejected.append(Rejected(_shown(text), f"a caption that cannot be read: {reason}"))
            continue
        for picture in described if caption else ():
            captions[picture][language] = caption or ""
    strays = [t for t in texts if PurePosixPath(t).name.split(".")[0].casefold() not in ABOUT_THE_COLLECTION]
    if len(strays) > 1 and not matched:
        raise UserError(
            f"none of the {len(strays)} captions in {root} has its picture "
            f"({strays[0]} expects {_expected(strays[0])} or the like beside it)"
        )
    return {picture: Words(found) for picture, found in captions.items()}, rejected


def from_boxes(
    root: Path, files: Sequence[str], pictures: Sequence[str]
) -> tuple[dict[str, Words], list[Rejected]]:
    """The boxes in files beside pictures, as text and by picture; files that name no picture are rejected."""
    named = by_name(pictures)
    words: dict[str, Words] = {}
    rejected = []
    for file in files:
        described = named.get(file[: -len(BOXES_SUFFIX)], [])
        if not described:
            rejected.append(Rejected(_shown(file), "boxes without their picture"))
            continue
        try:
            text = _read_text(os.path.join(root, file))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            rejected.append(Rejected(_shown(file), f"boxes that cannot be read: {reason}"))
            continue
        words |= {picture: Words(boxes=text) for picture in described}
    return words, rejected


def by_name(pictures: Sequence[str]) -> dict[str, list[str]]:
    """What lies beside ``x.png`` may call it ``x`` or ``x.png``: the pictures that a name means."""
    named: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        named[picture].append(picture)
        named[os.path.splitext(picture)[0]].append(picture)
    return named


def from_metadata(path: Path, pictures: Collection[str]) -> tuple[dict[str, Words], list[Rejected]]:
    """The words in a metadata table, by picture; rows that name no picture, or one twice, are rejected.

    Columns: ``file_name`` or ``file``; ``text`` or ``caption``; ``caption_<language>``; ``label``, ``split``,
    ``group``, ``licence``, ``boxes`` or ``objects``. UserError where the table cannot be read or none of its rows has
    its picture.
    """
    words: dict[str, Words] = {}
    rejected: list[Rejected] = []
    total = 0
    read = {".csv": _csv, ".parquet": _parquet}.get(path.suffix, _jsonl)
    unit = "row" if path.suffix == ".parquet" else "line"
    for number, row in read(path):
        total += 1
        name = row.get("file_name") or row.get("file")
        if not name:
            raise UserError(
                f"{path} {unit} {number} names no picture; expected a column 'file_name' or 'file'"
            )
        picture = str(PurePosixPath(name))
        if picture not in pictures:
            rejected.append(
                Rejected(f"{path.name} {unit} {number}", f"names {name!r}, which is not among the pictures")
            )
        elif picture in words:
            rejected.append(Rejected(f"{path.name} {unit} {number}", f"names {name!r} a second time"))
        else:
            words[picture] = row_words(row, f"{path} {unit} {number}")
    if total and not words:
        raise UserError(
            f"none of the {total} rows of {path} names a picture of this folder ({rejected[0].reason})"
        )
    return words, rejected


def row_words(row: dict[str, str], where: str) -> Words:
    """The words in one row of a table by its columns' names; UserError where its split is none."""
    captions = {UNSTATED: row.get("text") or row.get("caption")}
    for column, value in row.items():
        language = column.removeprefix("caption_").replace("_", "-").lower()
        if column.startswith("caption_") and LANGUAGE.fullmatch(language):
            captions[language] = value
    split = tidy(row.get("split"))
    if split is not None:
        split = "held_out" if split.lower() in HELD_OUT else split.lower()
        if split not in SPLITS:
            raise UserError(f"{where} has split {row['split']!r}; expected 'train' or 'held_out'")
    return Words(
        {language: text for language, value in captions.items() if (text := tidy(value))},
        label=tidy(row.get("label")),
        group=tidy(row.get("group")),
        split=split,
        licence=tidy(row.get("licence") or row.get("license")),
        boxes=next((said for name in BOXES if (said := tidy(row.get(name)))), None),
    )


def _csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                yield reader.line_num, {str(k).strip(): v for k, v in row.items() if isinstance(v, str)}
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable CSV table: {error}") from None


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, _json_row(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} line {line} is not a JSON object: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            # Only these: the others may hold the pictures again.
            known = [n for n in file.schema_arrow.names if n in _COLUMNS or n.startswith("caption_")]
            if "file_name" not in known and "file" not in known:
                raise UserError(f"{path} names no pictures; expected a column 'file_name' or 'file'")
            batches = file.iter_batches(1024, columns=known)
            for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                said = {name: text for name, value in row.items() if (text := plain(value)) is not None}
                yield number, said
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not readable Parquet: {' '.join(str(error).split())[:200]}") from None


def plain(value: Any) -> str | None:
    """A value of a table as text; a whole number is one even where holes made its column floats. None for none."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        whole = int(value) if value.is_integer() else value
        return None if math.isnan(value) else str(whole)
    if isinstance(value, bytes):  # text that its writer did not declare as such
        return value.decode("utf-8", "backslashreplace")
    return json.dumps(value, default=str) if isinstance(value, int | list | dict) else str(value)


def _json_row(text: str) -> dict[str, str]:
    row: Any = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError("expected {…}")
    return {key: v if isinstance(v, str) else json.dumps(v) for key, v in row.items() if v is not None}


def _read_text(path: str) -> str:
    with open(path, "rb") as file:
        data = file.read(_MAX_TEXT + 1)
    if len(data) > _MAX_TEXT:
        raise ValueError(f"more than {_MAX_TEXT} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _expected(text: str) -> str:
    return PurePosixPath(_shown(text)).stem + ".png"


def _shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
