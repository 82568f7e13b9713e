"""Zip and tar archives, read where they lie: what climbs out, links, devices and bombs are refused with the reason."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from carrara.errors import BadPicture, UserError, one_line
from carrara.images.header import MAX_BYTES
from carrara.importing.file import File
from carrara.importing.file_listing import Listing, hidden, natural
from carrara.importing.row import Rejected
from carrara.text import printable

PLAIN = (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
TARS = (*PLAIN, *COMPRESSED)
SUFFIXES = (".zip", *TARS)
RATIO = 250  # times its size that an archive may come to; pictures do not shrink so
FREE = 256 * 2**20  # bytes that it may come to in any case
_PIECE = 1 << 20
_HEADER = 16 * 2**20  # bytes of one header of a tar, its names and notes; more is no header
_NAME = 1024


class BadArchive(Exception):
    """Nothing more can be read of this archive; the message is the reason."""


class Entry(NamedTuple):
    """A regular file in an archive, by its path inside."""

    name: str
    file: File


def list_zip(path: Path) -> Listing:
    """Everything in a zip archive, in natural order. UserError where it is none."""
    listing = Listing()
    try:
        archive = zipfile.ZipFile(path)
    except (
        Exception
    ) as error:  # zipfile meets hostile bytes: struct.error, NotImplementedError, ValueError, …
        raise UserError(f"{path} is not a readable zip archive: {one_line(error)}") from None
    allowed = _allowed(path)
    entries, seen = [], set[str]()
    for info in archive.infolist():
        reason = unsafe(info.orig_filename) or _zip_fault(info)
        name = _plain(info.filename)
        if reason is None and info.is_dir():
            continue
        allowed -= info.file_size if reason is None else 0
        if reason is None and allowed < 0:
            reason = _bomb(path)
        elif reason is None and name in seen:
            reason = "a second entry of this name"
        if reason is None:
            seen.add(name)
            entries.append(Entry(name, File(info.file_size, info.CRC, partial(_open_entry, archive, info))))
        else:
            listing.rejected.append(Rejected(_short(info.orig_filename), reason))
    return _sorted(entries, listing)


def list_tar(path: Path) -> Listing:
    """Everything in a tar archive, in natural order; a compressed one is unpacked first into a nameless file, which
    goes when it is no longer read, also with a kill. UserError where it is none."""
    listing = Listing()
    entries, seen = [], set[str]()
    for found in kept_tar(path):
        if isinstance(found, Entry) and found.name in seen:
            found = Rejected(_short(found.name), "a second entry of this name")
        if isinstance(found, Entry):
            seen.add(found.name)
            entries.append(found)
        else:
            listing.rejected.append(found)
    return _sorted(entries, listing)


def kept_tar(path: Path) -> Iterator[Entry | Rejected]:
    """The entries of a tar archive, which can be read at any time; a compressed one is unpacked first, as `list_tar`
    says. UserError where it is none."""
    kept = Kept(_unpacked(path) if _is_compressed(path) else path.open("rb"))
    yield from walk_tar(path, Walked(kept.file), lambda offset, size: partial(kept.read, offset, size))


def stream_tar(path: Path) -> Iterator[Entry | Rejected]:
    """The entries of a tar archive one after the other; those of a compressed one can be read until the next is
    asked for. UserError where it is none."""
    if _is_compressed(path):
        with _decompressed(path) as file:
            unpacking = Unpacking(file, _allowed(path))
            yield from walk_tar(path, unpacking, lambda offset, size: partial(unpacking.take, offset, size))
    else:
        kept = Kept(path.open("rb"))
        with path.open("rb") as file:
            yield from walk_tar(path, Walked(file), lambda offset, size: partial(kept.read, offset, size))


def walk_tar(
    path: Path, walked: Walked, reading: Callable[[int, int], Callable[[], bytes]]
) -> Iterator[Entry | Rejected]:
    """The entries of a tar; ``reading(offset, size)`` gives what reads these bytes."""
    before = -1
    try:
        archive = tarfile.TarFile(fileobj=walked, errorlevel=1)  # type: ignore[arg-type]
    except Exception as error:  # tarfile and the decompressors meet hostile bytes
        raise UserError(f"{path} is not a readable tar archive: {one_line(error)}") from None
    try:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined] # it would remember them all
            if archive.offset <= before:
                raise BadArchive("its headers go round in a circle")
            before = archive.offset
            if (reason := unsafe(info.name) or _tar_fault(info)) is not None:
                yield Rejected(_short(info.name), reason)
            elif not info.isdir():
                read = reading(info.offset_data, info.size)
                opened = partial(_whole, read, info.size)
                yield Entry(_plain(info.name), File(info.size, int(info.mtime), opened))
        if any(walked.last):
            raise BadArchive("a header is damaged")
        if len(walked.last) < tarfile.BLOCKSIZE:
            raise BadArchive("it has no end mark, so something may be missing")
    except Exception as error:
        yield Rejected(printable(path.name), f"not read any further: {one_line(error)}")


class Walked:
    """What a tar is walked through with: a header that claims to be large is a BadArchive, and not read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.last = b""  # what was read last: the end mark, where all is well

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, to: int) -> int:
        return self.file.seek(to)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER:
            raise BadArchive("a header claims to be very large")
        self.last = self.file.read(size)
        return self.last


class Unpacking(Walked):
    """The same through a compressed tar: only forwards, and at most ``limit`` bytes in all."""

    def __init__(self, file: Any, limit: int) -> None:
        super().__init__(file)
        self._some = file.read1  # of damaged ones it gives what comes before the damage
        self._at, self._limit = 0, limit

    def tell(self) -> int:
        return self._at

    def seek(self, to: int) -> int:
        if to < self._at:
            raise BadArchive("its headers go backwards")
        while self._at < to and self._next(min(_PIECE, to - self._at)):
            pass
        return self._at

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER:
            raise BadArchive("a header claims to be very large")
        self.last = self._next(size)
        return self.last

    def take(self, offset: int, size: int) -> bytes:
        """The bytes of the entry that the walk has just come to."""
        if offset != self._at:
            raise BadPicture("its turn in the archive is over")
        try:
            return self._next(size)
        except Exception as error:  # the decompressors meet hostile bytes
            raise BadPicture(f"damaged in the archive: {one_line(error)}") from None

    def _next(self, size: int) -> bytes:
        pieces, missing = [], size
        while missing > 0 and (piece := self._some(min(_PIECE, missing))):
            pieces.append(piece)
            missing -= len(piece)
            self._at += len(piece)
            if self._at > self._limit:
                raise BadArchive(f"it comes to more than {self._limit} bytes, as only bombs do")
        return b"".join(pieces)


class Kept:
    """An open file that several threads read from, closed when nobody reads from it any more."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._lock = threading.Lock()
        weakref.finalize(self, file.close)

    def read(self, offset: int, size: int) -> bytes:
        with self._lock:
            self.file.seek(offset)
            return self.file.read(size)


def unsafe(name: str) -> str | None:
    """Why an entry must not have this name; None where it may."""
    parts = name.replace("\\", "/").split("/")
    if "\0" in name:
        return "a name with a NUL in it"
    if name.startswith(("/", "\\")) or (len(parts[0]) > 1 and parts[0][1] == ":"):
        return "an absolute path"
    if ".." in parts:
        return "a path that climbs out of the archive"
    if len(name) > _NAME:
        return f"a name of more than {_NAME} letters"
    return None


def _plain(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _short(name: str) -> str:
    return printable(name[:_NAME])


def _zip_fault(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "not a regular file"
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # The others are unpacked by the piece, however large a small piece gets.
        return "compressed in a way that is not read (expected deflate, or none)"
    if info.file_size > FREE // 16 and info.file_size > RATIO * max(1, info.compress_size):
        return f"a bomb: {info.compress_size} bytes that come to {info.file_size}"
    return None


def _tar_fault(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "a link"
    if info.issparse():
        return "a sparse file"
    if not info.isdir() and not info.isreg():
        return "not a regular file"
    return "a negative size" if info.size < 0 else None


def _sorted(entries: list[Entry], listing: Listing) -> Listing:
    for entry in sorted(entries, key=lambda e: natural(e.name)):
        if any(hidden(part) for part in entry.name.split("/")):
            listing.rejected.append(Rejected(_short(entry.name), "hidden"))
        elif entry.name.lower().endswith(SUFFIXES):
            listing.rejected.append(
                Rejected(_short(entry.name), "an archive in the archive, not looked into")
            )
        else:
            try:
                listing.put(entry.name, entry.file)
            except OSError as error:
                listing.rejected.append(Rejected(_short(entry.name), f"cannot be read: {error}"))
    listing.settle()
    return listing


def _open_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    """The bytes of an entry. BadPicture where it is damaged, larger than MAX_BYTES, or not as large as it says."""
    _check_size(info.file_size)
    asked = copy(info)
    asked.file_size += 1  # zipfile hands out no more than this: with one more, the checksum is of all
    try:
        with archive.open(asked) as file:
            data = file.read(asked.file_size)
    except Exception as error:  # zlib.error, BadZipFile, NotImplementedError, EOFError, struct.error, …
        raise BadPicture(f"damaged in the archive: {one_line(error)}") from None
    if len(data) != info.file_size:
        raise BadPicture(f"damaged in the archive: {len(data)} bytes, where {info.file_size} are announced")
    return io.BytesIO(data)


def _whole(read: Callable[[], bytes], size: int) -> BinaryIO:
    """The bytes of an entry of this size. BadPicture where they are too many, or not all there: part of a table or a
    text would pass for the whole."""
    _check_size(size)
    data = read()
    if len(data) < size:
        raise BadPicture(f"cut off: {len(data)} of {size} bytes are there")
    return io.BytesIO(data)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise BadPicture(f"{size} bytes; at most {MAX_BYTES} are read out of an archive")


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(COMPRESSED)


def _decompressed(path: Path) -> Any:
    name = path.name.lower()
    if name.endswith("bz2"):
        return bz2.open(path)
    if name.endswith("xz"):
        return lzma.open(path)
    if name.endswith("zst"):
        import pyarrow as pa

        return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
    return gzip.open(path)


def _unpacked(path: Path) -> IO[bytes]:
    """A nameless temporary file (TMPDIR says where) with what a compressed tar holds; what is damaged ends it."""
    allowed = _allowed(path)
    kept = tempfile.TemporaryFile()  # noqa: SIM115 - open until nobody reads from it
    try:
        with _decompressed(path) as file:
            while piece := file.read1(_PIECE):  # where it is damaged, what came before is kept
                if (allowed := allowed - len(piece)) < 0:
                    raise UserError(f"{path} is not unpacked: {_bomb(path)}")
                kept.write(piece)
    except UserError:
        kept.close()
        raise
    except OSError as error:
        if error.errno is not None and not isinstance(error, gzip.BadGzipFile):  # the disk's, e.g. full
            kept.close()
            raise UserError(f"{path} cannot be unpacked: {one_line(error)}") from None
    except Exception:  # the walk says where it ends
        pass
    kept.seek(0)
    return kept


def _allowed(path: Path) -> int:
    return max(FREE, RATIO * os.stat(path).st_size)


def _bomb(path: Path) -> str:
    return f"a bomb: all entries together come to more than {RATIO} times the archive's size"
