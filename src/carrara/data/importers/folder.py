"""A folder of pictures and what is said of them: texts, boxes, maps beside them, a metadata table, subfolders."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from carrara.data.beside import KINDS, Beside
from carrara.data.captions import BOXES_SUFFIX, Words, by_name, from_boxes, from_metadata, from_texts
from carrara.data.importing import Options
from carrara.data.pictures import MAX_BYTES, SUFFIXES, looks_like_picture
from carrara.data.rows import BadPicture, Rejected, Row, Survey, tidy
from carrara.data.table import ABOUT
from carrara.errors import UserError

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass
class Listing:
    """What lies in a folder, by path relative to it, each list in natural order."""

    pictures: dict[str, os.stat_result] = field(default_factory=dict)
    texts: dict[str, os.stat_result] = field(default_factory=dict)
    metadata: dict[str, os.stat_result] = field(default_factory=dict)
    boxes: dict[str, os.stat_result] = field(default_factory=dict)
    beside: dict[str, os.stat_result] = field(default_factory=dict)  # pictures that belong to others
    rejected: list[Rejected] = field(default_factory=list)


def matches(source: str) -> bool:
    """The source is an existing folder."""
    return Path(source).is_dir()


def survey(source: str, options: Options) -> Survey:
    """Counts the pictures and digests names, sizes and times. UserError where there is no picture at all."""
    listing = list_folder(Path(source))
    if not listing.pictures:
        raise UserError(f"no pictures found in {source} (looked for {', '.join(SUFFIXES)})")
    digest = hashlib.sha256(repr(options.licence).encode())
    for kind in (listing.pictures, listing.texts, listing.metadata, listing.boxes, listing.beside):
        for name, about in kind.items():
            digest.update(f"{name!r} {about.st_size} {about.st_mtime_ns}\n".encode())
    for bad in listing.rejected:
        digest.update(f"{bad.source!r} {bad.reason}\n".encode())
    return Survey(len(listing.pictures), digest.hexdigest())


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """What cannot be used first, then a row per picture in natural order (x2 before x10).

    UserError where a metadata file cannot be read, or where there are captions but none has its picture.
    """
    root = Path(source)
    listing = list_folder(root)
    words, unused = _words(root, listing)
    beside = _by_picture(root, listing)
    yield from listing.rejected
    yield from unused
    for name in listing.pictures:
        known = words.get(name, Words())
        folder = name.rpartition("/")[0].rpartition("/")[2]
        yield Row(
            source=printable(name),
            read=partial(read_file, os.path.join(root, name)),
            captions=known.captions,
            label=known.label or tidy(printable(folder)),
            group=known.group,
            split=known.split,
            licence=known.licence or options.licence,
            boxes=known.boxes,
            beside=beside.get(name, {}),
        )


def read_file(path: str) -> bytes:
    """The bytes of a file; BadPicture where it is too large or no regular file, OSError as it comes."""
    # O_NONBLOCK: a pipe without a writer must not stop an import for ever.
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise BadPicture("not a regular file")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadPicture(f"{max(about.st_size, len(data))} bytes; at most {MAX_BYTES} are read")
    return data


def printable(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 are written as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def list_folder(root: Path) -> Listing:
    """Everything below ``root``; links are followed, each real folder once; the useless with a reason."""
    listing, seen = Listing(), set[tuple[int, int]]()
    stack: list[str] = [""]
    while stack:
        folder = stack.pop()
        about = os.stat(root / folder)
        if (about.st_dev, about.st_ino) in seen:
            listing.rejected.append(
                Rejected(printable(folder), "a link to a folder that was already looked into")
            )
            continue
        seen.add((about.st_dev, about.st_ino))
        try:
            names = sorted(os.listdir(root / folder), key=natural)
        except OSError as error:
            listing.rejected.append(Rejected(printable(folder), f"cannot be read: {error.strerror}"))
            continue
        if ABOUT in names and folder:
            listing.rejected.append(Rejected(printable(folder), "a Carrara data set, not looked into"))
            continue
        folders = [
            n for n in (f"{folder}/{name}".lstrip("/") for name in names) if not _file(root, n, listing)
        ]
        stack.extend(reversed(folders))
    _set_apart(listing)
    return listing


def _set_apart(listing: Listing) -> None:
    """Tells the pictures that belong to others from those that do not."""
    named = by_name([name for name in listing.pictures if not _belongs(name).of])
    taken = set[tuple[str, str]]()
    for name in list(listing.pictures):
        of, kind = _belongs(name)
        if of not in named:
            continue
        about = listing.pictures.pop(name)
        if taken.isdisjoint(places := {(picture, kind) for picture in named[of]}):
            listing.beside[name] = about
        else:
            listing.rejected.append(Rejected(printable(name), f"a second {kind} of its picture"))
        taken |= places


class Belongs(NamedTuple):
    """The picture that ``of.kind.png`` belongs to by its name, and as what; empty for any other name."""

    of: str
    kind: str


def _belongs(name: str) -> Belongs:
    of, _, kind = os.path.splitext(name)[0].rpartition(".")
    return Belongs(of, kind) if kind in KINDS and os.path.basename(of) else Belongs("", "")


def _by_picture(root: Path, listing: Listing) -> dict[str, dict[str, Beside]]:
    """For each picture, what lies beside it."""
    named, found = by_name(list(listing.pictures)), dict[str, dict[str, Beside]]()
    for name in listing.beside:
        of, kind = _belongs(name)
        for picture in named[of]:
            beside = Beside(printable(name), partial(read_file, os.path.join(root, name)))
            found.setdefault(picture, {})[kind] = beside
    return found


def _file(root: Path, name: str, listing: Listing) -> bool:
    """Puts a file where it belongs in the listing; False where ``name`` is a folder to look into."""
    path = os.path.join(root, name)
    suffix = os.path.splitext(name)[1]
    try:
        about = os.stat(path)
        reason = _unusable(name, about)
        if reason is None and stat.S_ISDIR(about.st_mode):
            return False
        if reason is None and name in METADATA:
            listing.metadata[name] = about
        elif reason is None and suffix.lower() == ".txt":
            listing.texts[name] = about
        elif reason is None and name.lower().endswith(BOXES_SUFFIX):
            listing.boxes[name] = about
        elif reason is None and (suffix.lower() in SUFFIXES or _starts_like_picture(path)):
            listing.pictures[name] = about
        else:
            listing.rejected.append(
                Rejected(printable(name), reason or f"not a picture ({suffix or 'no suffix'})")
            )
    except OSError as error:
        listing.rejected.append(Rejected(printable(name), f"cannot be read: {error.strerror}"))
    return True


def _unusable(name: str, about: os.stat_result) -> str | None:
    last = name.rpartition("/")[2]
    if last.startswith(".") or last == "__MACOSX":
        return "hidden"
    if not stat.S_ISDIR(about.st_mode) and not stat.S_ISREG(about.st_mode):
        return "not a regular file"
    return None


def _starts_like_picture(path: str) -> bool:
    with open(path, "rb") as file:
        return looks_like_picture(file.read(16))


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """The sort key that puts x2 before x10; the name itself breaks ties."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(p), "") if p[0] in "0123456789" else (1, 0, p.casefold()) for p in parts], name


def _words(root: Path, listing: Listing) -> tuple[dict[str, Words], list[Rejected]]:
    """What is said of each picture; a metadata table goes before what lies beside the picture."""
    pictures = list(listing.pictures)
    words, unused = from_texts(root, list(listing.texts), pictures)
    boxes, without = from_boxes(root, list(listing.boxes), pictures)
    words |= {picture: found.over(words.get(picture, Words())) for picture, found in boxes.items()}
    unused += without
    for name in listing.metadata:
        table, more = from_metadata(root / name, listing.pictures.keys())
        unused += more
        words |= {picture: found.over(words.get(picture, Words())) for picture, found in table.items()}
    return words, unused
