"""What the quickstart reaches: rates, share of the machine's peak, reconstruction, and whether prompts are obeyed.

    python bench/quickstart.py --run runs/quickstart [--out bench/results/quickstart.json]

Run it with nothing else running. It reads a finished quickstart (`carrara quickstart`) and never trains.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from carrara.autoencoders.stored import load_autoencoder
from carrara.config import read_toml
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import derived
from carrara.dataset.latents import latent_key
from carrara.dataset.loader import Reading, load
from carrara.generation.model import Model, load_model
from carrara.generation.sample import Settings, generate
from carrara.metrics.reconstruction import mean_psnr, nearest_picture
from carrara.recipes.catalogue import named
from carrara.recipes.quickstart import LANGUAGES
from carrara.terminal import clock
from carrara.training.autoencoder_task import AutoencoderTask
from carrara.training.batches import LatentColumns
from carrara.training.checkpoint import TrainingState
from carrara.training.condition_columns import reads_of
from carrara.training.devices import Placement
from carrara.training.diffusion_task import DiffusionTask
from carrara.training.fastest import fastest_sampling
from carrara.training.loop import train
from carrara.training.recipe import AutoencoderRecipe, DiffusionRecipe, TrainConfig
from carrara.training.run import trained_on
from carrara.training.validation import HeldOutJudge

PROMPTS = 48


def best_rate(work: Callable[[], Any], flops: float, seconds: float = 1.5) -> float:
    """The highest FLOP/s of several runs; on a GPU a run is many calls, so that launching does not count."""
    repeats = 200 if torch.cuda.is_available() else 1
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = max(best, repeats * flops / (time.perf_counter() - start))
    return best


def peak(placement: Placement) -> float:
    """FLOP/s of the faster of a matrix product and a 3x3 convolution, in the precision that training uses."""
    kind = torch.bfloat16 if placement.bf16 else torch.float32
    device = placement.device
    a, b = (torch.randn(2048, 2048, device=device).to(kind) for _ in range(2))
    conv = torch.nn.Conv2d(256, 256, 3, padding=1).to(device, kind).to(memory_format=torch.channels_last)
    x = torch.randn(64, 256, 16, 16, device=device).to(kind).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        product = best_rate(lambda: a @ b, 2 * 2048**3)
        convolution = best_rate(lambda: conv(x), 2 * 9 * 256 * 256 * 64 * 16 * 16)
    return max(product, convolution)


def training_rate(
    task: Any, state: TrainingState, batches: Any, seconds: float = 12.0
) -> tuple[float, float]:
    """Pictures a second, and the FLOPs of forward and backward pass a picture (what the optimizer adds is not in)."""
    with FlopCounterMode(display=False) as counter, state.placement.autocast():
        batch = next(batches)
        name = next(iter(state.modules))
        torch.stack(list(task.losses(name, batch).values())).sum().backward()
    flops = counter.get_total_flops() / len(batch.rows)
    for optimizer in state.optimizers.values():
        optimizer.zero_grad()
    reports = train(task, batches, state)
    for _ in range(5):
        next(reports)
    start, seen = time.perf_counter(), state.seen
    while time.perf_counter() - start < seconds:
        next(reports)
    return (state.seen - seen) / (time.perf_counter() - start), flops


def obeyed(
    model: Model, dataset: Dataset, guidance: float, languages: Sequence[str], prompts: int = PROMPTS
) -> tuple[float, dict[str, float]]:
    """Of some prompts, all languages mixed: how often the nearest training picture is the prompted one."""
    rows = dataset.indices("train")
    references = dataset.pictures(rows, model.size)
    picked = np.random.default_rng(48).choice(len(rows), prompts, replace=False)
    spoken = [languages[i % len(languages)] for i in range(prompts)]
    asked = [
        dataset.take([rows[p]], [f"caption_{language}"])[f"caption_{language}"][0]
        for p, language in zip(picked, spoken, strict=True)
    ]
    settings = Settings(seed=1, guidance=guidance)
    samples = generate(model, [{"caption": p} for p in asked], settings, numbers=list(range(prompts)))
    right = [a == b for a, b in zip(nearest_picture(samples, references), picked, strict=True)]
    share = {
        lang: float(np.mean([r for r, one in zip(right, spoken, strict=True) if one == lang]))
        for lang in languages
    }
    return float(np.mean(right)), share


def stage_two(run: Path, placement: Placement) -> tuple[DiffusionTask, TrainingState, Any]:
    """A quickstart's stage two, ready to be trained on from its model's weights in memory, for an hour at most."""
    recipe, dataset = named(str(run / "diffusion" / "recipe.toml")), Dataset.open(run / "learned")
    assert isinstance(recipe, DiffusionRecipe)
    config = TrainConfig.model_validate(recipe.train.model_dump() | {"budget": "1h"})
    column = derived(dataset, "latent", latent_key(load_autoencoder(run / "autoencoder" / "model")))
    fresh = load_model(run / "model")
    assert column is not None
    assert fresh.autoencoder.scale is not None
    task = DiffusionTask(
        recipe,
        fresh.network.train(),
        fresh.conditions.train(),
        latents=LatentColumns([column]),
        scale=fresh.autoencoder.scale,
        words={n: {c: c for c in r} for n, r in reads_of(recipe.model, dataset).items()},
        device=placement.device,
    )
    batches = load(dataset, Reading(list(task.columns)), batch=config.batch, seed=0)
    return task, TrainingState(task.modules, config, placement), batches


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    everything, dataset = Dataset.open(given.run / "data"), Dataset.open(given.run / "learned")
    notes = json.loads((given.run / "quickstart.json").read_text())
    model = load_model(given.run / "model").to(Placement.choose().device)
    model = fastest_sampling(model, [{}] * 16, Settings())
    chosen = json.loads((given.run / "diffusion" / "run.json").read_text())["placement"]
    placement = replace(Placement.choose(precision=chosen["precision"]), parts=chosen["parts"])
    highest = peak(placement)
    print(
        f"{notes['words']}\ntrained on {trained_on(given.run / 'diffusion')}; sampled on {model.parts} parts"
    )
    result: dict[str, Any] = {
        "device": str(placement),
        "learned": notes["words"],
        "peak_gflops": round(highest / 1e9),
    }
    print(f"{placement}; highest rate of a matrix product or convolution here: {highest / 1e9:.0f} GFLOP/s")

    # Both stages' rates are of the placement that the run was trained with.
    first = named(str(given.run / "autoencoder" / "recipe.toml"))
    assert isinstance(first, AutoencoderRecipe)
    autoencoder = load_autoencoder(given.run / "autoencoder" / "model")
    rates = {}

    module = first.network.build()
    config = TrainConfig.model_validate(first.train.model_dump() | {"budget": "1h"})
    state = TrainingState({"autoencoder": module}, config, placement)
    batches = load(dataset, Reading(["image"], size=first.size), batch=config.batch, seed=0)
    judge = HeldOutJudge(first, dataset, module, Path(tempfile.mkdtemp()))
    task = AutoencoderTask(first, module, placement.device, judge)
    rates["autoencoder"] = training_rate(task, state, batches)
    batches.close()

    task, state, batches = stage_two(given.run, placement)
    rates["diffusion"] = training_rate(task, state, batches)
    batches.close()

    for stage, (rate, flops) in rates.items():
        share = rate * flops / highest
        result[stage] = {
            "pictures_a_second": round(rate, 1),
            "gflop_a_picture": round(flops / 1e9, 3),
            "share_of_peak": round(share, 3),
        }
        print(f"{stage:12} {rate:7.1f} pictures/s  {flops / 1e9:6.2f} GFLOP each  {share:5.1%} of that peak")
    measured = mean_psnr(autoencoder, everything, placement.device)
    result["psnr"] = round(measured.db, 2)
    print(f"{'stage one':12} {measured}")
    for guidance in (1.0, 2.0, 3.0, 4.0):
        share, by_language = obeyed(model, dataset, guidance, notes["languages"])
        result[f"obeyed_at_guidance_{guidance:g}"] = round(share, 3)
        words = ", ".join(f"{k} {v:.0%}" for k, v in by_language.items())
        print(f"{'obeyed':12} {share:7.1%} of {PROMPTS} seen prompts at guidance {guidance:g} ({words})")
    share, by_language = obeyed(model, everything, Settings().guidance, list(LANGUAGES))
    result["obeyed_of_all"] = round(share, 3)
    words = ", ".join(f"{k} {v:.0%}" for k, v in by_language.items())
    count = len(everything.indices("train"))
    print(f"{'of all':12} {share:7.1%} of {PROMPTS} prompts of all {count} in four languages ({words})")
    steps = json.loads((given.run / "steps.json").read_text())
    result["seconds"] = {k: round(v, 1) for k, v in steps.items()}
    result["budget"] = read_toml(given.run / "diffusion" / "recipe.toml")["train"]["budget"]
    print("time         " + ", ".join(f"{k} {clock(v)}" for k, v in steps.items()))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
