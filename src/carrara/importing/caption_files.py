"""Captions in files beside pictures: ``x.txt``, ``x.de.txt``, ``x.json``, ``x.boxes.json``."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from carrara.dataset.columns import LANGUAGE, UNSTATED
from carrara.errors import UserError, one_line
from carrara.importing.column_names import NOTHING, Words, json_row, row_words
from carrara.importing.row import Rejected
from carrara.importing.table_rows import NOT_UTF8, is_text, text_of
from carrara.text import nfc, tidy

if TYPE_CHECKING:
    from carrara.importing.file import File

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


def from_texts(texts: Mapping[str, File], pictures: Sequence[str]) -> Found:
    """The captions in text files, by picture; texts that name no picture are rejected.

    ``x.txt``, ``x.caption`` and ``x.png.txt`` describe ``x.png``, ``x.de.txt`` does in German.
    """
    named = by_name(pictures)
    captions: dict[str, dict[str, str]] = defaultdict(dict)
    rejected = []
    for text, file in texts.items():
        language, described = described_by(text, named)
        if not described:
            rejected.append(
                Rejected(_shown(text), f"a caption without its picture (expected {expected_by(text)!r})")
            )
            continue
        try:
            caption = tidy(as_text(file.read()))
        except (OSError, ValueError) as error:
            rejected.append(Rejected(_shown(text), f"a caption that cannot be read: {one_line(error)}"))
            continue
        for picture in described if caption else ():
            if captions[picture].setdefault(language, caption or "") != caption:
                rejected.append(Rejected(_shown(text), "a second caption of its picture in this language"))
    return {picture: Words(found) for picture, found in captions.items()}, rejected


def described_by(text: str, named: Mapping[str, list[str]]) -> tuple[str, list[str]]:
    """The language of a text by its name, and the pictures that it describes."""
    stem = os.path.splitext(nfc(text))[0]
    if described := named.get(stem):
        return UNSTATED, described
    stem, _, suffix = stem.rpartition(".")
    if LANGUAGE.fullmatch(suffix):
        return suffix.lower().replace("_", "-"), named.get(stem, [])
    return UNSTATED, []


class Strays:
    """Texts that describe no picture, where no text does: then the pictures lie elsewhere, or are called otherwise."""

    def __init__(self) -> None:
        self.count, self.first, self.matched = 0, "", False

    def see(self, texts: Iterable[str], pictures: Sequence[str]) -> None:
        """Takes note of texts and of all pictures that they may describe."""
        named = by_name(pictures) if texts else {}
        for text in texts:
            self.matched = self.matched or bool(described_by(text, named)[1])
            if PurePosixPath(text).name.split(".")[0].casefold() not in ABOUT_THE_COLLECTION:
                self.count += 1
                self.first = self.first or text

    def check(self, where: str) -> None:
        """UserError where there are several texts and not one has its picture."""
        if self.count > 1 and not self.matched:
            raise UserError(
                f"none of the {self.count} captions in {where} has its picture "
                f"({_shown(self.first)} expects {expected_by(self.first)} or the like beside it)"
            )


def from_boxes(files: Mapping[str, File], pictures: Sequence[str]) -> Found:
    """The boxes in files beside pictures, as text and by picture; files that name no picture are rejected."""
    named = by_name(pictures)
    words: dict[str, Words] = {}
    rejected = []
    for name, file in files.items():
        described = named.get(nfc(name)[: -len(BOXES_SUFFIX)], [])
        if not described:
            rejected.append(Rejected(_shown(name), "boxes without their picture"))
            continue
        try:
            text = as_text(file.read())
        except (OSError, ValueError) as error:
            rejected.append(Rejected(_shown(name), f"boxes that cannot be read: {one_line(error)}"))
            continue
        if any(words.setdefault(picture, Words(boxes=text)).boxes != text for picture in described):
            rejected.append(Rejected(_shown(name), "a second file of boxes of its picture"))
    return words, rejected


def from_records(files: Mapping[str, File], pictures: Sequence[str]) -> Found:
    """What ``x.json`` says of ``x.png`` under the names that a table's columns have."""
    named = by_name(pictures)
    words: dict[str, Words] = {}
    rejected = []
    for name, file in files.items():
        described = named.get(os.path.splitext(nfc(name))[0], [])
        if not described:
            rejected.append(Rejected(_shown(name), "not a picture (.json)"))
            continue
        try:
            found = row_words(json_row(as_text(file.read())), "it")
        except (OSError, ValueError) as error:
            rejected.append(Rejected(_shown(name), f"words that cannot be read: {one_line(error)}"))
            continue
        words |= {picture: words.get(picture, NOTHING).over(found) for picture in described}
    return words, rejected


def by_name(pictures: Sequence[str]) -> dict[str, list[str]]:
    """What lies beside ``x.png`` may call it ``x`` or ``x.png``: the pictures that a (composed) name means."""
    named: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        named[nfc(picture)].append(picture)
        named[os.path.splitext(nfc(picture))[0]].append(picture)
    return named


def as_text(data: bytes) -> str:
    """What a small file says; ValueError where it is none, or no text."""
    if len(data) > MAX_TEXT:
        raise ValueError(f"more than {MAX_TEXT} bytes")
    try:
        text = text_of(io.BytesIO(data), "strict").read()
    except UnicodeDecodeError:
        raise ValueError(NOT_UTF8) from None
    if not is_text(text):
        raise ValueError(NOT_UTF8)
    return text


def expected_by(text: str) -> str:
    """The name of a picture that a text would describe."""
    return PurePosixPath(_shown(text)).stem + ".png"


def _shown(name: str) -> str:
    from carrara.text import printable

    return printable(name)
