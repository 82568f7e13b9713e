"""Parquet: files of some hundred megabytes that ``datasets.load_dataset(folder)`` and any table program open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from carrara.data.arrow_rows import batches, schema
from carrara.data.exporting import Picture

FILE_BYTES = 512 * 2**20


def write(pictures: Iterator[Picture], columns: tuple[str, ...], folder: Path) -> Iterator[int]:
    """``pictures-00000.parquet`` and so on, a row group a batch."""
    from pyarrow.parquet import ParquetWriter

    file: ParquetWriter | None = None
    files = size = 0
    try:
        for batch in batches(pictures, columns):
            if file is None or size >= FILE_BYTES:
                if file is not None:
                    file.close()
                # The pictures are compressed already.
                path = folder / f"pictures-{files:05d}.parquet"
                file = ParquetWriter(path, schema(columns), compression={"image.bytes": "NONE"})
                files, size = files + 1, 0
            file.write_batch(batch.rows)
            size += batch.size
            yield batch.done
    finally:
        if file is not None:
            file.close()
