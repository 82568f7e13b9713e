"""Files by name, wherever they lie, and what each is good for: a picture, words of one, a picture beside one."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from carrara.data.beside import KINDS, Beside
from carrara.data.captions import (
    BOXES_SUFFIX,
    TEXT_SUFFIXES,
    Strays,
    by_name,
    from_boxes,
    from_records,
    from_texts,
)
from carrara.data.metadata import METADATA, Tables
from carrara.data.pictures import MAX_BYTES, SUFFIXES, looks_like_picture
from carrara.data.rows import BadPicture, Rejected, Row, tidy
from carrara.data.words import HELD_OUT, Words

_SPLITS = ("train", *HELD_OUT)


class File(NamedTuple):
    """A file that can be read: its size, what changes when its bytes do (a time, a checksum), and how to open it.

    ``open()`` raises OSError or BadPicture.
    """

    size: int
    stamp: int
    open: Callable[[], BinaryIO]

    def read(self) -> bytes:
        """All bytes; BadPicture where they are too many."""
        if self.size > MAX_BYTES:
            raise BadPicture(f"{self.size} bytes; at most {MAX_BYTES} are read")
        with self.open() as file:
            # As many as there should be: Python makes room for all that it is asked for.
            data = file.read(self.size + 1)
            if self.size < len(data) <= MAX_BYTES:  # it has grown
                data += file.read(MAX_BYTES + 1 - len(data))
        if len(data) > MAX_BYTES:
            raise BadPicture(f"more than the {MAX_BYTES} bytes that are read")
        return data


@dataclass
class Listing:
    """What lies in a folder or an archive, by path relative to it, each list in natural order."""

    pictures: dict[str, File] = field(default_factory=dict)
    texts: dict[str, File] = field(default_factory=dict)
    records: dict[str, File] = field(default_factory=dict)
    metadata: dict[str, File] = field(default_factory=dict)
    boxes: dict[str, File] = field(default_factory=dict)
    beside: dict[str, File] = field(default_factory=dict)  # pictures that belong to others
    rejected: list[Rejected] = field(default_factory=list)

    def put(self, name: str, file: File) -> None:
        """Puts a file where it belongs; it is opened only where its name tells nothing. OSError as it comes."""
        suffix = os.path.splitext(name)[1]
        if name.rpartition("/")[2] in METADATA:
            self.metadata[name] = file
        elif suffix.lower() in TEXT_SUFFIXES:
            self.texts[name] = file
        elif name.lower().endswith(BOXES_SUFFIX):
            self.boxes[name] = file
        elif suffix.lower() == ".json":
            self.records[name] = file
        elif suffix.lower() in SUFFIXES or _starts_like_picture(file):
            self.pictures[name] = file
        else:
            self.rejected.append(Rejected(printable(name), f"not a picture ({suffix or 'no suffix'})"))

    def settle(self) -> None:
        """Tells the pictures that belong to others from those that do not; to be called when all are in."""
        named = by_name([name for name in self.pictures if not _belongs(name).of])
        taken = set[tuple[str, str]]()
        for name in list(self.pictures):
            of, kind = _belongs(name)
            if of not in named:
                continue
            file = self.pictures.pop(name)
            if taken.isdisjoint(places := {(picture, kind) for picture in named[of]}):
                self.beside[name] = file
            else:
                self.rejected.append(Rejected(printable(name), f"a second {kind} of its picture"))
            taken |= places

    def stamps(self) -> Iterator[str]:
        """A line per file and per rejection: the same lines promise the same rows."""
        for kind in (self.pictures, self.texts, self.records, self.metadata, self.boxes, self.beside):
            for name, file in kind.items():
                yield f"{name!r} {file.size} {file.stamp}\n"
        for bad in self.rejected:
            yield f"{bad.source!r} {bad.reason}\n"

    def rows(self, where: str, licence: str | None) -> Iterator[Row | Rejected]:
        """What cannot be used and a row per picture, where this is all that there is.

        UserError where a metadata file cannot be read, or where there are captions but none has its picture.
        """
        strays = Strays()
        strays.see(self.texts, list(self.pictures))
        strays.check(where)
        with closing(Tables()) as tables:
            for name, file in self.metadata.items():
                yield from tables.take(os.path.join(where, name), name, file, self.pictures.__contains__)
            yield from self.told(tables, licence)
            yield from tables.unused()

    def told(self, tables: Tables, licence: str | None) -> Iterator[Row | Rejected]:
        """What cannot be used, then a row per picture; a table goes before what lies beside the picture."""
        yield from self.rejected
        pictures = list(self.pictures)
        words = dict[str, Words]()
        if self.texts or self.records or self.boxes:
            words, unused = from_texts(self.texts, pictures)
            for found, without in (from_records(self.records, pictures), from_boxes(self.boxes, pictures)):
                words |= {name: said.over(words.get(name, Words())) for name, said in found.items()}
                unused += without
            yield from unused
        beside = self._by_picture() if self.beside else {}
        for name, file in self.pictures.items():
            said, bad = tables.said_of(name)
            yield from bad
            if name in words:
                said = said.over(words[name])
            split, label = _told_by_folders(name.rpartition("/")[0])
            if split or label:
                said = said.over(Words(label=label, split=split))
            yield Row(
                source=printable(name), read=file.read, beside=beside.get(name, {}), **said.told(licence)
            )

    def _by_picture(self) -> dict[str, dict[str, Beside]]:
        """For each picture, what lies beside it."""
        named, found = by_name(list(self.pictures)), dict[str, dict[str, Beside]]()
        for name, file in self.beside.items():
            of, kind = _belongs(name)
            for picture in named[of]:
                found.setdefault(picture, {})[kind] = Beside(printable(name), file.read)
        return found


class Belongs(NamedTuple):
    """The picture that ``of.kind.png`` belongs to by its name, and as what; empty for any other name."""

    of: str
    kind: str


def _belongs(name: str) -> Belongs:
    of, _, kind = os.path.splitext(name)[0].rpartition(".")
    return Belongs(of, kind) if kind in KINDS and os.path.basename(of) else Belongs("", "")


@functools.lru_cache(maxsize=64)
def _told_by_folders(folder: str) -> tuple[str | None, str | None]:
    """The split and the label that the folders of a picture say: ``train/cat`` has cats to train on."""
    folders = folder.split("/") if folder else []
    split = next((f.lower() for f in folders if f.lower() in _SPLITS), None)
    label = folders[-1] if folders and folders[-1].lower() not in _SPLITS else None
    held_out = None if split is None else "train" if split == "train" else "held_out"
    return held_out, tidy(printable(label)) if label else None


def deep(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of these kinds in a folder and anywhere below it, in natural order; hidden ones are none."""
    found = (path for path in _visible(folder) if path.lower().endswith(suffixes))
    return [folder / name for name in sorted((os.path.relpath(p, folder) for p in found), key=natural)]


def any_below(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether there is such a file; no more is looked at than needed."""
    return any(path.lower().endswith(suffixes) for path in _visible(folder))


def _visible(folder: Path) -> Iterator[str]:
    """The paths of all files that are not hidden; links are followed, each real folder once."""
    seen, folders = set[tuple[int, int]](), [os.fspath(folder)]
    while folders:
        place = folders.pop()
        with suppress(OSError):
            about = os.stat(place)
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(place) as entries:
                for entry in entries:
                    if hidden(entry.name):
                        continue
                    with suppress(OSError):  # a circle of links
                        if entry.is_dir():
                            folders.append(entry.path)
                        elif entry.is_file():
                            yield entry.path


def below(root: Path, path: Path) -> str:
    """A file of a source by its path below it; the source itself by its name."""
    return path.relative_to(root).as_posix() if root.is_dir() else path.name


def hidden(name: str) -> bool:
    """Whether a file or folder is none that people look at."""
    last = name.rpartition("/")[2]
    return last.startswith(".") or last == "__MACOSX"


def printable(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 are written as \\xNN."""
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair that stands for no byte
        return name.encode("utf-8", "backslashreplace").decode()


def natural(name: str) -> tuple[str, str]:
    """The sort key that puts x2 before x10, and x and x.png before them; the name itself breaks ties.

    All that begins with the same letters up to a dot stands together.
    """
    return _NUMBER.sub(_padded, name.casefold().replace(".", "\0")), name


_NUMBER = re.compile(r"[0-9]{1,18}")


def _padded(number: re.Match[str]) -> str:
    return "\1" + number[0].zfill(18)


def _starts_like_picture(file: File) -> bool:
    try:
        with file.open() as opened:
            return looks_like_picture(opened.read(16))
    except BadPicture:
        return False
