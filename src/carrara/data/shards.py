"""A folder written shard by shard: what is finished outlasts a kill, and nothing half-written has its final name.

A shard is written in a folder of its own. When it is whole it is noted in a journal, with a digest of the rows in it
and the sizes of its files, and moved to the others; when all are there, their folder gets its final name.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from carrara.data.store import lock, release
from carrara.data.unfinished import whole_lines
from carrara.model_folder import sync

if TYPE_CHECKING:
    from carrara.data.exporting import Picture

_UNDER_WAY = ".shard"  # the folder of the one that is being written


class Kept(NamedTuple):
    """A finished shard: of how many rows, the digest of theirs, and the sizes of its files by name."""

    rows: int
    digest: str
    files: dict[str, int]


@dataclass
class Shard:
    """One that is being written into ``folder``."""

    folder: Path
    rows: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def noting(self, pictures: Iterator[Picture]) -> Iterator[Picture]:
        """The pictures, those that were taken being noted as in this shard."""
        for picture in pictures:
            self.digest.update(picture.digest)
            self.rows += 1
            yield picture


class Shards:
    """The shards of a folder to be; ``kept`` are finished. UserError where another process writes them."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.kept: list[Kept] = []
        self._folder = destination.with_name(f".{destination.name}.part")
        self._journal = destination.with_name(f".{destination.name}.part.jsonl")
        self._finished = False  # all of it is there, under the names that it will have
        self._lock = lock(self._folder, make=True, doing=f"exporting to {destination}")

    @property
    def done(self) -> int:
        """Rows in finished shards."""
        return sum(shard.rows for shard in self.kept)

    def take_up(self, about: str, digests: Callable[[], Iterator[bytes]]) -> None:
        """Keeps what an earlier one left that was ``about`` the same, as far as the rows still are those in it.

        ``digests`` gives those of the rows, from the first on.
        """
        lines = list(whole_lines(self._journal))
        if lines[:1] == [{"about": about}]:
            # All, for as long as this is not through: what closes it before throws nothing away.
            self.kept = noted = [Kept(**line) for line in lines[1:] if "rows" in line]
            rows = digests()
            same = list(
                itertools.takewhile(lambda shard: shard.digest == _digest_of(rows, shard.rows), noted)
            )
            self._finished = (
                "finished" in lines[-1]
                and len(same) == len(noted)
                and next(rows, None) is None
                and self._are_there(lines[-1]["finished"])
            )
            if not self._finished:
                self.kept = list(itertools.takewhile(lambda shard: self._are_there(shard.files), same))
        if not self._finished:
            self._leave_kept(about)

    @contextmanager
    def another(self) -> Iterator[Shard]:
        """One more shard; when it has been written, it is kept."""
        shard = Shard(self._folder / _UNDER_WAY)
        shutil.rmtree(shard.folder, ignore_errors=True)
        shard.folder.mkdir()
        yield shard
        _onto_the_disk(shard.folder)
        self.kept.append(Kept(shard.rows, shard.digest.hexdigest(), _sizes(shard.folder)))
        self._note(self.kept[-1]._asdict())
        self._move_up()

    def finish(self, last: Callable[[Path, str], None]) -> None:
        """Gives the folder its name, after ``last(folder, digest of all)``, which may give files other names.

        After a kill in the midst of that, the shards whose files were renamed are no longer there.
        """
        if not self._finished:
            digest = hashlib.sha256("".join(shard.digest for shard in self.kept).encode()).hexdigest()
            last(self._folder, digest)
            self._note({"finished": _sizes(self._folder)})
        _onto_the_disk(self._folder)
        if self.destination.is_dir():
            self.destination.rmdir()
        os.rename(self._folder, self.destination)
        self._journal.unlink()

    def close(self) -> None:
        """Lets others write it; where nothing was finished, nothing stays."""
        if not self.kept:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._journal.unlink(missing_ok=True)
        release(self._lock)

    def _are_there(self, files: dict[str, int]) -> bool:
        """Whether all files are, in these sizes; of the last shard, some may not have been moved yet."""
        for name, size in files.items():
            paths = (self._folder / name, self._folder / _UNDER_WAY / name)
            if not any(path.is_file() and path.stat().st_size == size for path in paths):
                return False
        return True

    def _leave_kept(self, about: str) -> None:
        """Nothing is left but the kept shards, and a journal of them."""
        inside = {name.partition("/")[0] for shard in self.kept for name in shard.files}
        under_way = self._folder / _UNDER_WAY
        if under_way.is_dir():
            for path in list(under_way.iterdir()):
                if path.name in inside:
                    os.replace(path, self._folder / path.name)
            shutil.rmtree(under_way)
        for path in list(self._folder.iterdir()):
            if path.name not in inside:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        part = self._journal.with_name(f"{self._journal.name}.new")
        lines = [{"about": about}, *(shard._asdict() for shard in self.kept)]
        part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(part, self._journal)

    def _move_up(self) -> None:
        under_way = self._folder / _UNDER_WAY
        for path in list(under_way.iterdir()):
            os.rename(path, self._folder / path.name)
        under_way.rmdir()

    def _note(self, line: dict[str, Any]) -> None:
        with open(self._journal, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _digest_of(rows: Iterator[bytes], count: int) -> str:
    return hashlib.sha256(b"".join(itertools.islice(rows, count))).hexdigest()


def _sizes(folder: Path) -> dict[str, int]:
    """Of all files in a folder, by name."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _onto_the_disk(folder: Path) -> None:
    """All at once where that can be asked for: of a hundred thousand files one after the other takes minutes."""
    if hasattr(os, "sync"):
        os.sync()
    else:
        sync(folder)
