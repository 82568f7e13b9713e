"""What one processor does in a second and what a picture takes up, for the plan of docs/scale.md.

    python bench/scale_rates.py --json bench/results/scale_rates_cpu.json

Rates are by processor time (of all threads of the process), so that others on the machine hardly matter; a worker of
`--engine ray` is such a process. Pictures come from a WebDataset tar, as they would; captions are of words as often as
Zipf has it; vectors are clustered (bench/search.py).
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch

from carrara.autoencoders import kl
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.dataset.dataset import Dataset
from carrara.dataset.latents import encode
from carrara.dataset.store import store_at
from carrara.dataset.writer import Writer
from carrara.embedders.embed_dataset import embed
from carrara.embedders.embedders import PICTURES, open_embedder
from carrara.importing.importing import import_pictures
from carrara.search.by_vector import Effort
from carrara.search.by_words import _SETTINGS
from carrara.search.indexes import build
from import_rate import picture
from search import clustered


def processor_seconds(work: Callable[[], Any]) -> float:
    """Of all threads of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def shard(path: Path, pictures: int, side: int, words: list[str]) -> int:
    """A tar of pictures with captions; the bytes of the pictures."""
    total = 0
    with tarfile.open(path, "w") as tar:
        for number in range(pictures):
            data = picture(number, side)
            total += len(data)
            for suffix, content in (("jpg", data), ("json", json.dumps({"caption": words[number]}).encode())):
                about = tarfile.TarInfo(f"{number:08}.{suffix}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    return total


def captions(count: int) -> list[str]:
    """Ten words each, of fifty thousand."""
    draw = np.random.default_rng(0)
    weights = 1 / np.arange(1, 50_001)
    chosen = draw.choice(50_000, (count, 10), p=weights / weights.sum())
    return [" ".join(f"w{word}" for word in row) for row in chosen]


def size(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def taking_in(root: Path, pictures: int, side: int) -> dict[str, float]:
    """An import of a shard, and what its writer holds for a picture that is there."""
    words = captions(pictures)
    shard(root / "first.tar", 64, side, words)  # what is only done once is not of the rate
    list(import_pictures(root / "first.tar", root / "first"))
    given = shard(root / "shard.tar", pictures, side, words)
    spent = processor_seconds(lambda: list(import_pictures(root / "shard.tar", root / "data")))
    store = store_at(root / "data")
    opening = processor_seconds(lambda: Writer(store, "{}", held_out=0.05).close())
    tracemalloc.start()
    writer = Writer(store, "{}", held_out=0.05)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    writer.close()
    many = root / "many.lance"
    lance.write_dataset(pa.table({"id": range(400)}), many, max_rows_per_file=1)
    manifest = max(path.stat().st_size for path in (many / "_versions").iterdir())
    return {
        "pictures": pictures,
        "side": side,
        "picture_bytes": given / pictures,
        "row_bytes": (size(root / "data/pictures.lance/data") - given) / pictures,
        "import_per_s": pictures / spent,
        "known_bytes": held / pictures,
        "known_per_s": pictures / opening,
        "manifest_bytes_a_fragment": manifest / 400,
    }


def encoding(root: Path, few: int) -> dict[str, float]:
    """Latents of an autoencoder with the published widths of LDM's f = 8, and features, of the first pictures."""
    dataset = Dataset.open(root / "data")
    rows = np.arange(few)
    config = kl.Config(channels=128, multipliers=(1, 2, 4, 4))
    model = StoredAutoencoder.of(config.build(), config, 256, {})
    spent = processor_seconds(lambda: list(encode(dataset, model, torch.device("cpu"), rows=rows)))
    embedder = open_embedder(PICTURES)
    looked = processor_seconds(lambda: list(embed(dataset, embedder, "image")))
    channels, factor = config.latent_channels, 2 ** (len(config.multipliers) - 1)
    return {
        "latent_bytes": 2 * channels * (256 // factor) ** 2 * 2,
        "latent_per_s": few / spent,
        "feature_bytes": embedder.width * 2,
        "feature_per_s": len(dataset) / looked,
    }


def indexing(root: Path, rows: int, width: int) -> dict[str, float]:
    """The index of words, and that of vectors."""
    vectors = clustered(rows, width, 1).astype(np.float16)
    listed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
    table = pa.table({"caption": captions(rows), "vector": listed})
    place = root / "indexed.lance"
    lance.write_dataset(table, place, data_storage_version="2.2")
    cells = Effort.of(rows, width).cells
    found: dict[str, float] = {"rows": rows, "width": width, "cells": cells}
    before = 0
    ways = {
        "metric": "cosine",
        "num_partitions": cells,
        "num_bits": 1,
        "sample_rate": 64,
    }
    kinds: list[tuple[str, str, str, dict[str, Any]]] = [
        ("words", "caption", "INVERTED", _SETTINGS),
        (
            "vectors",
            "vector",
            "IVF_RQ",
            ways,
        ),
    ]
    for called, column, kind, settings in kinds:
        opened = lance.dataset(place)
        spent = processor_seconds(lambda: build(opened, column, kind, f"{column}_index", settings))  # noqa: B023
        now = size(place / "_indices")
        found |= {f"{called}_per_s": rows / spent, f"{called}_bytes": (now - before) / rows}
        before = now
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--encoded", type=int, default=16)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = taking_in(root, given.pictures, given.side)
        found |= encoding(root, given.encoded)
        found |= indexing(root, given.rows, 512)
    rounded = {name: round(value, 3) for name, value in found.items()}
    command = shlex.join(["python", "bench/scale_rates.py", *sys.argv[1:]])
    text = json.dumps({"command": command, **rounded}, indent=1) + "\n"
    print(text)
    if given.json:
        given.json.write_text(text)


if __name__ == "__main__":
    main()
