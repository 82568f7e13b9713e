"""A data set that Hugging Face's `datasets` saved to disk: Arrow files and two small tables about them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from carrara.errors import UserError, one_line
from carrara.importing.archives import unsafe
from carrara.importing.arrow_tables import Flat, flat, more_pictures, pictures_in
from carrara.importing.file_listing import below, digest_of
from carrara.importing.formats.parquet import ROWS, Place, from_batches, layout_of, unread
from carrara.importing.options import Options
from carrara.importing.row import Rejected, Row, Survey
from carrara.importing.splits import splits_of
from carrara.text import printable

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
    total, files = 0, _files(Path(source))
    for path in files:
        with _mapped(path) as file:
            reader = _opened(path, file)
            shape = _shape(path, reader.schema)
            root = shape.roots[layout_of(path, shape.rows.schema).image]
            total += _total(path, partial(pictures_in, root=root))
    return Survey(total, digest_of(Path(source), files, repr(options.licence)))


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """A row per row, split by split in their order; what is damaged ends its file, with the reason."""
    files = _files(Path(source))
    folders = splits_of({below(Path(source), path.parent) for path in files})
    for path in files:
        name = printable(below(Path(source), path))
        with _mapped(path) as file:
            reader = _opened(path, file)
            schema = _shape(path, reader.schema).rows.schema
            layout = layout_of(path, schema)
            yield from unread(layout, name)
            for other in more_pictures(schema):
                if other not in (layout.image, *layout.beside):
                    reason = f"pictures are taken from the column {printable(layout.image)!r} alone"
                    yield Rejected(name, f"the column {printable(other)!r} is not read: {reason}")
            # "train" or "test" as the folder of a split, or as the only split says
            only = str(_json(path.parent / STATE).get("_split"))
            split = folders.get(below(Path(source), path.parent)) or splits_of([only]).get(only)
            place = Place(name, split, 0, _total(path, len) - 1)
            named = _Named(place)
            batches = _batches(reader, layout.columns, named)
            for item in from_batches(batches, layout, place, options, set()):
                yield from named.lacking()
                yield named.as_in_source(item)
            yield from named.lacking()


class _Called(NamedTuple):
    name: str
    row: str


class _Named:
    """What rows are called: by their numbers in the file, of a list of pictures with their places in it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._next = 0  # row of the file
        self._count = 0  # of what `from_batches` takes for rows
        self._names: dict[str, _Called] = {}
        self._lacking: list[Rejected] = []

    def take(self, some: Flat, rows: int) -> None:
        """Notes the names of so many more rows of the file."""
        file = self._place.file
        self._names = {
            f"{file}:{self._count + k}": _Called(f"{file}:{name}", f"{file}:{name.partition('.')[0]}")
            for k, name in enumerate(some.names)
        }
        self._lacking += (Rejected(f"{file}:{name}", "the row holds no pictures") for name in some.without)
        self._count += len(some.names)
        self._next += rows

    def lacking(self) -> Iterator[Rejected]:
        """The rows without pictures that were come by."""
        lacking, self._lacking = self._lacking, []
        yield from lacking

    def as_in_source(self, item: Row | Rejected) -> Row | Rejected:
        """A row or a reason by its name in the file; pictures of one row are not split apart."""
        called = self._names.get(item.source)
        if called is None:  # the rest of a damaged file
            rest = f"-{self._place.last}" if self._place.last > self._next else ""
            return replace(item, source=f"{self._place.file}:{self._next}{rest}")
        if isinstance(item, Row) and called.name != called.row:
            return replace(item, source=called.name, group=item.group or called.row)
        return replace(item, source=called.name)


def _shape(path: Path, schema: pa.Schema) -> Flat:
    """What becomes of the columns. UserError where they cannot be read."""
    import pyarrow as pa

    try:
        empty = [pa.array([], field.type) for field in schema]
        return flat(pa.RecordBatch.from_arrays(empty, schema=schema))
    except (UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(f"the columns of {path} cannot be read: {one_line(error)}") from None


def _batches(
    reader: pa.RecordBatchStreamReader, columns: Sequence[str], named: _Named
) -> Iterator[pa.RecordBatch]:
    """Some rows of the columns at a time: a batch of a file may be of thousands."""
    first = 0
    for whole in reader:
        whole.validate(full=True)  # offsets that lie would be followed out of the file
        for start in range(0, whole.num_rows, ROWS):
            some = flat(whole.slice(start, ROWS), first + start)
            named.take(some, min(ROWS, whole.num_rows - start))
            yield some.rows.select(list(dict.fromkeys(columns)))
        first += whole.num_rows


def _total(path: Path, count: Callable[[pa.RecordBatch], int]) -> int:
    """The sum over a file's batches as far as it is whole; mapped, so nothing is read but what is counted by."""
    import pyarrow as pa

    total = 0
    try:
        with _mapped(path) as file:
            for batch in _opened(path, file):
                total += count(batch)
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
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None
    return found if isinstance(found, dict) else {}


def _mapped(path: Path) -> Any:
    import pyarrow as pa

    try:
        return pa.memory_map(str(path))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None


def _opened(path: Path, file: Any) -> pa.RecordBatchStreamReader:
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not readable Arrow: {one_line(error)}") from None
