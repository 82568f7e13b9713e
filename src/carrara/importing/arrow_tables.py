"""Nested columns of Arrow made flat: what lies in a struct becomes a column, a list of pictures a row a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from carrara.dataset.columns import LANGUAGE
from carrara.importing.column_names import BOXES

if TYPE_CHECKING:
    import pyarrow as pa

_SAID = ("caption", "captions", "text", "translation")  # structs that may have a text for each language
_DEEPEST = 8


class Flat(NamedTuple):
    """Rows without structs and, where pictures came in lists only, with one picture each.

    ``names`` are theirs by the rows of the source: "7", or "7.0" and "7.1"; ``without`` are those of rows whose list
    of pictures is empty; ``roots`` are the source's columns, by the columns that were made of them.
    """

    rows: pa.RecordBatch
    names: list[str]
    without: list[str]
    roots: dict[str, str]


def flat(batch: pa.RecordBatch, first: int = 0) -> Flat:
    """The rows of a batch, of which ``first`` is the number of the first."""
    import pyarrow as pa

    about = _features(batch.schema)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    roots = {name: name for name in columns}
    names, without = [str(first + k) for k in range(batch.num_rows)], list[str]()
    for _ in range(_DEEPEST):
        columns = _out_of_structs(columns, roots, about)
        lists = [name for name, column in columns.items() if _has_pictures(column.type)]
        if not lists or any(_is_picture(columns[name].type) for name in lists):
            break
        columns, parents = _out_of_list(columns, lists[0])
        counts = [0] * len(names)
        for parent in parents:
            counts[parent] += 1
        without += [name for name, count in zip(names, counts, strict=True) if not count]
        names = [f"{name}.{k}" for name, count in zip(names, counts, strict=True) for k in range(count)]
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    metadata = {"huggingface": json.dumps({"info": {"features": about}})}
    rows = pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata))
    return Flat(rows, names, without, roots)


def pictures_in(batch: pa.RecordBatch, *, root: str) -> int:
    """How many rows `flat` makes of a batch, whose pictures are in this column, with those that have none."""
    alone = batch.select([root])
    if _is_picture(alone.schema.field(0).type):
        return int(batch.num_rows)
    alone.validate(full=True)
    found = flat(alone)
    return len(found.names) + len(found.without)


def more_pictures(schema: pa.Schema) -> Iterator[str]:
    """The columns that have pictures."""
    yield from (field.name for field in schema if _has_pictures(field.type))


def _out_of_structs(columns: dict[str, Any], roots: dict[str, str], about: dict[str, Any]) -> dict[str, Any]:
    """The columns with the fields of structs in place of them, by their own names where no other has it."""
    import pyarrow.types as is_

    found: dict[str, Any] = {}
    for name, column in columns.items():
        kind = column.type
        if not is_.is_struct(kind) or _is_picture(kind) or name.lower() in BOXES:
            found[name] = column
            continue
        inner = [field.name for field in kind]
        spoken = name.lower() in _SAID and all(LANGUAGE.fullmatch(part) for part in inner)
        described = about.get(name)
        for part, values in zip(inner, column.flatten(), strict=True):
            own = f"caption_{part}" if spoken else part
            if own in columns or own in found:
                own = f"{name}.{part}"
            found[own], roots[own] = values, roots[name]
            about[own] = described.get(part) if isinstance(described, dict) else None
    deeper = any(
        is_.is_struct(c.type) and not _is_picture(c.type) for n, c in found.items() if n not in columns
    )
    return _out_of_structs(found, roots, about) if deeper else found


def _out_of_list(columns: dict[str, Any], name: str) -> tuple[dict[str, Any], list[int]]:
    """A row for each entry of a column of lists, and the row that each was in. Lists that are as long in every row,
    as `datasets` makes them of a list of dicts, go along entry by entry."""
    import pyarrow.compute as pc

    parents = pc.list_parent_indices(columns[name])
    found = {}
    for other, column in columns.items():
        if other == name or (_is_list(column.type) and pc.list_parent_indices(column).equals(parents)):
            found[other] = pc.list_flatten(column)
        else:
            found[other] = column.take(parents)
    return found, parents.to_pylist()


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow.types as is_

    return bool(is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind))


def _is_picture(kind: pa.DataType) -> bool:
    """Bytes, or a struct that has them itself."""
    import pyarrow.types as is_

    inner = [field.type for field in kind] if is_.is_struct(kind) else [kind]
    return any(is_.is_binary(part) or is_.is_large_binary(part) for part in inner)


def _has_pictures(kind: pa.DataType) -> bool:
    import pyarrow.types as is_

    if _is_picture(kind):
        return True
    if is_.is_struct(kind):
        return any(_has_pictures(field.type) for field in kind)
    return _is_list(kind) and _has_pictures(kind.value_type)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` says of the columns."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return dict(about) if isinstance(about, dict) else {}
