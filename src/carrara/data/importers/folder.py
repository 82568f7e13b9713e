"""A folder of pictures and what is said of them: texts, boxes, maps beside them, a metadata table, subfolders."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from carrara.data.files import File, Listing, hidden, natural, printable
from carrara.data.importing import Options
from carrara.data.pictures import SUFFIXES
from carrara.data.rows import BadPicture, Rejected, Row, Survey
from carrara.data.table import ABOUT
from carrara.errors import UserError


def matches(source: str) -> bool:
    """The source is an existing folder."""
    return Path(source).is_dir()


def survey(source: str, options: Options) -> Survey:
    """Counts the pictures and digests names, sizes and times. UserError where there is no picture at all."""
    listing = list_folder(Path(source))
    if not listing.pictures:
        raise UserError(f"no pictures found in {source} (looked for {', '.join(SUFFIXES)})")
    digest = hashlib.sha256(repr(options.licence).encode())
    for line in listing.stamps():
        digest.update(line.encode())
    return Survey(len(listing.pictures), digest.hexdigest())


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """What cannot be used first, then a row per picture in natural order (x2 before x10).

    UserError where a metadata file cannot be read, or where there are captions but none has its picture.
    """
    yield from list_folder(Path(source)).rows(source, options.licence)


def file_at(path: str, about: os.stat_result) -> File:
    """A file of the disk."""
    return File(about.st_size, about.st_mtime_ns, partial(open_regular, path))


def open_regular(path: str) -> BinaryIO:
    """A file opened for reading; BadPicture where it is no regular one, OSError as it comes."""
    # O_NONBLOCK: a pipe without a writer must not stop an import for ever.
    file = open(  # noqa: SIM115 - the caller's
        path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0))
    )
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BadPicture("not a regular file")
    return file


def list_folder(root: Path) -> Listing:
    """Everything below ``root``; links are followed, each real folder once; the useless with a reason."""
    listing, seen = Listing(), set[tuple[int, int]]()
    stack: list[str] = [""]
    while stack:
        folder = stack.pop()
        try:
            about = os.stat(root / folder)
            names = sorted(os.listdir(root / folder), key=natural)
        except OSError as error:
            listing.rejected.append(Rejected(printable(folder), f"cannot be read: {error.strerror}"))
            continue
        if (about.st_dev, about.st_ino) in seen:
            listing.rejected.append(
                Rejected(printable(folder), "a link to a folder that was already looked into")
            )
            continue
        seen.add((about.st_dev, about.st_ino))
        if ABOUT in names and folder:
            listing.rejected.append(Rejected(printable(folder), "a Carrara data set, not looked into"))
            continue
        folders = [
            n for n in (f"{folder}/{name}".lstrip("/") for name in names) if not _file(root, n, listing)
        ]
        stack.extend(reversed(folders))
    listing.settle()
    return listing


def _file(root: Path, name: str, listing: Listing) -> bool:
    """Puts a file where it belongs in the listing; False where ``name`` is a folder to look into."""
    path = os.path.join(root, name)
    try:
        about = os.stat(path)
        if hidden(name):
            listing.rejected.append(Rejected(printable(name), "hidden"))
        elif stat.S_ISDIR(about.st_mode):
            return False
        elif not stat.S_ISREG(about.st_mode):
            listing.rejected.append(Rejected(printable(name), "not a regular file"))
        else:
            listing.put(name, file_at(path, about))
    except OSError as error:
        listing.rejected.append(Rejected(printable(name), f"cannot be read: {error.strerror}"))
    return True
