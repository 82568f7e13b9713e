"""WebDataset: tars of some gigabyte, a picture with its ``.json``, its caption and what lies beside it a sample."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from carrara.exporting.exporting import Picture, suffix_of

SHARD_BYTES = 2**30
SHARD_ROWS = 10_000


def write(pictures: Iterator[Picture], columns: tuple[str, ...], folder: Path, number: int) -> Iterator[int]:
    """``pictures-000000.tar`` and so on; the same data set gives the same bytes."""
    size = 0
    with tarfile.open(folder / f"pictures-{number:06d}.tar", "w") as shard:
        for done, picture in enumerate(itertools.islice(pictures, SHARD_ROWS), 1):
            size += len(picture.image) + sum(map(len, picture.beside.values()))
            for suffix, data in _files(picture):
                info = tarfile.TarInfo(f"{picture.number:09d}.{suffix}")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
            yield done
            if size >= SHARD_BYTES:
                return


def _files(picture: Picture) -> Iterator[tuple[str, bytes]]:
    yield picture.suffix, picture.image
    yield "json", json.dumps(picture.document(), ensure_ascii=False).encode()
    if caption := picture.caption():
        yield "txt", caption.encode()
    for kind, data in picture.beside.items():
        yield f"{kind}.{suffix_of(data)}", data
