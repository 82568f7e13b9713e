"""One training step of stage two against diffusers: the same U-Net in one process, each program as it trains.

    python bench/denoiser_speed.py --json bench/results/denoiser_speed_cpu.json

A step is a forward and a backward pass, clipping, AdamW and the average of the weights. diffusers' module is trained
as its example scripts train it (train_text_to_image.py, train_unconditional.py): autocast to bfloat16, the squared
error in float32, clipping at 1, torch.optim.AdamW, EMAModel, each with the scripts' settings. Carrara's is trained
as Carrara trains: the same autocast, weights of convolutions channels-last, fused AdamW, Ema; with --compile its
blocks are compiled as by ``train.compile``. Noise is drawn by both. Steps of the two alternate; the table shows the
median of the rounds' ratios. Peak memory is that of a process of its own for each: on a GPU what PyTorch allocated,
on a CPU what the process grew by while three steps were taken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from carrara.context import Context
from carrara.denoisers import unet
from carrara.training.devices import Placement, prepare
from carrara.training.ema import Ema
from carrara.training.recipe import TrainConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # diffusers speaks of what is not installed
    from diffusers import DDPMScheduler, UNet2DConditionModel, UNet2DModel
    from diffusers.training_utils import EMAModel


class Case(NamedTuple):
    """A shape of network and of what it is given."""

    channels: int
    multipliers: tuple[int, ...]
    tokens: int | None
    latent: tuple[int, int, int]
    batch: int


CPU = {
    "SD 1, a fifth of its width": Case(64, (1, 2, 4, 4), 768, (4, 64, 64), 2),
    "LDM-4": Case(224, (1, 2, 3, 4), None, (3, 64, 64), 2),
}
GPU = {
    "SD 1": Case(320, (1, 2, 4, 4), 768, (4, 64, 64), 16),
    "SD 1, a fifth of its width": Case(64, (1, 2, 4, 4), 768, (4, 64, 64), 32),
    "LDM-4": Case(224, (1, 2, 3, 4), None, (3, 64, 64), 16),
}
LENGTH = 77  # tokens of a caption
Step = Callable[[], None]


def their_step(case: Case, placement: Placement) -> tuple[Step, int]:
    """A step of diffusers' example script, and the number of weights."""
    widths = tuple(case.channels * m for m in case.multipliers)
    model: Any
    if case.tokens:
        model = UNet2DConditionModel(
            block_out_channels=widths, cross_attention_dim=case.tokens, attention_head_dim=8
        )
        settings: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 1e-2, "eps": 1e-8}
        scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    else:
        model = UNet2DModel(block_out_channels=widths, attention_head_dim=32)
        settings = {"lr": 1e-4, "betas": (0.95, 0.999), "weight_decay": 1e-6, "eps": 1e-8}
        scheduler = DDPMScheduler()
    model.to(placement.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    average = EMAModel(model.parameters(), use_ema_warmup=not case.tokens)
    latent, tokens = given(case, placement)

    def step() -> None:
        noise = torch.randn_like(latent)
        times = torch.randint(0, 1000, (case.batch,), device=placement.device)
        noisy = scheduler.add_noise(latent, noise, times)
        with placement.autocast():
            more = {"encoder_hidden_states": tokens} if case.tokens else {}
            out = model(noisy, times, return_dict=False, **more)[0]
        loss = F.mse_loss(out.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())

    return step, sum(p.numel() for p in model.parameters())


def our_step(case: Case, placement: Placement, compiled: bool) -> tuple[Step, int]:
    """The same step by Carrara's parts, and the number of weights."""
    shape: dict[str, Any] = {"heads": 8, "projections": "convolution"} if case.tokens else {"depth": 0}
    config = unet.Config(
        channels=case.channels,
        multipliers=case.multipliers,
        attention=(1, 2, 4) if case.tokens else (2, 4, 8),
        head_width=32,
        scale_shift=False,
        **shape,
    )
    model = config.build(channels=case.latent[0], tokens=case.tokens).train()
    placement.place(model)
    training = TrainConfig(optimizer="adamw", compile=compiled)
    prepare([model], training, placement)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, betas=(0.9, 0.999), fused=True)
    average, count = Ema(model), 0
    latent, tokens = given(case, placement)
    latent = latent.contiguous(memory_format=torch.channels_last)
    context = Context(tokens=tokens)

    def step() -> None:
        nonlocal count
        noise = torch.randn_like(latent)
        t = torch.rand(case.batch, device=placement.device)
        share = t[:, None, None, None]
        with placement.autocast():
            out = model((1 - share) * latent + share * noise, t, context)
        loss = F.mse_loss(out, noise - latent)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
        optimizer.zero_grad()
        count += 1
        average.update(model, count)

    return step, sum(p.numel() for p in model.parameters())


def given(case: Case, placement: Placement) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Latents and tokens of a batch."""
    latent = torch.randn(case.batch, *case.latent, device=placement.device)
    width = case.tokens
    return latent, torch.randn(case.batch, LENGTH, width, device=placement.device) if width else None


def seconds(step: Step, device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak(program: str, name: str, options: argparse.Namespace) -> int:
    """Bytes that a process of its own needs for the weights and three steps."""
    command = [sys.executable, __file__, "--peak", program, "--case", name]
    command += ["--precision", options.precision, *(["--compile"] if options.compile else [])]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(program: str, case: Case, placement: Placement, compiled: bool) -> int:
    """The same, in this process."""

    def resident() -> int:
        if placement.device.type == "cuda":
            return torch.cuda.max_memory_allocated(placement.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    F.conv2d(torch.ones(1, 3, 8, 8), torch.ones(3, 3, 3, 3))  # what libraries take for themselves
    before = resident()
    step, _ = their_step(case, placement) if program == "diffusers" else our_step(case, placement, compiled)
    for _ in range(3):
        step()
    return resident() - before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", action="append", help="Only this one.")
    parser.add_argument("--compile", action="store_true", help="Compile Carrara's blocks.")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=("diffusers", "carrara"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    placement = Placement.choose(precision=options.precision)
    cases = GPU if placement.device.type == "cuda" else CPU
    chosen = {name: cases[name] for name in options.case or cases}
    if options.peak:
        for case in chosen.values():
            print(measure_peak(options.peak, case, placement, options.compile))
        return
    print(
        f"{placement}, {torch.get_num_threads()} threads of {os.cpu_count()} processors, torch {torch.__version__}; "
        "ratios: pictures a second, Carrara / diffusers; peak memory, Carrara / diffusers"
    )
    print(f"{'':28}{'weights':>13}{'ms, diffusers':>15}{'ms, Carrara':>13}{'speed':>22}{'memory':>8}")
    rows: dict[str, Any] = {}
    for name, case in chosen.items():
        memory = {program: peak(program, name, options) for program in ("diffusers", "carrara")}
        torch.manual_seed(0)
        (theirs, count), (ours, same) = (
            their_step(case, placement),
            our_step(case, placement, options.compile),
        )
        assert count == same, (count, same)
        rounds = []
        for index in range(options.rounds + 2):
            pair = seconds(theirs, placement.device), seconds(ours, placement.device)
            if index >= 2:  # the first ones allocate, and compile
                rounds.append(pair)
        ratios = [a / b for a, b in rounds]
        a, b = (statistics.median(times) * 1000 for times in zip(*rounds, strict=True))
        rows[name] = {
            "weights": count,
            "batch": case.batch,
            "milliseconds": {"diffusers": a, "carrara": b},
            "speed": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
            "peak_bytes": memory,
            "memory": memory["carrara"] / memory["diffusers"],
        }
        speed = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{name:28}{count:>13,}{a:>15.0f}{b:>13.0f}{speed:>22}{rows[name]['memory']:>8.2f}", flush=True)
        del theirs, ours
    if options.json:
        about = {"device": str(placement), "machine": platform.machine(), "torch": torch.__version__}
        about |= {"threads": torch.get_num_threads(), "compiled": options.compile, "rounds": options.rounds}
        options.json.write_text(json.dumps({**about, "ratios": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
