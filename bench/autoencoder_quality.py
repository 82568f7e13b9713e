"""Stage one's quality: held-out PSNR at an equal budget, Carrara's small networks and diffusers' AutoencoderKL.

    carrara data import emoji data/emoji
    carrara data import cifar10.parquet data/cifar
    python bench/autoencoder_quality.py data/emoji data/cifar --json bench/results/autoencoder_quality_cpu.json

Carrara: the recipes kl_autoencoder, vq_autoencoder and fsq_autoencoder at factors 4 and 8. diffusers: an AutoencoderKL
of factor 4 with about the same number of weights, trained by the loss of its own example (squared error and 1e-6 of
the KL divergence, both summed; AdamW, weight decay 0.01, gradients clipped at 1), once with the example's learning rate
and once with one that suits a fresh network. The example's LPIPS has no gradient and its discriminator does not count
before step 50,001: neither is computed here, which leaves that time to it. Both get the same minutes of training.
PSNR is that of 8-bit pictures, mean over the held-out ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from carrara.autoencoders.stored import load_autoencoder
from carrara.dataset.dataset import Dataset
from carrara.dataset.loader import Reading, load
from carrara.metrics.reconstruction import psnr
from carrara.recipes.catalogue import named
from carrara.tensors import from_pixels, to_pixels
from carrara.training.devices import Placement
from carrara.training.lr_and_budget import Budget
from carrara.training.stages import train_autoencoder

HELD_OUT = 1000  # pictures at most
F8 = ["autoencoder.patch=8"]
OURS: dict[str, tuple[str, list[str]]] = {
    "KL, factor 4": ("kl_autoencoder", []),
    "VQ, factor 4": ("vq_autoencoder", []),
    "FSQ, factor 4": ("fsq_autoencoder", []),
    "KL, factor 8": ("kl_autoencoder", F8),
    "VQ, factor 8": ("vq_autoencoder", F8),
}
THEIRS = {"diffusers, its example's rate": 4.5e-6, "diffusers, rate 1e-3": 1e-3}


def size_of(dataset: Dataset) -> int:
    """The side at which a set is trained on: 32 for CIFAR-10, else 64."""
    return 32 if max(dataset.take([0], ["width"])["width"]) <= 32 else 64


def carrara(recipe: str, changes: list[str], dataset: Dataset, budget: str, side: int) -> dict[str, Any]:
    chosen = named(recipe, [*changes, f'train.budget="{budget}"', f"size={side}"])
    folder = Path(tempfile.mkdtemp()) / "run"
    try:
        seen = [report.seen for report in train_autoencoder(chosen, dataset, folder)][-1]  # type: ignore[arg-type]
        stored = load_autoencoder(folder / "model")
    finally:
        shutil.rmtree(folder.parent)
    module = stored.module.to(Placement.choose().device)

    def again(image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = module.decode(module.encode(image).mode())  # type: ignore[operator]
        return found

    weights = sum(p.numel() for p in module.parameters())
    return {"psnr": held_out(dataset, side, again), "weights": weights, "seen": seen}


def diffusers(rate: float, dataset: Dataset, budget: str, side: int, batch: int = 8) -> dict[str, Any]:
    torch.manual_seed(0)
    device = Placement.choose().device
    module = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
    ).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), rate, betas=(0.9, 0.999), weight_decay=1e-2)
    limit, spent, seen = Budget.parse(budget).seconds or 0.0, 0.0, 0
    batches = load(dataset, Reading(["image"], size=side), batch=batch, seed=0)
    for loaded in batches:
        start = time.perf_counter()
        image = from_pixels(loaded.columns["image"]).to(device)  # type: ignore[arg-type]
        posterior = module.encode(image).latent_dist
        picture = module.decode(posterior.sample()).sample
        loss = ((picture - image).square().sum() + 1e-6 * posterior.kl().sum()) / len(image)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent, seen = spent + time.perf_counter() - start, seen + len(image)
        if spent >= limit:
            break
    batches.close()
    module.eval()
    found = held_out(dataset, side, lambda image: module.decode(module.encode(image).latent_dist.mean).sample)
    return {"psnr": found, "weights": sum(p.numel() for p in module.parameters()), "seen": seen}


@torch.no_grad()
def held_out(dataset: Dataset, side: int, again: Any) -> float:
    device = Placement.choose().device
    rows, total = dataset.indices("held_out")[:HELD_OUT], 0.0
    for start in range(0, len(rows), 50):
        pictures = dataset.pictures(rows[start : start + 50], side)
        image = from_pixels(pictures).to(device)
        total += float(psnr(pictures, to_pixels(again(image)).cpu()).sum())
    return total / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--budget", default="3m", help="training time of each, e.g. 90s or 3m")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{Placement.choose()}; {options.budget} of training each; PSNR in dB of held-out pictures")
    print(f"{'':10}{'':32}{'weights':>10}{'pictures seen':>15}{'PSNR':>8}")
    rows: dict[str, Any] = {}
    for path in options.data:
        dataset = Dataset.open(path)
        side = size_of(dataset)
        for name in [n for n in (*OURS, *THEIRS) if options.only in n]:
            if name in OURS:
                row = carrara(*OURS[name], dataset, options.budget, side)
            else:
                row = diffusers(THEIRS[name], dataset, options.budget, side)
            rows[f"{path.name} {side} px, {name}"] = row
            print(
                f"{path.name:10}{name:32}{row['weights']:>10,}{row['seen']:>15,}{row['psnr']:>8.2f}",
                flush=True,
            )
    print("limit: pictures met in the time; within it, how fast the optimizer learns from each")
    if options.json:
        about = {"device": str(Placement.choose()), "torch": torch.__version__, "budget": options.budget}
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
