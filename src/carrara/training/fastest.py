"""What is fastest on this machine, by a trial of about a second on the very shapes that will run, remembered for them.

A processor's flags do not tell: some that name bfloat16 compute in it at half the rate of float32, some at twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from carrara.generation.generate import Settings, denoise
from carrara.generation.model import Model
from carrara.parts import alone, processors
from carrara.training import dropout
from carrara.training.gradients import gradients
from carrara.training.parallel import Placement

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.data.loader import Loaded
    from carrara.training.loop import Task
    from carrara.training.train_config import TrainConfig

SECONDS = 1.0  # of the trial, after each way has run once
CLEARLY = (
    1.1  # times as fast threads in every operation have to be as parts at once, which bear a busy neighbour
)


def cache_folder() -> Path:
    """Where this user's machine keeps what was measured: CARRARA_CACHE, or the system's folder for caches."""
    if given := os.environ.get("CARRARA_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "carrara"


def fastest(
    base: Placement, work: Callable[[Placement], object], shapes: object, *, precision: str, divisible: bool
) -> tuple[Placement, str]:
    """How to run ``work``, and a line that says so with its rates, compared with the best of the other kind.

    ``shapes`` stands for all that decides how long it takes; it is measured once for each, on each machine and with
    each version of torch. ``precision`` is "auto", or the one to stay with; only ``divisible`` work is computed in
    parts. ``work`` must change nothing that counts.
    """
    ways = candidates(base, precision, divisible)
    if len(ways) == 1:
        return ways[0], str(ways[0])
    file = cache_folder() / "trials" / f"{_key(base, shapes, ways)}.json"
    seconds = _known(file, len(ways))
    if seconds is None:
        seconds = measured([lambda way=way: work(way) for way in ways], base.device)  # type: ignore[misc]
        _remember(file, seconds)
    divided = any(way.parts > 1 for way in ways)
    best = min(
        range(len(ways)), key=lambda k: seconds[k] * (CLEARLY if divided and ways[k].parts == 1 else 1.0)
    )
    others = [k for k in range(len(ways)) if ways[k].bf16 != ways[best].bf16] or [
        k for k in range(len(ways)) if k != best
    ]
    second = min(others, key=lambda k: seconds[k])
    return ways[
        best
    ], f"{ways[best]}: {seconds[best]:.3g} s, against {seconds[second]:.3g} s in {ways[second]}"


def candidates(base: Placement, precision: str, divisible: bool) -> list[Placement]:
    """The ways worth trying, the plainest first."""
    kinds = [False, True] if precision == "auto" else [precision == "bf16"]
    if base.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        kinds = kinds[:1]
    counts, threads = [1], processors() if base.device.type == "cpu" else 1
    if divisible and threads > 1:
        counts += sorted({threads, max(2, threads // 2)})
    return [replace(base, bf16=bf16, parts=parts) for bf16 in kinds for parts in counts]


def measured(ways: list[Callable[[], object]], device: torch.device) -> list[float]:
    """The median of several runs of each, in seconds; in turns, so that a busy moment meets all of them."""

    def once(way: Callable[[], object]) -> float:
        start = time.perf_counter()
        way()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    first = [
        once(way) for way in ways
    ]  # kernels are prepared; where that is all that there is time for, it counts
    if sum(first) > 8 * SECONDS:
        return first
    rounds: list[list[float]] = []
    until = time.perf_counter() + SECONDS
    while not rounds or (time.perf_counter() < until and len(rounds) < 9):
        rounds.append([once(way) for way in ways])
    return [statistics.median(seconds) for seconds in zip(*rounds, strict=True)]


def fastest_training(
    task: Task, batch: Loaded, base: Placement, config: TrainConfig
) -> tuple[Placement, str]:
    """`fastest` for the forward and backward pass of a batch; weights, buffers and random numbers stay as they are."""
    for module in task.modules.values():
        base.place(module)
    shapes = [
        [(name, tuple(p.shape), p.requires_grad) for name, p in module.state_dict(keep_vars=True).items()]
        for module in task.modules.values()
    ]
    sizes = {name: tuple(getattr(values, "shape", ())) for name, values in batch.columns.items()}
    about = (type(task).__name__, shapes, sizes, len(batch.rows), config.accumulate, config.checkpointing)

    def work(way: Placement) -> None:
        with alone(way.parts > 1):
            gradients(task, batch, way, config)
        for module in task.modules.values():
            module.zero_grad()

    with _untouched(task):
        return fastest(
            base,
            work,
            about,
            precision=config.precision,
            divisible=task.divisible and not dropout.active(task.modules.values()),
        )


def fastest_sampling(model: Model, pictures: int, settings: Settings) -> Model:
    """The model, to be sampled as is fastest for so many pictures at once; what it draws differs by rounding only."""
    base = Placement(model.device, False)
    once = settings.model_copy(update={"steps": 1, "sampler": "ddim"})
    rows: list[dict[str, str]] = [{}] * pictures
    numbers = list(range(pictures))

    def work(way: Placement) -> None:
        for _ in denoise(replace(model, parts=way.parts, bf16=way.bf16), rows, numbers, once):
            pass

    shapes = [tuple(p.shape) for p in (*model.network.parameters(), *model.conditions.parameters())]
    about = ("sampling", shapes, model.latent_of(settings.size(model)), pictures, settings.guidance == 1)
    way, _ = fastest(base, work, about, precision="auto", divisible=True)
    return replace(model, parts=way.parts, bf16=way.bf16)


def fastest_encoding(autoencoder: StoredAutoencoder, base: Placement) -> Placement:
    """In which precision an autoencoder encodes and decodes faster."""
    module: Any = autoencoder.module.to(base.device)
    images = torch.zeros(4, int(autoencoder.config.image_channels), autoencoder.size, autoencoder.size)

    def work(way: Placement) -> None:
        with torch.inference_mode(), way.autocast():
            module.decode(module.encode(images.to(base.device)).mode())

    shapes = [tuple(p.shape) for p in module.parameters()]
    about = ("encoding", autoencoder.config.kind, shapes, autoencoder.size)
    return fastest(base, work, about, precision="auto", divisible=False)[0]


@contextlib.contextmanager
def _untouched(task: Task) -> Iterator[None]:
    buffers = [b for module in task.modules.values() for b in module.buffers()]
    kept = [b.clone() for b in buffers]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
    with torch.no_grad():
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)


def _key(base: Placement, shapes: object, ways: list[Placement]) -> str:
    machine = torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else _processor()
    about = (machine, torch.__version__, processors(), shapes, [str(way) for way in ways])
    return hashlib.sha256(repr(about).encode()).hexdigest()[:24]


def _processor() -> str:
    """The processor's name and what it can do."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        lines = [line for line in info if line.startswith(("model name", "flags", "Features"))]
        return "".join(sorted(set(lines)))
    return platform.processor()


def _known(file: Path, count: int) -> list[float] | None:
    try:
        seconds: Any = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    right = isinstance(seconds, list) and len(seconds) == count
    return seconds if right and all(isinstance(s, float) and s > 0 for s in seconds) else None


def _remember(file: Path, seconds: list[float]) -> None:
    """A cache that cannot be written costs a second each time, no more."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(seconds))
        os.replace(part, file)
