"""A data set as Hugging Face's ``save_to_disk`` leaves it: ``datasets.load_from_disk(folder)`` opens it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carrara.exporting.arrow_tables import batches, features, schema
from carrara.exporting.exporting import Picture

FILE_BYTES = 512 * 2**20


def write(pictures: Iterator[Picture], columns: tuple[str, ...], folder: Path, number: int) -> Iterator[int]:
    """An Arrow file; the split is a column, so that rows keep their order."""
    import pyarrow as pa

    size = 0
    with pa.ipc.new_stream(str(folder / f"{number:05d}.arrow"), schema(columns)) as writer:
        for rows, done, more in batches(pictures, columns):
            writer.write_batch(rows)
            size += more
            yield done
            if size >= FILE_BYTES:
                return


def finish(folder: Path, columns: tuple[str, ...], digest: str) -> None:
    """The files get the names that say of how many they are, and the two tables about them are written."""
    count = len(list(folder.glob("*.arrow")))
    names = [f"data-{k:05d}-of-{count:05d}.arrow" for k in range(count)]
    for k, name in enumerate(names):
        if not (folder / name).exists():
            (folder / f"{k:05d}.arrow").rename(folder / name)
    described = {
        "features": features(columns),
        "description": "",
        "citation": "",
        "homepage": "",
        "license": "",
    }
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": digest[:16],  # `datasets` keeps what it computes under this name
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    for name, content in (("dataset_info.json", described), ("state.json", state)):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
