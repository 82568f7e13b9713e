"""Files that a command is going to write: whether their place takes them is found out before any work."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from carrara.errors import UserError, one_line, refusal

DAMAGED = ".damaged"
_BLOCK = 4096  # bytes, for which a full disk has no room


def check_name(path: Path) -> None:
    """UserError where a path cannot be written down in text files: it is not UTF-8, or has control characters."""
    text = str(path)
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise UserError(f"the path {text!r} has a tab, newline or control character; choose another name")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"the path {text!r} is not valid UTF-8; choose another name") from None


def current_folder() -> str:
    """Where relative paths begin; UserError where that folder was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder is no longer there; change to another one") from None


def check_writable(path: Path) -> None:
    """UserError where no file or folder ``path``, which may be missing with the folders above it, can be written."""
    check_name(path)
    try:
        place = Path(os.path.abspath(path))
        _is_there(place.with_name(f".{place.name}.part"))  # the longest name that it has until it is whole
        while not _is_there(place):
            place = place.parent
        if place.is_dir():
            with tempfile.TemporaryFile(dir=place) as file:  # has no name, so that a kill leaves nothing
                file.write(bytes(_BLOCK))
                file.flush()
        elif place == Path(os.path.abspath(path)):
            with open(place, "ab"):
                pass
        else:
            raise UserError(f"cannot write {path}: {place} is a file, expected a folder")
    except OSError as error:
        error.filename = str(path)
        raise UserError(refusal(error)) from None


def read_bytes(path: Path) -> bytes:
    """What a file holds; UserError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from None


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` at the end of the block; on failure nothing changes.

    ``durable``: it is on the disk before it has its name. OSError where it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, text as UTF-8; UserError where it cannot be written."""
    try:
        with replacing(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {one_line(error)}") from None


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``path`` at the end of the block; on failure nothing changes.

    OSError where the disk is full or the place cannot be written.
    """
    part, old = path.with_name(path.name + ".part"), path.with_name(path.name + ".old")
    try:
        for leftover in (part, old):
            remove(leftover)
        part.mkdir(parents=True)
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if os.path.lexists(path):
        os.rename(path, old)
    os.rename(part, path)
    with suppress(OSError):
        remove(old)


class Journal:
    """A file of JSON, a line each, that outlives a kill: what `add` was given is there when it returns.

    Unless it is ``durable``, a computer that loses its power may lose the last lines.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path, self._durable = path, durable

    def __iter__(self) -> Iterator[Any]:
        """The lines, up to one that is damaged; a torn end is cut off, so that the next line starts clean."""
        with suppress(FileNotFoundError), open(self.path, "r+b") as file:
            whole = 0
            for line in file:
                try:
                    parsed = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                yield parsed
            if whole < os.fstat(file.fileno()).st_size:  # else it would be young again, whoever only reads it
                file.truncate(whole)

    def add(self, *lines: Any) -> None:
        """Writes them behind those that are there; OSError where that cannot be."""
        with open(self.path, "ab") as file:
            file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            if self._durable:
                file.flush()
                os.fsync(file.fileno())


def remove(path: Path) -> None:
    """A folder, a file or a link, if it is there; OSError where it cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Gives what is damaged another name, so that it is neither read nor lost; returns where it is now."""
    aside = path.with_name(path.name + DAMAGED)
    remove(aside)
    return path.rename(aside)


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object in a text; None where there is anything else, as in a damaged file."""
    found = json_value(text)
    return found if isinstance(found, dict) else None


def json_value(text: str | bytes) -> Any:
    """What a JSON text says; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
