"""How many look-alikes `dedup --by features` finds by cells of those that comparing everything finds, and how fast.

    carrara data encode DATASET --features
    python bench/dedup_features.py DATASET [--cosine 0.9] [--probes 4 8 16] [--column latent_...] [--json FILE]

Both ways on the same vectors in memory, one after the other; times are those of the processor, so that what else runs
counts little. Any derived column will do, less its mean: what is measured is the finding. The file has a table for each
data set, column and cosine that it was measured with.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carrara.cleaning.duplicates import COSINE, features_column
from carrara.cleaning.near_pairs import PROBES, Pairs, alike, alike_by_cells
from carrara.dataset.dataset import Dataset


def stored(dataset: Dataset, column: str, *, centred: bool) -> npt.NDArray[np.float32]:
    flat = dataset.arrow([column])[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors: npt.NDArray[np.float32] = flat.reshape(len(dataset), -1).astype(np.float32)
    if centred:
        vectors -= vectors.mean(0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def timed(found: Iterator[Pairs]) -> tuple[set[tuple[int, int]], float]:
    started, pairs = time.process_time(), set[tuple[int, int]]()
    for part in found:
        pairs |= set(zip(part.first.tolist(), part.second.tolist(), strict=True))
    return pairs, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--column", help="another derived column than the features")
    parser.add_argument("--cosine", type=float, default=COSINE)
    parser.add_argument("--probes", type=int, nargs="+", default=[PROBES])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    dataset = Dataset.open(given.data)
    column = given.column or features_column(dataset)
    vectors = stored(dataset, column, centred=given.column is not None)
    exact, exactly = timed(alike(len(vectors), lambda rows: vectors[rows], given.cosine))
    print(f"{len(vectors)} vectors, {len(exact)} pairs at {given.cosine:g} or more: {exactly:.1f} s")
    rows = []
    for probes in given.probes:
        some, seconds = timed(
            alike_by_cells(len(vectors), lambda rows: vectors[rows], given.cosine, probes=probes)
        )
        recall = len(some & exact) / max(1, len(exact))
        rows.append({"probes": probes, "recall": recall, "seconds": seconds, "ratio": exactly / seconds})
        print(
            f"{probes:3} cells each: recall {recall:.4f}, {seconds:.1f} s, {exactly / seconds:.1f} times as fast"
        )
    if given.json:
        name = f"{column} of {given.data.name} at {given.cosine:g}"
        known = json.loads(given.json.read_text()) if given.json.exists() else {}
        document = {"vectors": len(vectors), "width": vectors.shape[1], "cosine": given.cosine}
        document |= {"pairs": len(exact), "exact_seconds": exactly, "cells": rows}
        given.json.write_text(json.dumps({**known, name: document}, indent=2) + "\n")


if __name__ == "__main__":
    main()
