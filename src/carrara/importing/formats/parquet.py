"""Parquet: a file, or a folder of files, with pictures as bytes in a column, as data sets are often handed on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from carrara.dataset.columns import KINDS, LANGUAGE, MORE_CAPTIONS
from carrara.dataset.picture_columns import Beside
from carrara.errors import UserError, one_line
from carrara.images.header import SUFFIXES
from carrara.importing.archives import TARS
from carrara.importing.column_names import BOXES, COLUMNS, SIDES, TEXTS, Words, plain, row_words
from carrara.importing.file_listing import any_below, below, deep, digest_of
from carrara.importing.formats import urls
from carrara.importing.options import Options
from carrara.importing.row import Rejected, Row, Survey
from carrara.importing.splits import splits_of
from carrara.importing.table_rows import arrow_rows
from carrara.text import printable

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

IMAGES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
CLASS_NAMES = ("class_name", "label_name", "label_text", "class", "category_name")
LABELS = ("label", "fine_label", "class_id", "labels")
WORDS = tuple(name for name in COLUMNS if name not in (*BOXES, "label"))
NUMBERS = ("group", "punsafe", "pwatermark", *SIDES)  # of these words, those that may be numbers
LISTS = (*TEXTS, MORE_CAPTIONS)  # … those that may be lists of texts
ROWS = 64  # that are in memory at a time
_METADATA = "metadata.parquet"  # a table beside pictures, which holds none itself


@dataclass(frozen=True)
class Layout:
    """Which columns of a file are what; ``words`` maps the column to the word it is known by here.

    ``within`` maps the columns of pictures, ``image`` and those ``beside`` it, to the field of a struct that has the
    bytes, or to None.
    """

    image: str
    beside: tuple[str, ...]
    within: dict[str, str | None]
    boxes: str | None
    box_names: tuple[str, ...]  # of labels of boxes that are numbers
    label: str | None
    class_name: str | None
    names: tuple[str, ...]  # of labels that are numbers
    words: dict[str, str]
    unread: dict[str, str]  # columns of a known name whose type is none of these, and what was expected

    @property
    def columns(self) -> list[str]:
        """What has to be read."""
        found = (self.image, *self.beside, self.boxes, self.label, self.class_name, *self.words)
        return [c for c in found if c is not None]


def matches(source: str) -> bool:
    """The source is a Parquet file, or a folder in or below which lie Parquet files and no pictures."""
    path = Path(source)
    if urls.matches(source):
        return False
    if path.is_file():
        return path.suffix.lower() == ".parquet"
    return path.is_dir() and not any_below(path, (*SUFFIXES, *TARS)) and bool(files(path))


def survey(source: str, options: Options) -> Survey:
    """Counts the rows from the files' ends and digests names, sizes and times. UserError where one is damaged,
    or has no column of pictures."""
    root = Path(source)
    total = 0
    for path in files(root):
        with _open(path) as file:
            layout_of(path, file.schema_arrow)
            total += file.metadata.num_rows
    return Survey(total, digest_of(root, files(root), repr(options.licence)))


def rows(source: str, options: Options, splits: Mapping[str, str] | None = None) -> Iterator[Row | Rejected]:
    """A row per row, in the files' natural order; a row group that cannot be read is skipped with its reason.

    A column that is known by its name but cannot be used, and the first label of a file that is none, are told.
    The split is the column of that name, or what ``splits`` says of the file, whose names do if it is None.
    """
    root, all_files = Path(source), files(Path(source))
    splits = splits_of(below(root, path) for path in all_files) if splits is None else splits
    for path in all_files:
        name = printable(below(root, path))
        with _open(path) as file:
            layout, number, told = layout_of(path, file.schema_arrow), 0, set[str]()
            yield from unread(layout, name)
            for group in range(file.num_row_groups):
                first, number = number, number + file.metadata.row_group(group).num_rows
                batches = file.iter_batches(ROWS, row_groups=[group], columns=layout.columns)
                place = Place(name, splits.get(below(root, path)), first, number - 1)
                yield from from_batches(batches, layout, place, options, told)


class Place(NamedTuple):
    """Where rows stand: in which file, of which split by its name, and the numbers of the first and the last."""

    file: str
    split: str | None
    first: int
    last: int


def unread(layout: Layout, file: str) -> Iterator[Rejected]:
    """What is known by its name and cannot be used."""
    for column, expected in layout.unread.items():
        yield Rejected(file, f"the column {printable(column)!r} is not read: {expected}")


def from_batches(
    batches: Iterator[pa.RecordBatch], layout: Layout, place: Place, options: Options, told: set[str]
) -> Iterator[Row | Rejected]:
    """A row per row; what cannot be read ends them. ``told`` remembers the first odd label of a file."""
    import pyarrow as pa

    number = place.first
    try:
        for batch in batches:
            for values in arrow_rows(batch):
                source = f"{place.file}:{number}"
                number += 1
                if isinstance(values, str):
                    yield Rejected(source, values)
                    continue
                if not told and (odd := _odd_label(values, layout)):
                    told.add(odd)
                    yield Rejected(source, odd)
                yield _row(values, layout, source, place.split, options)
    except (OSError, pa.ArrowException) as error:
        rest = f"-{place.last}" if place.last > number else ""
        yield Rejected(f"{place.file}:{number}{rest}", f"rows that cannot be read: {one_line(error)}")


def _row(
    values: dict[str, Any], layout: Layout, source: str, split: str | None, options: Options
) -> Row | Rejected:
    data = _data(values, layout, layout.image)
    if not data:
        held = values[layout.image]
        path = held.get("path") if isinstance(held, dict) else None
        only = f", only the path {path!r}" if path else ""
        return Rejected(source, f"the row holds no bytes of a picture{only}")
    said = {c: text for c in layout.words if (text := plain(values[c])) is not None}
    if layout.boxes and (boxes := plain(values[layout.boxes])) is not None:
        said[BOXES[0]] = boxes
    try:
        words = row_words(said | _label(values, layout), "the row").over(Words(split=split))
    except UserError as error:
        return Rejected(source, str(error))
    beside = {name: _data(values, layout, name) for name in layout.beside}
    return Row(
        source=source,
        read=partial(bytes, data),
        box_names=layout.box_names,
        beside={name: Beside(f"{source}:{name}", partial(bytes, d)) for name, d in beside.items() if d},
        **words.told(options.licence),
    )


def _data(values: dict[str, Any], layout: Layout, column: str) -> bytes | None:
    """The bytes in a column of pictures."""
    data, within = values[column], layout.within[column]
    found: bytes | None = data[within] if within and data is not None else data
    return found


def _label(values: dict[str, Any], layout: Layout) -> dict[str, str]:
    """The class by its name where there is one: from its column, or from the numbers' names."""
    if layout.class_name and values[layout.class_name]:
        return {"label": str(values[layout.class_name])}
    label = _number(values, layout)
    if label is None or _odd_label(values, layout):
        return {}
    if isinstance(label, str):
        return {"label": label}
    if label < 0:  # Hugging Face's word for "none"
        return {}
    return {"label": layout.names[int(label)] if layout.names else str(int(label))}


def _odd_label(values: dict[str, Any], layout: Layout) -> str | None:
    """Why a number is no label, in words that are the same for all numbers of its kind; None where it may be."""
    label = _number(values, layout)
    if isinstance(label, float) and not label.is_integer():
        return f"the column {layout.label!r} has labels that are no whole numbers; they are not taken"
    if layout.names and isinstance(label, int | float) and label >= len(layout.names):
        return (
            f"the column {layout.label!r} has labels beyond its {len(layout.names)} names; they are not taken"
        )
    return None


def _number(values: dict[str, Any], layout: Layout) -> int | float | str | None:
    """The label as it is in its column; a hole in a column of floats is none."""
    label: int | float | str | None = values[layout.label] if layout.label else None
    return None if isinstance(label, float) and math.isnan(label) else label


def layout_of(path: Path, schema: pa.Schema) -> Layout:
    """What the columns of a file are. UserError where none holds pictures."""
    import pyarrow.types as is_

    def bytes_in(kind: pa.DataType) -> bool:
        return bool(is_.is_binary(kind) or is_.is_large_binary(kind))

    within: dict[str, str | None] = {}
    for field in schema:
        if bytes_in(field.type):
            within[field.name] = None
        elif is_.is_struct(field.type):
            inner = [part.name for part in field.type if bytes_in(part.type)]
            if inner:
                within[field.name] = inner[0]
    named = [name for known in IMAGES for name in within if name.lower() == known]
    others = [name for name in within if name not in KINDS]
    if not named and len(others) != 1:
        found = ", ".join(f"{f.name} ({f.type})" for f in schema)[:300]
        raise UserError(f"{path} has no column 'image' with the bytes of pictures; its columns are {found}")
    image = (named or others)[0]
    beside = tuple(name for name in within if name in KINDS)
    kinds = {f.name: f.type.value_type if is_.is_dictionary(f.type) else f.type for f in schema}
    is_text = (is_.is_string, is_.is_large_string, is_.is_string_view)
    text = [n for n, kind in kinds.items() if any(test(kind) for test in is_text)]
    # Whole numbers with holes become floats on their way through pandas.
    numbers = [n for n, k in kinds.items() if is_.is_integer(k) or is_.is_floating(k)]
    label, class_name = _first([*text, *numbers], LABELS), _first(text, CLASS_NAMES)
    said = [name for name in BOXES if name in kinds and not is_.is_null(kinds[name])]
    boxes = next((name for name in said if _may_say_boxes(kinds[name])), None)
    words = {
        n: word
        for n in kinds
        if (word := _word(n))
        and (boxes or word not in SIDES)
        and (n in text or (word in NUMBERS and n in numbers) or (word in LISTS and _are_texts(kinds[n])))
    }
    labels = () if label or class_name else (*LABELS, *CLASS_NAMES)
    unread = {
        n: f"it holds {kind}, expected text"
        + (" or whole numbers" if n.lower() in (*LABELS, "group") else "")
        for n, kind in kinds.items()
        if n != image and n not in words and not is_.is_null(kind)
        if (_word(n) and n.lower() not in SIDES) or n.lower() in labels
    }
    unread |= {
        n: f"it holds {kinds[n]}, expected lists, or JSON" for n in said if not _may_say_boxes(kinds[n])
    }
    return Layout(
        image=image,
        beside=beside,
        within=within,
        boxes=boxes,
        box_names=_names(schema, boxes),
        label=label,
        class_name=class_name,
        names=_names(schema, label),
        words=words,
        unread=unread,
    )


def _are_texts(kind: pa.DataType) -> bool:
    import pyarrow.types as is_

    listed = is_.is_list(kind) or is_.is_large_list(kind)
    return bool(listed and (is_.is_string(kind.value_type) or is_.is_large_string(kind.value_type)))


def _may_say_boxes(kind: pa.DataType) -> bool:
    """Lists or structs of them, or JSON text."""
    import pyarrow.types as is_

    return bool(is_.is_nested(kind) or is_.is_string(kind) or is_.is_large_string(kind))


def _word(column: str) -> str | None:
    """What a text column is known by here; None for others."""
    name = column.lower() if column.isascii() else column
    language = name.removeprefix("caption_").replace("_", "-")
    if name in WORDS or (name.startswith("caption_") and LANGUAGE.fullmatch(language)):
        return name
    return None


def _first(columns: list[str], known: tuple[str, ...]) -> str | None:
    return next((column for name in known for column in columns if column.lower() == name), None)


def _names(schema: pa.Schema, column: str | None) -> tuple[str, ...]:
    """The names of numbered labels, in a column or within it, where the file says them as Hugging Face does."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
    except (KeyError, TypeError, ValueError):
        return ()
    return _names_within(about) or ()


def _names_within(about: Any) -> tuple[str, ...] | None:
    """The first list of names in a description of features."""
    if isinstance(about, dict) and isinstance(names := about.get("names"), list):
        return tuple(str(name) for name in names)
    inside = about.values() if isinstance(about, dict) else about if isinstance(about, list) else ()
    return next((found for part in inside if (found := _names_within(part))), None)


def files(path: Path) -> list[Path]:
    """The Parquet files of a source in natural order."""
    if path.is_file():
        return [path]
    return [p for p in deep(path, (".parquet",)) if p.name != _METADATA]


def _open(path: Path) -> ParquetFile:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not readable Parquet: {one_line(error)}") from None
