"""A data set that Hugging Face's `datasets` saved to disk: Arrow files and two small tables about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.data.archives import unsafe
from carrara.data.files import below, printable
from carrara.data.importers.parquet import ROWS, Place, from_batches, layout_of, unread
from carrara.data.importing import Options
from carrara.data.rows import Rejected, Row, Survey
from carrara.data.words import split_named
from carrara.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


def matches(source: str) -> bool:
    """The source is a folder written by ``save_to_disk``: one data set, or several splits of one."""
    path = Path(source)
    return (path / SPLITS).is_file() or ((path / STATE).is_file() and (path / INFO).is_file())


def survey(source: str, options: Options) -> Survey:
    """Counts the rows and digests the files' names, sizes and times. UserError where one is damaged, or has no column
    of pictures."""
    total, digest = 0, hashlib.sha256(repr(options.licence).encode())
    for path in _files(Path(source)):
        about = path.stat()
        digest.update(f"{below(Path(source), path)!r} {about.st_size} {about.st_mtime_ns}\n".encode())
        with _mapped(path) as file:
            reader = _opened(path, file)
            layout_of(path, reader.schema)
            total += _rows_in(path)
    return Survey(total, digest.hexdigest())


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """A row per row, split by split in their order; what is damaged ends its file, with the reason."""
    for path in _files(Path(source)):
        name = printable(below(Path(source), path))
        with _mapped(path) as file:
            reader = _opened(path, file)
            layout = layout_of(path, reader.schema)
            yield from unread(layout, name)
            # "train" or "test" as the folder of a split, or as the only split says
            split = split_named(name.rpartition("/")[0]) or split_named(
                str(_json(path.parent / STATE).get("_split"))
            )
            place = Place(name, split, 0, _rows_in(path) - 1)
            yield from from_batches(_batches(reader, layout.columns), layout, place, options, set())


def _batches(reader: pa.RecordBatchStreamReader, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some rows of the columns at a time: a batch of a file may be of thousands."""
    for whole in reader:
        batch = whole.select(list(dict.fromkeys(columns)))
        batch.validate(full=True)  # offsets that lie would be followed out of the file
        for start in range(0, batch.num_rows, ROWS):
            yield batch.slice(start, ROWS)


def _rows_in(path: Path) -> int:
    import pyarrow as pa

    total = 0
    try:
        with _mapped(path) as file:
            for batch in _opened(
                path, file
            ):  # mapped: nothing is read but what the numbers of rows lie between
                total += batch.num_rows
    except (OSError, pa.ArrowException):  # `rows` says where it ends
        pass
    return total


def _files(path: Path) -> list[Path]:
    """The Arrow files in the order that the data set says. UserError where it says none, or one that is not there."""
    folders = [path]
    if (path / SPLITS).is_file():
        names = _json(path / SPLITS).get("splits")
        folders = [path / str(name) for name in names] if isinstance(names, list) else []
    found = []
    for folder in folders:
        state = _json(folder / STATE)
        if state.get("_indices_data_files"):
            raise UserError(f"{folder} was saved as a selection of rows by an old `datasets`; save it again")
        for entry in state.get("_data_files") or []:
            name = str(entry.get("filename")) if isinstance(entry, dict) else ""
            if unsafe(name) or "/" in name or not (folder / name).is_file():
                raise UserError(f"{folder / STATE} names {name!r}, which is no file of this folder")
            found.append(folder / name)
    if not found:
        raise UserError(f"{path} names no files of a data set in {STATE}")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    return found if isinstance(found, dict) else {}


def _mapped(path: Path) -> Any:
    import pyarrow as pa

    try:
        return pa.memory_map(str(path))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _opened(path: Path, file: Any) -> pa.RecordBatchStreamReader:
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not readable Arrow: {' '.join(str(error).split())[:200]}") from None
