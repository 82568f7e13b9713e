"""Parquet: files of some hundred megabytes that ``datasets.load_dataset(folder)`` and any table program open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from carrara.exporting.arrow_tables import batches, schema
from carrara.exporting.exporting import Picture

FILE_BYTES = 512 * 2**20


def write(pictures: Iterator[Picture], columns: tuple[str, ...], folder: Path, number: int) -> Iterator[int]:
    """``pictures-00000.parquet`` and so on, a row group a batch."""
    from pyarrow.parquet import ParquetWriter

    size = 0
    # The pictures are compressed already.
    compression = {"image.bytes": "NONE"}
    with ParquetWriter(
        folder / f"pictures-{number:05d}.parquet", schema(columns), compression=compression
    ) as file:
        for batch in batches(pictures, columns):
            file.write_batch(batch.rows)
            size += batch.size
            yield batch.done
            if size >= FILE_BYTES:
                return
