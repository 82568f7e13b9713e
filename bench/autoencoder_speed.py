"""Stage one's speed against diffusers: the same network in one process, each program in its default use.

    python bench/autoencoder_speed.py --json bench/results/autoencoder_speed_cpu.json

Training is a forward and a backward pass of the reconstruction and KL losses, for Carrara with its precision and
memory format and with the optimizer's step left away on both sides; encoding is what caching latents does. On a CPU
Carrara computes in bfloat16 where the processor has it, diffusers in float32; on a GPU diffusers' example uses
float32 too. Rounds of the two programs alternate; the table shows the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, VQModel

from carrara.autoencoders import kl, vq
from carrara.training.devices import Placement

# name: (channels, multipliers, latent channels, codes or None, side, batch)
CASES: dict[str, tuple[int, tuple[int, ...], int, int | None, int, int]] = {
    "KL-f8, full width, 64 px": (128, (1, 2, 4, 4), 4, None, 64, 4),
    "KL-f8, half width, 128 px": (64, (1, 2, 4, 4), 4, None, 128, 2),
    "KL-f4, half width, 64 px": (64, (1, 2, 4), 3, None, 64, 4),
    "VQ-f4, half width, 64 px": (64, (1, 2, 4), 3, 8192, 64, 4),
}
GPU = {"KL-f8, full width, 256 px": (128, (1, 2, 4, 4), 4, None, 256, 16)}


def theirs(channels: int, multipliers: tuple[int, ...], latent: int, codes: int | None) -> Any:
    shape: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * len(multipliers),
        "up_block_types": ("UpDecoderBlock2D",) * len(multipliers),
        "block_out_channels": tuple(channels * m for m in multipliers),
        "layers_per_block": 2,
        "latent_channels": latent,
    }
    return VQModel(**shape, num_vq_embeddings=codes) if codes else AutoencoderKL(**shape)


def ours(channels: int, multipliers: tuple[int, ...], latent: int, codes: int | None) -> Any:
    shape: dict[str, Any] = {"channels": channels, "multipliers": multipliers, "latent_channels": latent}
    return (vq.Config(**shape, codes=codes, learning="gradient") if codes else kl.Config(**shape)).build()


def passes(
    case: tuple[int, tuple[int, ...], int, int | None, int, int], placement: Placement
) -> dict[str, Any]:
    """The four things to time."""
    *shape, side, batch = case
    a, b = theirs(*shape).to(placement.device), ours(*shape)
    count_a, count_b = (sum(p.numel() for p in m.parameters()) for m in (a, b))
    assert count_a == count_b, (count_a, count_b)
    placement.place(b)
    image = torch.rand(batch, 3, side, side, device=placement.device) * 2 - 1
    fast = image.contiguous(memory_format=torch.channels_last)
    scale = 2 ** (len(shape[1]) - 1)
    noise = torch.randn(batch, shape[2], side // scale, side // scale, device=placement.device)

    def train_a() -> None:
        if shape[3]:
            out = a(image, return_dict=True)
            loss = F.l1_loss(out.sample, image) + out.commit_loss.mean()
        else:
            posterior = a.encode(image).latent_dist
            loss = F.l1_loss(a.decode(posterior.sample()).sample, image) + 1e-6 * posterior.kl().mean()
        loss.backward()
        a.zero_grad()

    def train_b() -> None:
        with placement.autocast():
            out = b(fast, noise)
            loss = torch.stack([F.l1_loss(out.picture, fast), *out.terms.values()]).sum()
        loss.backward()
        b.zero_grad()

    def encode_a() -> None:
        with torch.no_grad():
            found = a.encode(image)
            _ = found.latents if shape[3] else found.latent_dist.mean

    def encode_b() -> None:
        with torch.inference_mode(), placement.autocast():
            b.encode(fast).mode()

    return {
        "training": (train_a, train_b),
        "encoding": (encode_a, encode_b),
        "pictures": batch,
        "weights": count_a,
    }


def seconds(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def ratio(
    theirs: Callable[[], None], ours: Callable[[], None], device: torch.device, rounds: int
) -> list[float]:
    """Their time over ours, a number each round; the two alternate, after a round that does not count."""
    found = []
    for index in range(rounds + 1):
        a, b = seconds(theirs, device), seconds(ours, device)
        if index:
            found.append(a / b)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    placement = Placement.choose()
    cases = {**CASES, **GPU} if placement.device.type == "cuda" else CASES
    print(
        f"{placement}, {os.cpu_count()} processors, torch {torch.__version__}; "
        "ratio: pictures a second, Carrara / diffusers"
    )
    print(f"{'':28}{'weights':>12}{'training':>22}{'encoding':>22}")
    rows: dict[str, Any] = {}
    for name, case in cases.items():
        torch.manual_seed(0)
        work = passes(case, placement)
        row = {"weights": work["weights"]}
        for what in ("training", "encoding"):
            found = ratio(*work[what], placement.device, options.rounds)
            row[what] = {"median": statistics.median(found), "low": min(found), "high": max(found)}
        rows[name] = row
        cells = [
            f"{row[w]['median']:.2f} ({row[w]['low']:.2f}-{row[w]['high']:.2f})"
            for w in ("training", "encoding")
        ]
        print(f"{name:28}{row['weights']:>12,}{cells[0]:>22}{cells[1]:>22}", flush=True)
    print(
        "limit: convolutions; what is gained comes from bfloat16 in channels-last and from group norm in one pass"
    )
    if options.json:
        about = {"device": str(placement), "machine": platform.machine(), "torch": torch.__version__}
        options.json.write_text(
            json.dumps({**about, "rounds": options.rounds, "ratios": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
