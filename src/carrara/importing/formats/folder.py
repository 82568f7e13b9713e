"""A folder of pictures and what is said of them: texts, boxes, maps beside them, a metadata table, subfolders."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from carrara.dataset.description import ABOUT
from carrara.errors import BadPicture, UserError, one_line
from carrara.images.header import SUFFIXES
from carrara.importing.caption_files import Strays
from carrara.importing.file import File
from carrara.importing.file_listing import (
    DATASETS_FILE,
    Listing,
    any_below,
    hidden,
    natural,
    on_disk,
    on_numbers,
)
from carrara.importing.metadata_tables import METADATA, Tables
from carrara.importing.options import Options
from carrara.importing.row import Rejected, Row, Survey
from carrara.importing.splits import Folders
from carrara.text import printable

LOOSE = True  # rows are files by their paths, so that other processes can read them


def matches(source: str) -> bool:
    """The source is an existing folder."""
    return Path(source).is_dir()


def survey(source: str, options: Options) -> Survey:
    """Counts the pictures and digests names, sizes and times.

    UserError where there is no picture at all, or where there are captions but none has its picture.
    """
    total, strays = 0, Strays()
    digest = hashlib.sha256(repr(options.licence).encode())
    for listing in walk(Path(source)):
        for line in listing.stamps():
            digest.update(line.encode())
        total += len(listing.pictures)
        strays.see(listing.texts, list(listing.pictures))
    if not total:
        raise UserError(f"no pictures found in {source} (looked for {', '.join(SUFFIXES)})")
    strays.check(source)
    return Survey(total, digest.hexdigest())


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """A row per picture in natural order (x2 before x10), a folder's own before those below it.

    What cannot be used stands where it lies; rows of tables that no picture wanted come last. UserError where a
    metadata file cannot be read.
    """

    root = Path(source)

    def is_picture(name: str) -> bool:
        with suppress(OSError, ValueError):  # ValueError: a name that no file can have
            return ".." not in name.split("/") and os.path.isfile(on_disk(root, name))
        return False

    def with_pictures(folder: str) -> list[str]:
        with suppress(OSError):
            return [name for name in _names(root, folder)[1] if any_below(root / folder / name, SUFFIXES)]
        return []

    folders = Folders(with_pictures, lambda folder: os.listdir(root / folder))
    with closing(Tables()) as tables:
        for listing in walk(root):
            for name, file in listing.metadata.items():
                yield from tables.take(os.path.join(source, name), name, file, is_picture)
            yield from listing.told(tables, options.licence, folders)
        yield from tables.unused()
        yield from on_numbers(folders)


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


def walk(root: Path) -> Iterator[Listing]:
    """Everything below ``root``, folder by folder: its tables, then the files of one name together.

    Links are followed, each real folder once; the useless comes with a reason. Nothing is remembered but names of
    one folder, and of folders.
    """
    seen, stack = set[tuple[int, int]](), [""]
    while stack:
        folder = stack.pop()
        try:
            about = os.stat(root / folder)
            if (about.st_dev, about.st_ino) in seen:
                yield _without(folder, "a link to a folder that was already looked into")
                continue
            seen.add((about.st_dev, about.st_ino))
            files, folders = _names(root, folder)
        except OSError as error:
            yield _without(folder, f"cannot be read: {one_line(error)}")
            continue
        if ABOUT in files and folder:
            yield _without(folder, "a Carrara data set, not looked into")
            continue
        prefix = f"{folder}/" if folder else ""
        if tables := [name for name in METADATA if name in files]:
            yield _listed(root, prefix, tables)
        files.sort(key=natural)
        for _, group in itertools.groupby(files, key=_stem):
            if names := [name for name in group if name not in METADATA]:
                yield _listed(root, prefix, names)
        stack.extend(prefix + name for name in sorted(folders, key=natural, reverse=True))


def _names(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """The names in a folder: of files and whatever else, and of folders to look into. OSError as it comes."""
    files, folders = list[str](), list[str]()
    with os.scandir(root / folder) as entries:
        for entry in entries:
            try:
                is_folder = entry.is_dir() and not hidden(entry.name)
            except OSError:  # a circle of links
                is_folder = False
            (folders if is_folder else files).append(entry.name)
    return files, folders


def _stem(name: str) -> str:
    """What the files have in common that may belong to one picture."""
    return natural(name.partition(".")[0])[0]


def _without(name: str, reason: str) -> Listing:
    return Listing(rejected=[Rejected(printable(name), reason)])


def _listed(root: Path, prefix: str, names: list[str]) -> Listing:
    """Files of a folder, each put where it belongs."""
    listing = Listing()
    for last in names:
        name = prefix + last
        try:
            path = os.path.join(root, name)
            about = os.stat(path)
            if last == DATASETS_FILE:
                continue
            if hidden(last):
                listing.rejected.append(Rejected(printable(name), "hidden"))
            elif not stat.S_ISREG(about.st_mode):
                listing.rejected.append(Rejected(printable(name), "not a regular file"))
            else:
                listing.put(name, file_at(path, about))
        except OSError as error:
            listing.rejected.append(Rejected(printable(name), f"cannot be read: {one_line(error)}"))
    if len(names) > 1:
        listing.settle()
    return listing
