"""Where a data set lies, a folder or object storage (`s3://bucket/path`), and who may write there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Protocol

from carrara.dataset.damaged_files import is_of_library, set_aside_versions
from carrara.errors import UserError, one_line
from carrara.files import check_name, current_folder, replacing

if TYPE_CHECKING:
    import lance
    import pyarrow.fs


TABLE = "pictures.lance"
STAGING = "derive.partial"  # folder of columns that are being made
PATIENCE = 3.0  # seconds of waiting for another process before it is said
_ONCE_MORE = 1000  # times that a folder may vanish while it is made; some places never take one


class Store(Protocol):
    """The table and the small files beside it. ``work`` is a folder of this machine for what is not finished."""

    path: Path
    table: str  # what Lance opens
    work: Path

    def has_table(self) -> bool: ...

    def read(self, name: str) -> str | None: ...

    def write(self, name: str, text: str) -> None: ...

    def names(self, folder: str) -> list[str]: ...

    def remove(self, name: str) -> None: ...

    def writing(self) -> contextlib.AbstractContextManager[None]: ...


def store_at(path: str | Path) -> Store:
    """The store of the data set at a path; nothing is made or looked at."""
    text = str(path)
    if remote := re.match(r"s3:/+(.+)", text):  # a Path has swallowed one of the slashes
        return ObjectStore(remote[1].rstrip("/"))
    if scheme := re.match(r"([a-z][a-z0-9]+):/", text):
        raise UserError(f"{text}: expected a folder or s3://bucket/path, not {scheme[1]}://")
    check_name(Path(text))
    return Folder(Path(path))


def for_lance(path: Path) -> str:
    """The path of a table on this machine as Lance means the same by it as Python does: it takes a relative one for
    a url, with ``~`` for the home folder and what is before a colon for a scheme. UserError where there is none."""
    if not path.is_absolute():
        current_folder()
    absolute = os.path.realpath(path)
    check_name(Path(absolute))
    return absolute


def newest(store: Store) -> lance.LanceDataset:
    """The table at its newest version; of those whose manifest is damaged, the one before, with a note."""
    import lance

    try:
        return lance.dataset(store.table)
    except BaseException as error:
        is_here = store.path == store.work
        if not (is_of_library(error) and is_here and set_aside_versions(Path(store.table))):
            raise
        return lance.dataset(store.table)


class Folder:
    """A data set in a folder of this machine: one process at a time may change what others read."""

    def __init__(self, path: Path) -> None:
        self.path = self.work = path
        self.table = for_lance(path / TABLE)

    def has_table(self) -> bool:
        """Whether there is a table."""
        return Path(self.table).is_dir()

    def read(self, name: str) -> str | None:
        """The text of a file, with � for what is not UTF-8; None where there is none."""
        try:
            return (self.path / name).read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, text: str) -> None:
        """Writes a file that is always whole, the old or the new one."""
        with replacing(self.path / name, durable=True) as file:
            file.write(text.encode())

    def names(self, folder: str) -> list[str]:
        """The files in a folder of the store, sorted, as `read` takes them."""
        root = self.path / folder
        return sorted(f"{folder}/{p.name}" for p in root.iterdir()) if root.is_dir() else []

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """This process alone changes the data set meanwhile; a killed one lets go."""
        held = lock(self.path, wait=True)
        try:
            yield
        finally:
            release(held)


class _RemotePath(PosixPath):
    """The path of an object store, which keeps both of its slashes when it is shown."""

    def __str__(self) -> str:
        return super().__str__().replace("s3:/", "s3://", 1)


class ObjectStore:
    """A data set in a bucket: nobody can be kept out, so every change is made again where another was faster.

    Where and with which keys is in the environment, as for any program: AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_REGION, and for other stores than Amazon's AWS_ENDPOINT_URL.
    """

    def __init__(self, place: str) -> None:
        self.path: Path = _RemotePath(f"s3:/{place}")
        self.table = f"s3://{place}/{TABLE}"
        self._place = place
        if _endpoint().startswith("http://"):  # who names such a place means it; Lance would ask once more
            os.environ.setdefault("AWS_ALLOW_HTTP", "true")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.work = cache / "carrara" / hashlib.sha256(place.encode()).hexdigest()[:16]

    def _files(self) -> pyarrow.fs.S3FileSystem:
        from pyarrow.fs import S3FileSystem

        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        # A delayed opening lets a small file be one request; not every store takes several parts as Arrow sends them.
        if not (endpoint := _endpoint()):
            return S3FileSystem(region=region, allow_delayed_open=True)
        scheme, _, host = endpoint.rpartition("://")
        return S3FileSystem(
            endpoint_override=host.rstrip("/"),
            scheme=scheme or "https",
            region=region,
            allow_delayed_open=True,
        )

    def has_table(self) -> bool:
        """Whether there is a table."""
        return bool(self.names(f"{TABLE}/_versions"))

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(f"{self.path} cannot be reached: {one_line(error)}") from None

    def read(self, name: str) -> str | None:
        """The text of an object; None where there is none."""
        try:
            with self._reached(), self._files().open_input_stream(f"{self._place}/{name}") as file:
                return str(file.read().decode(errors="replace"))
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        """Writes an object, which is always whole."""
        with self._reached(), self._files().open_output_stream(f"{self._place}/{name}") as file:
            file.write(text.encode())

    def names(self, folder: str) -> list[str]:
        """The objects in a folder of the store, sorted, as `read` takes them."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(f"{self._place}/{folder}", allow_not_found=True)
        with self._reached():
            found = self._files().get_file_info(selector)
        return sorted(f"{folder}/{about.base_name}" for about in found)

    def remove(self, name: str) -> None:
        """Removes an object, if it is there."""
        with contextlib.suppress(FileNotFoundError), self._reached():
            self._files().delete_file(f"{self._place}/{name}")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Those of this machine one after another; others are met when they are."""
        self.work.mkdir(parents=True, exist_ok=True)
        held = lock(self.work, wait=True)
        try:
            yield
        finally:
            release(held)


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""


def lock(path: Path, *, make: bool = False, wait: bool = False, doing: str = "") -> int | None:
    """Makes this process the only one that holds a folder until the descriptor is closed; a killed one lets go.

    With ``make`` the folder is made, and again where its last holder removed it. UserError where another process
    holds it, unless this is to ``wait``: then it is said after a while what the other is ``doing``. Where the
    system has no ``flock`` (Windows), nothing is locked.
    """
    doing = doing or f"writing to {path}"
    started, said, missing = time.monotonic(), False, 0
    while True:
        try:
            if make:
                path.mkdir(parents=True, exist_ok=True)
            taken, held = _taken(path)
            if taken:
                return held
            missing = 0
        except FileNotFoundError:  # removed at this moment by who held it before: once more
            missing += 1
            if not make or missing > _ONCE_MORE:
                raise
            continue
        if not wait:
            raise UserError(f"another process is {doing}; wait until it has finished")
        if not said and time.monotonic() - started > PATIENCE:
            from carrara.terminal import console

            console.print(f"waiting: another process is {doing}", soft_wrap=True)
            said = True
        time.sleep(0.02)


def _taken(path: Path) -> tuple[bool, int | None]:
    """Whether the folder could be locked, and its descriptor."""
    try:
        import fcntl
    except ImportError:
        return True, None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = os.stat(path)  # another folder of this name, where the one that was opened is removed
        if (there.st_dev, there.st_ino) == (os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino):
            return True, descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return False, None


def release(held: int | None) -> None:
    """Lets others hold what `lock` held."""
    if held is not None:
        os.close(held)


UNFINISHED = "import.partial"


@contextmanager
def making(store: Store, column: str) -> Iterator[None]:
    """Within it nobody else makes the derived column; UserError where somebody does."""
    folder = store.work / STAGING / column
    held = lock(folder, make=True, doing=f"writing to {store.path} what this one was to write")
    try:
        yield
    finally:
        with suppress(OSError):  # values of a later run may be there
            folder.rmdir()
        release(held)
