"""Export: a data set as files of a format that others read, and that `carrara data import` takes back.

A folder written shard by shard: what is finished outlasts a kill, and nothing half-written has its final name.

A shard is written in a folder of its own. When it is whole it is noted in a journal, with a digest of the rows in it
and the sizes of its files, and moved to the others; when all are there, their folder gets its final name.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import os
import pkgutil
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from carrara.dataset.bit_rot import AT_A_TIME, MOST_ROWS, check
from carrara.dataset.columns import CAPTIONED_BY, KINDS, MORE_CAPTIONS, UNSTATED, caption_language, id_column
from carrara.dataset.store import lock, release
from carrara.errors import UserError, nearest, one_line
from carrara.files import Journal, replacing
from carrara.images.boxes import COLUMN as BOXES
from carrara.images.header import is_heic
from carrara.images.tiff import STARTS
from carrara.model_folder import sync
from carrara.progress import Progress
from carrara.version import __version__

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset


_SAID = ("label", "group", "category", "split", "licence", "url", "flags", CAPTIONED_BY, "source")
_AS_JSON = (BOXES, MORE_CAPTIONS)
_STARTS = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpg",
    b"GIF8": "gif",
    b"BM": "bmp",
    **dict.fromkeys(STARTS, "tif"),
}


@dataclass(frozen=True)
class Picture:
    """A row: its bytes, what is said of it under the names that importers know, and the pictures beside it.

    ``said`` has every column, None where nothing is said; a caption of no stated language is its ``text``, with
    ``language`` "und". ``suffix`` and those of ``beside`` say what the bytes are; ``digest`` is of all of it.
    """

    number: int
    image: bytes
    width: int
    height: int
    digest: bytes
    said: dict[str, str | None] = field(default_factory=dict)
    beside: dict[str, bytes] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        """Of its file."""
        return suffix_of(self.image)

    def document(self) -> dict[str, Any]:
        """What is said, as JSON says it; a label that there is not is null, so that no folder is taken for one."""
        said = {k: json.loads(v) if k in _AS_JSON else v for k, v in self.said.items() if v is not None}
        return {"label": None, **said, "width": self.width, "height": self.height}

    def caption(self) -> str | None:
        """The one for programs that know one: in no stated language, or English, or the first."""
        names = ("text", "caption_en", *sorted(n for n in self.said if caption_language(n)))
        return next((text for name in names if (text := self.said.get(name))), None)


def exporters() -> dict[str, Any]:
    """The exporter modules by name: whatever lies in the folder."""
    package = importlib.import_module("carrara.exporting.formats")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    return {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}


def export_pictures(dataset: Dataset, destination: Path, form: str) -> Generator[Progress, None, None]:
    """Writes all pictures with what is said of them into a new folder, which appears when all of it is there.

    What is finished of a killed export lies beside it, in shards that are kept for as long as the data set says the
    same of their rows: the next one of the same format goes on behind them, and ends in the same bytes. UserError
    where the format is none, the folder holds something or is a mount point, or the disk does not take it.
    """
    known = exporters()
    if form not in known:
        raise UserError(f"no format is called {form!r}{nearest(form, known)}")
    # "." has no name, and a link to a folder cannot be replaced by one.
    destination = Path(os.path.realpath(destination))
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise UserError(f"{destination} is there already; expected a new name, or an empty folder")
    if os.path.ismount(destination):
        raise UserError(
            f"{destination} is a mount point, which no finished folder can replace; expected a new name, "
            f"like {destination / form}"
        )
    exporter, named, total = known[form], columns(dataset), len(dataset)
    shards = None
    try:
        with closing(Shards(destination)) as shards:
            shards.take_up(f"{form} {__version__} {' '.join(named)}", partial(digests, dataset))
            yield _written(shards.done, total)
            rows = pictures(dataset, shards.done)
            while shards.done < total:
                with shards.another() as shard:
                    for count in exporter.write(shard.noting(rows), named, shard.folder, len(shards.kept)):
                        yield _written(shards.done + count, total)
            shards.finish(partial(_finish, exporter, named))
    except OSError as error:
        kept = "what is finished of it is kept, and the same command goes on"
        none = "no shard of it was finished, and nothing is kept"
        raise UserError(
            f"cannot write {destination}: {one_line(error)} ({kept if shards and shards.kept else none})"
        ) from None


def _written(done: int, total: int) -> Progress:
    return Progress.of(done, total, f"{done} written", title="exporting")


def _finish(exporter: Any, named: tuple[str, ...], folder: Path, digest: str) -> None:
    if hasattr(exporter, "finish"):
        exporter.finish(folder, named, digest)


def columns(dataset: Dataset) -> tuple[str, ...]:
    """The names that pictures of a data set say something under, in their order."""
    spoken = [f"caption_{k}".replace("-", "_") for k in dataset.captions if k != UNSTATED]
    text = ["text", "language"] if UNSTATED in dataset.captions else []
    more = [name for name in (*_SAID, *_AS_JSON, *KINDS) if name in dataset.columns]
    return (*text, *sorted(spoken), *more)


def pictures(dataset: Dataset, start: int = 0) -> Iterator[Picture]:
    """Every row in order from one on, some megabytes at a time. UserError at one whose picture is damaged."""
    named = columns(dataset)
    beside = [name for name in named if name in KINDS]
    stored, told = _stored(dataset)
    count = 16
    while start < len(dataset):
        rows = np.arange(start, min(start + count, len(dataset)))
        found = dataset.take_arrow(rows, ["image", *told, *beside])
        for row, values in zip(rows, found.to_pylist(), strict=True):
            check(dataset, int(row), values)
            yield _picture(int(row), values, stored, beside, _digest(values, told))
        start += len(rows)
        count = int(min(MOST_ROWS, 4 * count, max(1, AT_A_TIME * len(rows) // max(1, found.nbytes))))


def digests(dataset: Dataset) -> Iterator[bytes]:
    """The `Picture.digest` of every row in order, for which no picture is read."""
    _, told = _stored(dataset)
    for start in range(0, len(dataset), MOST_ROWS):
        rows = np.arange(start, min(start + MOST_ROWS, len(dataset)))
        for values in dataset.take_arrow(rows, told).to_pylist():
            yield _digest(values, told)


class Stored(NamedTuple):
    """Columns that words are taken from, and those that together tell all of a row."""

    words: list[str]
    all: list[str]


def _stored(dataset: Dataset) -> Stored:
    named = columns(dataset)
    words = ["caption" if n == "text" else n for n in named if n not in (*KINDS, "language")]
    return Stored(words, ["id", "width", "height", *words, *(id_column(n) for n in named if n in KINDS)])


def _digest(values: dict[str, Any], told: Sequence[str]) -> bytes:
    return hashlib.sha256(json.dumps([values[name] for name in told]).encode()).digest()


def suffix_of(data: bytes) -> str:
    """What a picture's file ends in, by its bytes."""
    if data[8:12] == b"WEBP":
        return "webp"
    other = "heic" if is_heic(data) else "avif"
    return next((suffix for start, suffix in _STARTS.items() if data.startswith(start)), other)


def _picture(
    row: int, values: dict[str, Any], stored: Sequence[str], beside: Sequence[str], digest: bytes
) -> Picture:
    said = {name: values[name] for name in stored}
    if said["group"] == values["id"]:  # which is what it is without a group
        said["group"] = None
    if "caption" in said:
        text = said.pop("caption")
        said = {"text": text, "language": UNSTATED if text else None, **said}
    found = {name: values[name] for name in beside if values[name] is not None}
    return Picture(row, values["image"], values["width"], values["height"], digest, said, found)


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
        self._journal = Journal(destination.with_name(f".{destination.name}.part.jsonl"))
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
        lines = list(self._journal)
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
        self._journal.add(self.kept[-1]._asdict())
        self._move_up()

    def finish(self, last: Callable[[Path, str], None]) -> None:
        """Gives the folder its name, after ``last(folder, digest of all)``, which may give files other names.

        After a kill in the midst of that, the shards whose files were renamed are no longer there.
        """
        if not self._finished:
            digest = hashlib.sha256("".join(shard.digest for shard in self.kept).encode()).hexdigest()
            last(self._folder, digest)
            self._journal.add({"finished": _sizes(self._folder)})
        _onto_the_disk(self._folder)
        if self.destination.is_dir():
            self.destination.rmdir()
        os.rename(self._folder, self.destination)
        self._journal.path.unlink()

    def close(self) -> None:
        """Lets others write it; where nothing was finished, nothing stays."""
        if not self.kept:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._journal.path.unlink(missing_ok=True)
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
        with replacing(self._journal.path) as journal:
            for line in ({"about": about}, *(shard._asdict() for shard in self.kept)):
                journal.write(json.dumps(line).encode() + b"\n")

    def _move_up(self) -> None:
        under_way = self._folder / _UNDER_WAY
        for path in list(under_way.iterdir()):
            os.rename(path, self._folder / path.name)
        under_way.rmdir()


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
