"""Random reads from the table against loose files and tar shards, in one run; latents in batches and one by one.

python bench/random_reads.py [--pictures 20000] [--reads 4096] [--side 128] [--folder PLACE] [--json FILE]
(what the documentation tells: --pictures 200000 --json bench/results/random_reads_cpu.json)

The table is read as the import left it, and as `carrara data clean` does, which joins its files. All read the same
pictures in the same random order, 64 at a time, in one thread, from the system's cache, with and without decoding to
64 pixels by the same function. Shards are tars as WebDataset reads them: by an index of where each picture begins,
and, as it is meant to be used, from the front. Every figure is the best of three rounds that take turns.
"""

import argparse
import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, derive
from carrara.dataset.loader import Reading, shape, to_column
from carrara.dataset.versions import clean
from carrara.images.decode import pixels
from carrara.importing.importing import import_pictures
from import_rate import generate

BATCH, SIZE, LATENT = 64, 64, (8, 16, 16)
Rows = npt.NDArray[np.int64]


def shards(files: list[Path], folder: Path) -> list[tuple[Path, int, int]]:
    """Packs the files, a thousand a tar; where each of them lies: its tar, first byte and length."""
    places = []
    folder.mkdir(exist_ok=True)
    for start in range(0, len(files), 1000):
        path = folder / f"{start // 1000:05}.tar"
        with tarfile.open(path, "w") as tar:
            for file in files[start : start + 1000]:
                tar.add(file, file.name)
        with tarfile.open(path) as tar:
            places += [(path, member.offset_data, member.size) for member in tar]
    return places


def from_shards(places: list[tuple[Path, int, int]], rows: Rows) -> Iterator[bytes]:
    """By index: every shard is opened once."""
    opened: dict[Path, Any] = {}
    try:
        for path, offset, size in (places[row] for row in rows):
            if path not in opened:
                opened[path] = open(path, "rb")  # noqa: SIM115  (closed below)
            opened[path].seek(offset)
            yield opened[path].read(size)
    finally:
        for file in opened.values():
            file.close()


def from_the_front(paths: list[Path], count: int) -> Iterator[bytes]:
    """The first pictures of the shards in their order."""
    for path in paths:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield file.read()
                count -= 1
                if not count:
                    return


def from_table(dataset: Dataset, rows: Rows) -> Iterator[bytes]:
    """64 at a time."""
    for start in range(0, len(rows), BATCH):
        yield from dataset.take(rows[start : start + BATCH], ["image"])["image"]


def latents(dataset: Dataset, column: str, rows: Rows, together: int) -> int:
    """Reads them as training does, so many at a time; how many numbers there were."""
    kind, numbers = shape(dataset, column), 0
    for start in range(0, len(rows), together):
        found: Any = to_column(dataset.take_arrow(rows[start : start + together], [column])[column], kind)
        numbers += found.numel()
    return numbers


def rates(readers: Mapping[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """Pictures a second of each, the best of three rounds in which they take turns."""
    best = dict.fromkeys(readers, 0.0)
    for _ in range(3):
        for name, read in readers.items():
            start = time.perf_counter()
            read()
            best[name] = max(best[name], count / (time.perf_counter() - start))
    return best


def noise(columns: Mapping[str, Any]) -> npt.NDArray[np.float16]:
    return np.random.default_rng(0).normal(size=(len(columns["id"]), *LATENT)).astype(np.float16)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--pictures", type=int, default=20_000)
    arguments.add_argument("--reads", type=int, default=4096)
    arguments.add_argument("--side", type=int, default=128)
    arguments.add_argument("--folder", type=Path, help="where the pictures are made, and left")
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = given.folder or Path(temporary)
        source, table, packed = place / "pictures", place / "table", place / "shards"
        generate(source, given.pictures, given.side)
        for old in (table, packed):
            shutil.rmtree(old, ignore_errors=True)
        for _ in import_pictures(source, table):
            pass
        dataset = Dataset.open(table)
        *_, last = derive(
            dataset, Derivation("noise", {"bench": 1}, noise, batch=512, reading=Reading(("id",)))
        )
        assert last.column is not None
        column = last.column
        clean(Dataset.open(table), older_than=timedelta(days=1))
        cleaned = Dataset.open(table)  # while `dataset` goes on reading the files that the import wrote
        files = [source / name for name in dataset.column("source")]
        places = shards(files, packed)
        tars = sorted(packed.iterdir())
        rows = np.random.default_rng(1).permutation(len(dataset))[: given.reads]
        for file in (*files, *tars):
            file.read_bytes()  # into the cache; the table is read once before the first round
        readers: dict[str, Callable[[], Iterator[bytes]]] = {
            "table": lambda: from_table(dataset, rows),
            "table, cleaned": lambda: from_table(cleaned, rows),
            "loose files": lambda: (files[row].read_bytes() for row in rows),
            "shards by index": lambda: from_shards(places, rows),
            "shards from the front": lambda: from_the_front(tars, len(rows)),
        }
        assert list(from_table(dataset, rows)) == list(from_shards(places, rows))
        found: dict[str, Any] = {"pictures": given.pictures, "side": given.side, "reads": len(rows)}
        found["bytes"] = rates(
            {name: lambda read=read: sum(map(len, read())) for name, read in readers.items()}, len(rows)
        )
        found["decoded"] = rates(
            {
                name: lambda read=read: [pixels(data, SIZE) for data in read()]
                for name, read in readers.items()
            },
            len(rows),
        )
        found["latents"] = rates(
            {
                "256 at a time": lambda: latents(dataset, column, rows, 256),
                "one by one": lambda: latents(dataset, column, rows, 1),
            },
            len(rows),
        )
        for old in (table, packed):
            shutil.rmtree(old)
    against = found["decoded"]["loose files"]
    print("pictures/s               bytes   decoded   to loose files")
    for name in readers:
        own = found["decoded"][name]
        print(f"{name:22} {found['bytes'][name]:7.0f}   {own:7.0f}   {own / against:14.2f}")
    many, one = found["latents"].values()
    print(f"latents: {many:.0f}/s 256 at a time, {one:.0f}/s one by one: {many / one:.1f} times")
    found["table_to_loose"], found["batched_to_single"] = found["decoded"]["table"] / against, many / one
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
