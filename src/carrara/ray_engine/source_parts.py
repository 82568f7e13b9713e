"""A source in parts that others can look at: its files where it has many, else its rows, some of them at a time."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from carrara.dataset.picture_columns import Beside
from carrara.errors import BadPicture, UserError, one_line
from carrara.importing.file_listing import below
from carrara.importing.formats import parquet, webdataset
from carrara.importing.importing import Job, importers
from carrara.importing.row import Rejected, Row
from carrara.importing.splits import splits_of
from carrara.text import printable

PARTS = 64  # that a source of rows is cut in, where this makes them neither small nor large
FEWEST, MOST = 64, 4096  # rows of a part
MOST_BYTES = 256  # rows of a part whose bytes travel with them …
MOST_CARRIED = 32 * 2**20  # … and these bytes, the row with which they are reached being the last
_TRAVELS = 4096  # bytes of a row from which it is one of these

Items = list[Row | Rejected]
# Sources of files that are read from their beginning to their end: one at a time is a part.
_SHARDS: dict[str, Callable[[Path], list[Path]]] = {
    "webdataset": webdataset.shards,
    "parquet": parquet.files,
}


class Unreadable(UserError):
    """A file of the source cannot be read."""


@dataclass(frozen=True)
class Part:
    """A piece of a source in its order: one of its files, by the path below it and with its split, or rows."""

    number: int
    shard: str | None = None
    split: str | None = None
    items: bytes = b""

    @property
    def name(self) -> str:
        """What it is called where it is listed as a whole."""
        return printable(self.shard) if self.shard else f"part {self.number}"

    @contextmanager
    def rows(self, job: Job) -> Iterator[Iterator[Row | Rejected]]:
        """Its items, of which the next raises Unreadable where the file cannot be read further."""
        if self.shard is None:
            yield iter(pickle.loads(self.items))  # this program's own, from the process that lists
            return
        root = Path(tempfile.mkdtemp(prefix="carrara-shard-"))
        try:
            # A folder that has this file alone, at the same place: the rows get the names that they always have.
            source, link = Path(job.source), root / self.shard
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source / self.shard if source.is_dir() else source)
            yield self._read(root, job)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    def _read(self, root: Path, job: Job) -> Iterator[Row | Rejected]:
        try:
            # What its name says of its split depends on those beside it.
            splits = {str(self.shard): self.split} if self.split else {}
            yield from importers()[job.importer].rows(str(root), job.options, splits)
        except UserError as error:
            raise Unreadable(str(error).replace(str(root), job.source)) from None


def parts(job: Job, done: set[int]) -> Iterator[Part]:
    """All of them in order, always the same ones while the source stays as it is, but for those that are ``done``."""
    if shards := shards_of(job.importer, job.source):
        splits = splits_of(shards)
        found = (Part(number, shard, splits.get(shard)) for number, shard in enumerate(shards))
        yield from (part for part in found if part.number not in done)
        return
    with closing(importers()[job.importer].rows(job.source, job.options)) as rows:
        first = list(itertools.islice(rows, FEWEST))
        travels = any(_travels(item) for item in first)
        many = min(MOST_BYTES if travels else MOST, max(FEWEST, job.total // PARTS))
        both = itertools.chain(first, rows)
        cut = _cut(map(_carried, both) if travels else both, many)
        for number, items in enumerate(cut):
            if number not in done:
                yield Part(number, items=pickle.dumps(items))


def _cut(items: Iterator[Row | Rejected], many: int) -> Iterator[Items]:
    """So many at a time, or fewer where they carry many bytes: their order alone says where."""
    held, size = Items(), 0
    for item in items:
        held.append(item)
        size += _carries(item)
        if len(held) == many or size >= MOST_CARRIED:
            yield held
            held, size = Items(), 0
    if held:
        yield held


def shards_of(importer: str, source: str) -> list[str]:
    """The files of a source by their paths below it, in its order, where each is a part; none where there are not
    several."""
    found = _SHARDS[importer](Path(source)) if importer in _SHARDS else []
    return [below(Path(source), path) for path in found] if len(found) > 1 else []


def standing(source: str) -> str:
    """A source by a path that means the same everywhere; a word as it is."""
    return os.path.abspath(source) if os.path.exists(source) else source


@dataclass(frozen=True)
class Carried:
    """Bytes that were read elsewhere, or what came of reading them."""

    data: bytes
    error: OSError | ValueError | None = None

    def __call__(self) -> bytes:
        if self.error is not None:
            raise self.error
        return self.data

    @classmethod
    def of(cls, read: Callable[[], bytes]) -> Carried:
        """What ``read`` gives."""
        try:
            return cls(read())
        except BadPicture as error:
            return cls(b"", BadPicture(str(error)))
        except OSError as error:
            return cls(b"", OSError(error.errno, one_line(error)))


def _travels(item: Row | Rejected) -> bool:
    """Whether the bytes of a row have to go along with it: it holds them, or an open file."""
    try:
        return len(pickle.dumps(item)) > _TRAVELS
    except (TypeError, AttributeError, pickle.PicklingError, ValueError):
        return True


def _carries(item: Row | Rejected) -> int:
    """Bytes that travel with it."""
    if isinstance(item, Rejected):
        return 0
    return sum(
        len(read.data)
        for read in (item.read, *(b.read for b in item.beside.values()))
        if isinstance(read, Carried)
    )


def _carried(item: Row | Rejected) -> Row | Rejected:
    if isinstance(item, Rejected):
        return item
    beside = {name: Beside(of.source, Carried.of(of.read)) for name, of in item.beside.items()}
    return replace(item, read=Carried.of(item.read), beside=beside)
