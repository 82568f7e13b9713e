"""A data set as Hugging Face's ``save_to_disk`` leaves it: ``datasets.load_from_disk(folder)`` opens it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carrara.data.arrow_rows import batches, features, schema
from carrara.data.exporting import Picture

FILE_BYTES = 512 * 2**20


def write(pictures: Iterator[Picture], columns: tuple[str, ...], folder: Path) -> Iterator[int]:
    """Arrow files and the two tables about them; the split is a column, so that rows keep their order."""
    import pyarrow as pa

    writer: Any = None
    written: list[Path] = []
    size, digest = 0, hashlib.sha256()  # `datasets` keeps what it computes under this name
    try:
        for rows, done, more in batches(_hashed(pictures, digest), columns):
            if writer is None or size >= FILE_BYTES:
                if writer is not None:
                    writer.close()
                written.append(folder / f"{len(written)}.arrow")
                writer, size = pa.ipc.new_stream(str(written[-1]), schema(columns)), 0
            writer.write_batch(rows)
            size += more
            yield done
    finally:
        if writer is not None:
            writer.close()
    names = [f"data-{k:05d}-of-{len(written):05d}.arrow" for k in range(len(written))]
    for path, name in zip(written, names, strict=True):
        path.rename(folder / name)
    described = {
        "features": features(columns),
        "description": "",
        "citation": "",
        "homepage": "",
        "license": "",
    }
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": digest.hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    for name, content in (("dataset_info.json", described), ("state.json", state)):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _hashed(pictures: Iterator[Picture], digest: Any) -> Iterator[Picture]:
    for picture in pictures:
        digest.update(repr((picture.said, sorted(picture.beside.items()))).encode() + picture.image)
        yield picture
