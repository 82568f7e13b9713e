"""What the discriminator buys: the same recipe and budget with and without it, on held-out pictures.

    carrara data import cifar10.parquet data/cifar
    python bench/discriminator.py data/cifar --size 32 --json bench/results/discriminator_cpu.json

Needs `carrara[eval]` for the kernel distance, and weights for LPIPS where they are at hand (docs/inspect.md). The third
row is a discriminator so strong that it does harm, with a small tolerance: it has to be undone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from carrara.autoencoders.stored import load_autoencoder
from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.metrics.features import kernel_distance, load_features
from carrara.metrics.lpips import load_lpips
from carrara.metrics.reconstruction import psnr, reconstruct
from carrara.recipes.catalogue import named
from carrara.tensors import from_pixels
from carrara.training.devices import Placement
from carrara.training.stages import train_autoencoder

ROWS: dict[str, list[str]] = {
    "without": [],
    "with": ["discriminator.layers=2"],
    "too strong": ["discriminator.layers=2", "discriminator.weight=50", "discriminator.tolerance=0.5"],
}


def trained(dataset: Dataset, changes: list[str], folder: Path) -> tuple[Any, list[str]]:
    """The finished autoencoder and what the training said."""
    notes = [r.note for r in train_autoencoder(named("kl_autoencoder", changes), dataset, folder)]  # type: ignore[arg-type]
    return load_autoencoder(folder / "model"), [note for note in notes if note]


def measured(stored: Any, dataset: Dataset, count: int, device: torch.device) -> dict[str, float]:
    pictures = dataset.pictures(dataset.indices("held_out")[:count], stored.size)
    again = reconstruct(stored.module, pictures, device)
    features = load_features()
    found = {
        "psnr": float(psnr(pictures, again).mean()),
        "kernel_distance": kernel_distance(features(pictures), features(again), paired=True),
    }
    try:
        network = load_lpips("alexnet", None)
    except UserError:
        return found
    with torch.inference_mode():
        parts = zip(torch.split(pictures, 50), torch.split(again, 50), strict=True)
        values = [network(from_pixels(a), from_pixels(b)) for a, b in parts]
    return {**found, "lpips": float(torch.cat(values).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--patch", type=int, default=8, help="factor of the autoencoder")
    parser.add_argument("--count", type=int, default=1000, help="held-out pictures at most")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dataset, placement = Dataset.open(options.data), Placement.choose()
    common = [
        f"size={options.size}",
        f'train.budget="{options.budget}"',
        f"autoencoder.patch={options.patch}",
    ]
    print(f"{placement}; kl_autoencoder, factor {options.patch}, {options.budget} each, {options.data.name}")
    print(f"{'discriminator':16}{'PSNR':>8}{'LPIPS':>9}{'kernel distance':>17}")
    rows: dict[str, Any] = {}
    for name, changes in ROWS.items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            stored, notes = trained(dataset, [*common, *changes], Path(folder) / "run")
        found = measured(stored, dataset, options.count, placement.device)
        rows[name] = {**found, "notes": notes}
        lpips = f"{found['lpips']:.4f}" if "lpips" in found else "-"
        print(f"{name:16}{found['psnr']:>8.2f}{lpips:>9}{found['kernel_distance']:>17.1f}", flush=True)
        for note in notes:
            print(f"    {note}", flush=True)
    print("limit: a discriminator costs time; what it buys is texture, which PSNR does not see")
    if options.json:
        about = {"device": str(placement), "torch": torch.__version__, "budget": options.budget}
        options.json.write_text(
            json.dumps({**about, "data": options.data.name, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
