"""Export: a data set as files of a format that others read, and that `carrara data import` takes back."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pkgutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from carrara import __version__
from carrara.data.beside import KINDS, id_column
from carrara.data.boxes import COLUMN as BOXES
from carrara.data.pictures import is_heic
from carrara.data.rows import CAPTIONED_BY, MORE_CAPTIONS, UNSTATED, caption_language
from carrara.data.shards import Shards
from carrara.data.table import Dataset
from carrara.data.tiff import STARTS
from carrara.data.verify import AT_A_TIME, MOST_ROWS, check
from carrara.errors import UserError, nearest

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


@dataclass(frozen=True)
class Exported:
    """How far an export is."""

    done: int
    total: int


def exporters() -> dict[str, Any]:
    """The exporter modules by name: whatever lies in the folder."""
    package = importlib.import_module("carrara.data.exporters")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    return {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}


def export_pictures(dataset: Dataset, destination: Path, form: str) -> Generator[Exported, None, None]:
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
            yield Exported(shards.done, total)
            rows = pictures(dataset, shards.done)
            while shards.done < total:
                with shards.another() as shard:
                    for count in exporter.write(shard.noting(rows), named, shard.folder, len(shards.kept)):
                        yield Exported(shards.done + count, total)
            shards.finish(partial(_finish, exporter, named))
    except OSError as error:
        kept = "what is finished of it is kept, and the same command goes on"
        none = "no shard of it was finished, and nothing is kept"
        raise UserError(
            f"cannot write {destination}: {error.strerror or error} ({kept if shards and shards.kept else none})"
        ) from None


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
