"""The same minutes, class-conditional CIFAR-10 at 32 pixels: Carrara, diffusers, denoising-diffusion-pytorch.

    carrara data import cifar10.parquet data/cifar
    python bench/class_conditional.py data/cifar --minutes 10 --json bench/results/class_conditional_cpu.json \
        --lucidrains-python OTHER/bin/python

Every system trains in a process of its own for the same wall-clock minutes (Carrara's include its autoencoder and the
encoding of the data), then makes the same number of pictures, a class each in turn; sampling is not counted. What is
measured is the kernel distance between EfficientNet-Lite0 features of those and of held-out pictures (times 1000,
lower is better; 0 for pictures of the same distribution).

diffusers: the network, optimizer, schedule and batch of its example train_unconditional.py with its defaults
(UNet2DModel of six levels, AdamW 1e-4, 500 steps of warm-up, batch 16, DDPMScheduler of 1000 linear steps, float32, no
average of the weights), given the class by num_class_embeds. denoising-diffusion-pytorch: its classifier-free-guidance
module with the readme's network (dim 64, mults 1, 2, 4, 8) and its Trainer's defaults (Adam 1e-4, batch 16, average
0.995); in an environment of its own, see class_conditional_lucidrains.py. Both sample in bfloat16 in --their-steps
steps; their own default is 1000, which takes hours on a CPU. The better of two ways counts: of the first DDPM's own
steps and DDIM's, of the second no guidance and its default scale.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from carrara.dataset.dataset import Dataset

HERE = Path(__file__).parent
CLASSES = 10


def arrays(dataset: Dataset, split: str, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [n 3 32 32] and the numbers of their classes [n]."""
    rows = dataset.indices(split)
    rows = np.random.default_rng(0).permutation(rows)[:most]  # a file may be in the order of its classes
    pictures = torch.cat([dataset.pictures(rows[i : i + 1000], 32) for i in range(0, len(rows), 1000)])
    number = {name: k for k, name in enumerate(dataset.labels)}
    return pictures.numpy(), np.array([number[name] for name in dataset.take(rows, ["label"])["label"]])


def carrara(data: Path, minutes: float, samples: int, out: Path, changes: list[str]) -> None:
    """Both stages in the given time; 50 steps of the default sampler, no guidance."""
    from carrara.autoencoders.stored import load_autoencoder
    from carrara.dataset.latents import encode
    from carrara.generation.model import load_model
    from carrara.generation.sample import generate, settings_for
    from carrara.recipes.catalogue import named
    from carrara.training.devices import Placement
    from carrara.training.stages import train_autoencoder, train_diffusion

    start, dataset, folder = time.monotonic(), Dataset.open(data), out.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)  # what a killed one left
    placement = Placement.choose()
    recipe = named("class_ldm", changes)
    stored = None
    if not recipe.pixels:  # type: ignore[union-attr]
        first = named("kl_autoencoder", ["size=32", "train.batch=16", f'train.budget="{0.15 * minutes}m"'])
        for _ in train_autoencoder(first, dataset, folder / "a"):  # type: ignore[arg-type]
            pass
        stored = load_autoencoder(folder / "a" / "model")
        for _ in encode(dataset, stored, placement.device, autocast=placement.autocast):
            pass
        dataset.refresh()
    left = minutes - (time.monotonic() - start) / 60
    recipe = named("class_ldm", [*changes, f'train.budget="{left}m"', "validation.looks=0"])
    seen = [report.seen for report in train_diffusion(recipe, dataset, stored, folder / "d")][-1]  # type: ignore[arg-type]
    minutes = (time.monotonic() - start) / 60  # with checkpoints, and the model written
    model = load_model(folder / "d" / "model").to(placement.device)
    names = model.conditions["label"].classes
    rows = [{"label": names[k % CLASSES]} for k in range(samples)]  # type: ignore[index]
    with placement.autocast():
        pictures = generate(model, rows, settings_for(model, {"steps": 50, "guidance": 1.0}), batch=100)
    weights = sum(p.numel() for p in model.network.parameters())
    np.savez(out, pictures=pictures.numpy(), seen=seen, weights=weights, minutes=minutes)


def diffusers(data: Path, minutes: float, samples: int, out: Path, steps: int) -> None:
    """As the example does it."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures, labels = arrays(Dataset.open(data), "train")
    torch.manual_seed(0)
    start = time.monotonic()
    widths = (128, 128, 256, 256, 512, 512)
    model = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
        num_class_embeds=CLASSES,
    ).to(device)
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    whole = 100 * len(pictures) // 16  # the example's 100 epochs
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=whole)
    order, seen = torch.randperm(len(pictures)), 0
    while time.monotonic() - start < minutes * 60:
        chosen = order[torch.arange(seen, seen + 16) % len(order)].numpy()
        clean = torch.from_numpy(pictures[chosen]).float().to(device) / 127.5 - 1
        flipped = torch.rand(16) < 0.5
        clean[flipped] = clean[flipped].flip(-1)
        noise, times = torch.randn_like(clean), torch.randint(0, 1000, (16,), device=device)
        noisy = noise_scheduler.add_noise(clean, noise, times)
        said = model(noisy, times, class_labels=torch.from_numpy(labels[chosen]).to(device)).sample
        torch.nn.functional.mse_loss(said, noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        seen += 16
    made: dict[str, np.ndarray] = {}
    for name, scheduler in (
        ("pictures_ddpm", noise_scheduler),
        ("pictures_ddim", DDIMScheduler.from_config(noise_scheduler.config)),
    ):
        scheduler.set_timesteps(steps)
        found = []
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            for first in range(0, samples, 100):
                classes = torch.arange(first, min(first + 100, samples), device=device) % CLASSES
                z = torch.randn(len(classes), 3, 32, 32, device=device)
                for step in scheduler.timesteps:
                    said = model(z, step, class_labels=classes).sample.float()
                    z = scheduler.step(said, step, z).prev_sample
                found.append(((z.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
        made[name] = torch.cat(found).numpy()
    np.savez(out, seen=seen, weights=sum(p.numel() for p in model.parameters()), **made)


def lucidrains(python: str, data: Path, minutes: float, samples: int, out: Path, steps: int) -> None:
    """In the environment that has it."""
    given = out.with_name("cifar.npz")
    pictures, labels = arrays(Dataset.open(data), "train")
    np.savez(given, pictures=pictures, labels=labels)
    script = HERE / "class_conditional_lucidrains.py"
    arguments = [str(given), str(minutes), str(samples), str(steps), str(out)]
    subprocess.run([python, str(script), *arguments], check=True)


def distance(pictures: np.ndarray, real: torch.Tensor) -> float:
    """Times 1000, as `kernel_distance` gives it."""
    from carrara.metrics.features import kernel_distance, load_features

    return float(kernel_distance(load_features(None)(torch.from_numpy(pictures)), real))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--their-steps", type=int, default=50)
    parser.add_argument("--real", type=int, default=5000, help="held-out pictures to compare with")
    parser.add_argument(
        "--lucidrains-python", help="python of an environment with denoising-diffusion-pytorch"
    )
    parser.add_argument("--only", choices=["carrara", "diffusers", "lucidrains"])
    parser.add_argument("--set", dest="changes", action="append", default=[], help="changes of class_ldm")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder for the pictures that were made; a system whose are there is not run again",
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.out:  # a process of its own
        if given.only == "carrara":
            carrara(given.data, given.minutes, given.samples, given.out, given.changes)
        else:
            diffusers(given.data, given.minutes, given.samples, given.out, given.their_steps)
        return
    folder = given.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    systems = [given.only] if given.only else ["carrara", "diffusers", "lucidrains"]
    for system in systems:
        out = folder / f"{system}.npz"
        if out.is_file():
            continue
        if system == "lucidrains":
            if given.lucidrains_python:
                lucidrains(
                    given.lucidrains_python, given.data, given.minutes, given.samples, out, given.their_steps
                )
            continue
        command = [sys.executable, __file__, str(given.data), "--only", system, "--out", str(out)]
        command += ["--minutes", str(given.minutes), "--samples", str(given.samples)]
        command += ["--their-steps", str(given.their_steps)]
        command += [f"--set={change}" for change in given.changes]
        subprocess.run(command, check=True)
    from carrara.metrics.features import load_features

    dataset = Dataset.open(given.data)
    real, _ = arrays(dataset, "held_out", given.real)
    features = load_features(None)(torch.from_numpy(real))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    result: dict[str, object] = {"device": device, "minutes": given.minutes, "real": len(real)}
    print(f"{given.minutes:g} minutes each, up to {given.samples} pictures against {len(real)} held-out ones")
    print(f"{'':28} {'kernel distance':>16} {'pictures seen':>14} {'weights':>12}")
    for system in systems:
        if not (folder / f"{system}.npz").is_file():
            continue
        made = np.load(folder / f"{system}.npz")
        values = {
            name: distance(made[name][: given.samples], features)
            for name in made.files
            if name.startswith("pictures")
        }
        best = min(values.values())
        result[system] = {
            "kernel_distance": round(best, 2),
            "each_way": {name: round(value, 2) for name, value in values.items()},
            "samples": min(given.samples, *(len(made[name]) for name in values)),
            "seen": int(made["seen"]),
            "weights": int(made["weights"]),
            "minutes": round(float(made["minutes"]) if "minutes" in made.files else given.minutes, 2),
        }
        print(f"{system:28} {best:16.1f} {int(made['seen']):14} {int(made['weights']):12}")
    print("limited by: how many pictures the two cores, or the GPU, take through each network in that time")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
