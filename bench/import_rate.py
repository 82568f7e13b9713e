"""Pictures a second that an import takes in, against a plain loop over the same files, and the memory of it.

python bench/import_rate.py [--pictures 20000] [--side 128] [--folder PLACE] [--json FILE]

The loop reads, hashes and decodes the same files in as many threads and keeps nothing: an import cannot be faster.
Both begin with the files in the system's cache. Memory is the peak of an import of a quarter of the pictures and
of one of all, each in a process of its own; the difference is what it holds for each picture. The processes that look
at the pictures for it are counted with the seconds, and the largest of them with its own peak.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from carrara.dataset.dataset import Dataset
from carrara.importing.decode_pool import THREADS
from carrara.importing.importing import import_pictures


def picture(number: int, side: int) -> bytes:
    """A JPEG that no other number has: waves with some noise."""
    draw = np.random.default_rng(number)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(2 * np.pi * (draw.uniform(-3, 3) * x + draw.uniform(-3, 3) * y)) for _ in range(3)]
    image = 127 + 90 * np.stack(waves, -1) + draw.normal(0, 8, (side, side, 3))
    file = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def write(folder: Path, first: int, last: int, side: int) -> None:
    """Pictures ``first`` to ``last`` with a caption each, a thousand in a folder."""
    for number in range(first, last):
        place = folder / f"{number // 1000:04}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(picture(number, side))


def generate(folder: Path, count: int, side: int) -> None:
    """``count`` pictures; those that are there already are not made again."""
    there = sum(1 for _ in folder.rglob("*.jpg"))
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        starts = range(there, count, 1000)
        list(pool.map(write, *zip(*((folder, s, min(s + 1000, count), side) for s in starts), strict=True)))
    lines = (f'{{"file_name": "{n // 1000:04}/{n}.jpg", "text": "number {n}"}}\n' for n in range(count))
    (folder / "metadata.jsonl").write_text("".join(lines))


def peak() -> float:
    """MiB that this process has held at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def used() -> float:
    """Seconds of the processor, those of ended processes of this one among them."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def peak_apart() -> float:
    """MiB that the largest of the processes that this one started has held at most."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def take_in(source: Path, destination: Path) -> dict[str, float]:
    """An import: seconds until the files are listed, until all is there, and the peak of memory."""
    start, before = time.perf_counter(), used()
    reports = import_pictures(source, destination)
    next(reports)
    begun = time.perf_counter()
    *_, last = reports
    assert last.summary is not None
    seconds = time.perf_counter() - start
    return {
        "pictures": last.summary.added,
        "seconds": seconds,
        "listing": begun - start,
        "cpu": used() - before,
        "peak_mib": peak(),
        "peak_apart_mib": peak_apart(),
    }


def look(path: Path) -> str:
    """What an import cannot do without: the bytes, their hash, and whether they can be decoded."""
    data = path.read_bytes()
    Image.open(io.BytesIO(data)).load()
    return hashlib.sha256(data).hexdigest()


def plain_loop(source: Path, threads: int) -> dict[str, float]:
    """Looks at all files, in threads or in none."""
    start, before = time.perf_counter(), used()
    paths = sorted(source.rglob("*.jpg"))
    with ThreadPoolExecutor(threads) as pool:
        count = len(list(pool.map(look, paths, chunksize=16)))
    return {
        "pictures": count,
        "seconds": time.perf_counter() - start,
        "cpu": used() - before,
    }


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--pictures", type=int, default=20_000)
    arguments.add_argument("--side", type=int, default=128)
    arguments.add_argument("--folder", type=Path, help="where the pictures are made, and left")
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = given.folder or Path(temporary)
        few, all_of_them = place / "quarter", place / "pictures"
        generate(few, given.pictures // 4, given.side)
        generate(all_of_them, given.pictures, given.side)
        for file in all_of_them.rglob("*.jpg"):
            file.read_bytes()  # into the cache
        found: dict[str, Any] = {
            "pictures": given.pictures,
            "side": given.side,
            "threads": THREADS,
            "loop": alone(plain_loop, all_of_them, THREADS),
            "loop_one_thread": alone(plain_loop, few, 1),
        }
        for name, source in (("import_quarter", few), ("import", all_of_them)):
            shutil.rmtree(place / "data", ignore_errors=True)
            found[name] = alone(take_in, source, place / "data")
        assert len(Dataset.open(place / "data")) == given.pictures
        shutil.rmtree(place / "data")
    for name in ("loop", "loop_one_thread", "import_quarter", "import"):
        found[name]["rate"] = found[name]["pictures"] / found[name]["seconds"]
    found["ratio"] = found["import"]["rate"] / found["loop"]["rate"]
    found["cpu_ratio"] = found["loop"]["cpu"] / found["import"]["cpu"]
    more = found["import"]["pictures"] - found["import_quarter"]["pictures"]
    grown = found["import"]["peak_mib"] - found["import_quarter"]["peak_mib"]
    found["bytes_a_picture"] = grown * 2**20 / more
    print(f"plain loop        {found['loop']['rate']:8.0f} pictures/s in {THREADS} threads")
    print(f"                  {found['loop_one_thread']['rate']:8.0f} pictures/s in one")
    print(f"import            {found['import']['rate']:8.0f} pictures/s, {found['ratio']:.2f} of the loop")
    print(
        f"                  {found['cpu_ratio']:8.2f} of the loop by the processor's time, if others use it too"
    )
    print(f"listing the files {found['import']['listing']:8.1f} s of {found['import']['seconds']:.1f} s")
    peaks = [found[name]["peak_mib"] for name in ("import_quarter", "import")]
    print(f"peak of memory    {peaks[0]:8.0f} MiB for a quarter of them, {peaks[1]:.0f} MiB for all")
    print(f"                  {found['bytes_a_picture']:8.0f} bytes a picture more")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
