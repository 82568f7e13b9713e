"""Files by name, wherever they lie, and what each is good for: a picture, words of one, a picture beside one."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from carrara.dataset.columns import KEPT, KINDS
from carrara.dataset.picture_columns import Beside
from carrara.errors import BadPicture
from carrara.images.header import SUFFIXES, looks_like_picture
from carrara.importing.caption_files import (
    BOXES_SUFFIX,
    TEXT_SUFFIXES,
    Strays,
    by_name,
    from_boxes,
    from_records,
    from_texts,
)
from carrara.importing.column_names import NOTHING, Words
from carrara.importing.file import File
from carrara.importing.metadata_tables import METADATA, Tables
from carrara.importing.row import Rejected, Row
from carrara.importing.splits import Folders
from carrara.text import nfc, printable, tidy


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
            if (of := nfc(of)) not in named:
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
        names = {nfc(name) for name in self.pictures}
        with closing(Tables()) as tables:
            for name, file in self.metadata.items():
                yield from tables.take(
                    os.path.join(where, name), name, file, lambda picture: nfc(picture) in names
                )
            folders = self._folders()
            yield from self.told(tables, licence, folders)
            yield from (*tables.unused(), *on_numbers(folders))

    def told(self, tables: Tables, licence: str | None, folders: Folders) -> Iterator[Row | Rejected]:
        """What cannot be used, then a row per picture. A table goes before what lies beside the picture, and there
        boxes before texts, texts before ``.json``, folders last."""
        yield from self.rejected
        pictures = list(self.pictures)
        words = dict[str, Words]()
        if self.texts or self.records or self.boxes:
            for read, files in (
                (from_records, self.records),
                (from_texts, self.texts),
                (from_boxes, self.boxes),
            ):
                found, unused = read(files, pictures)
                words |= {name: said.over(words.get(name, NOTHING)) for name, said in found.items()}
                yield from unused
        beside = self._by_picture() if self.beside else {}
        for name, file in self.pictures.items():
            said, bad = tables.said_of(name)
            yield from bad
            if name in words:
                said = said.over(words[name])
            split, label = folders.said(name.rpartition("/")[0])
            if split or label:
                said = said.over(Words(label=tidy(printable(label or "")), split=split))
            yield Row(
                source=printable(name), read=file.read, beside=beside.get(name, {}), **said.told(licence)
            )

    def _folders(self) -> Folders:
        """What the folders say, where this is all that there is."""
        inside, files = defaultdict[str, set[str]](set), defaultdict[str, list[str]](list)
        for name in self.pictures:
            folder, _, last = name.rpartition("/")
            files[folder].append(last)
            while folder and (parted := folder.rpartition("/"))[2] not in inside[parted[0]]:
                inside[parted[0]].add(parted[2])
                folder = parted[0]
        return Folders(lambda folder: inside[folder], lambda folder: files[folder])

    def _by_picture(self) -> dict[str, dict[str, Beside]]:
        """For each picture, what lies beside it."""
        named, found = by_name(list(self.pictures)), dict[str, dict[str, Beside]]()
        for name, file in self.beside.items():
            of, kind = _belongs(name)
            for picture in named[nfc(of)]:
                found.setdefault(picture, {})[kind] = Beside(printable(name), file.read)
        return found


def on_numbers(folders: Folders) -> Iterator[Rejected]:
    """Remarks on folders whose numbers were taken for no labels."""
    reason = f"{KEPT}this folder and those beside it only number their pictures, so they give no labels"
    yield from (Rejected(printable(name), reason) for name in folders.unsure)


class Belongs(NamedTuple):
    """The picture that ``of.kind.png`` belongs to by its name, and as what; empty for any other name."""

    of: str
    kind: str


def _belongs(name: str) -> Belongs:
    of, _, kind = os.path.splitext(name)[0].rpartition(".")
    return Belongs(of, kind) if kind in KINDS and os.path.basename(of) else Belongs("", "")


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


def digest_of(root: Path, files: Iterable[Path], more: str) -> str:
    """What is the same while the files below ``root`` keep their names, sizes and times, and ``more`` is the same."""
    digest = hashlib.sha256(more.encode())
    for path in files:
        about = path.stat()
        digest.update(f"{below(root, path)!r} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def below(root: Path, path: Path) -> str:
    """A file of a source by its path below it; the source itself by its name."""
    return path.relative_to(root).as_posix() if root.is_dir() else path.name


DATASETS_FILE = ".huggingface.yaml"  # what `datasets` reads of a folder; of no import


def hidden(name: str) -> bool:
    """Whether a file or folder is none that people look at."""
    last = name.rpartition("/")[2]
    return last.startswith(".") or last == "__MACOSX"


def on_disk(root: Path, name: str) -> str:
    """The path of a file below a folder by its name, or by one of the same letters in another form (macOS writes é as
    two code points); OSError where a folder on the way cannot be read."""
    path = os.path.join(root, name)
    if name.isascii() or os.path.exists(path):
        return path
    place = os.fspath(root)
    for part in name.split("/"):
        place = os.path.join(place, _by_letters(place, os.stat(place).st_mtime_ns).get(nfc(part), part))
    return place


@functools.lru_cache(maxsize=64)
def _by_letters(folder: str, _changed: int) -> dict[str, str]:
    return {nfc(name): name for name in os.listdir(folder) if not name.isascii()}


def natural(name: str) -> tuple[str, str]:
    """The sort key that puts x2 before x10, and x and x.png before them; the name itself breaks ties.

    All that begins with the same letters up to a dot stands together.
    """
    return _NUMBER.sub(_padded, nfc(name).casefold().replace(".", "\0")), name


_NUMBER = re.compile(r"[0-9]{1,18}")


def _padded(number: re.Match[str]) -> str:
    return "\1" + number[0].zfill(18)


def _starts_like_picture(file: File) -> bool:
    try:
        with file.open() as opened:
            return looks_like_picture(opened.read(16))
    except BadPicture:
        return False
