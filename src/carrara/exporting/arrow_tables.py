"""Pictures and their words as Arrow tables that Hugging Face's `datasets` shows as pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from carrara.dataset.columns import KINDS
from carrara.exporting.exporting import Picture, suffix_of

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_BYTES = 32 * 2**20
BATCH_ROWS = 1000


class Batch(NamedTuple):
    """Some rows, how many there are up to their end, and how large they are."""

    rows: pa.RecordBatch
    done: int
    size: int


def features(columns: Iterable[str]) -> dict[str, Any]:
    """The columns as `datasets` describes them."""
    kinds: dict[str, Any] = {"image": {"_type": "Image"}}
    kinds |= {side: {"dtype": "int32", "_type": "Value"} for side in ("width", "height")}
    for name in columns:
        kinds[name] = {"_type": "Image"} if name in KINDS else {"dtype": "string", "_type": "Value"}
    return kinds


def schema(columns: Iterable[str]) -> pa.Schema:
    """Pictures are structs of bytes and a name, all else is text."""
    import pyarrow as pa

    types = {
        "Image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "int32": pa.int32(),
        "string": pa.string(),
    }
    described = features(columns)
    fields = [pa.field(name, types[kind.get("dtype", "Image")]) for name, kind in described.items()]
    about = json.dumps({"info": {"features": described}})
    return pa.schema(fields, metadata={"huggingface": about})


def batches(pictures: Iterator[Picture], columns: tuple[str, ...]) -> Iterator[Batch]:
    """The rows some megabytes at a time."""
    import pyarrow as pa

    shape = schema(columns)
    rows: list[dict[str, Any]] = []
    size = done = 0
    for done, picture in enumerate(pictures, 1):
        rows.append(_row(picture))
        size += len(picture.image) + sum(map(len, picture.beside.values()))
        if size >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
            yield Batch(pa.RecordBatch.from_pylist(rows, schema=shape), done, size)
            rows, size = [], 0
    if rows:
        yield Batch(pa.RecordBatch.from_pylist(rows, schema=shape), done, size)


def _row(picture: Picture) -> dict[str, Any]:
    named = {"image": picture.image, **picture.beside}
    files = {name: {"bytes": d, "path": f"{picture.number:09d}.{suffix_of(d)}"} for name, d in named.items()}
    return {**picture.said, **files, "width": picture.width, "height": picture.height}
