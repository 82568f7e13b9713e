"""What is fastest on this machine, by a trial of about a second on the very shapes that will run, remembered for them.

A processor's flags do not tell: some that name bfloat16 compute in it at half the rate of float32, some at twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from carrara.errors import UserError
from carrara.files import write_atomically
from carrara.generation.model import Model
from carrara.generation.sample import Settings, denoise
from carrara.threads import alone, at_once, processors
from carrara.training import dropout
from carrara.training.devices import Placement, memory
from carrara.training.gradients import gradients
from carrara.training.optim import orthogonalise, split_parameters

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.loader import Loaded
    from carrara.training.recipe import TrainConfig
    from carrara.training.task import Task

Work = Callable[[Placement], Callable[[], object]]

SECONDS = 0.7  # of each of the trial's two rounds, after each way has run once
LONGEST = 15.0  # seconds after which no further way is tried
ROOM = 1 / 8  # of the free memory, for the gradients that parts at once hold besides the first
CLEARLY = (
    1.1  # times as fast as parts at once, which bear a busy neighbour, threads inside operations have to be
)
SLIGHTLY = 1.03  # times as fast another memory format or kernel has to be; a smaller difference is noise


def cache_folder() -> Path:
    """Where this user's machine keeps what was measured: CARRARA_CACHE, or the system's folder for caches."""
    if given := os.environ.get("CARRARA_CACHE"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "carrara"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"carrara-{os.getuid()}"


def fastest(
    base: Placement,
    work: Work,
    shapes: object,
    *,
    precision: str,
    divisible: bool,
    each: int = 0,
) -> tuple[Placement, str]:
    """How to run ``work``, and a line that says so with its rates, compared with the best of the other kind.

    ``shapes`` stands for all that decides how long it takes; it is measured once for each, on each machine and with
    each version of torch. ``precision`` is "auto", or the one to stay with; only ``divisible`` work is computed in
    parts, which take ``each`` bytes more. ``work(way)`` lays all out for a way and returns what is timed, which must
    change nothing that counts; afterwards the caller lays out for the way that is chosen.
    """
    ways = candidates(base, precision, divisible, each)
    seconds = _timed(base, work, shapes, ways)
    divided = any(way.parts > 1 for way in ways)
    way = min(ways, key=lambda way: seconds[way] * (CLEARLY if divided and way.parts == 1 else 1.0))
    seconds |= (then := _timed(base, work, shapes, [way, *variants(way)]))
    best = min(then, key=lambda o: then[o] * SLIGHTLY ** ((not o.channels_last) + (not o.own_kernels)))
    if len(seconds) == 1:
        return best, str(best)
    others = [other for other in ways if other.bf16 != best.bf16] or [o for o in seconds if o != best]
    second = min(others, key=seconds.__getitem__)
    return best, f"{best} ({seconds[best]:.3g} s in a trial; {second}: {seconds[second]:.3g} s)"


def _timed(base: Placement, work: Work, shapes: object, ways: list[Placement]) -> dict[Placement, float]:
    """Seconds of each way, remembered or measured now; one that is alone is not tried."""
    if len(ways) == 1:
        return {ways[0]: math.inf}
    file = cache_folder() / "trials" / f"{_key(base, shapes, ways)}.json"
    seconds = _known(file, len(ways))
    if seconds is None:
        seconds = measured([partial(work, way) for way in ways], base.device)
        if all(math.isfinite(second) for second in seconds):
            _remember(file, seconds)
    return dict(zip(ways, seconds, strict=True))


def candidates(base: Placement, precision: str, divisible: bool, each: int = 0) -> list[Placement]:
    """The ways worth trying, the plainest first; none whose parts would take too much memory, ``each`` so much."""
    kinds = [False, True] if precision == "auto" else [precision == "bf16"]
    if base.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        kinds = kinds[:1]
    counts, threads = [1], processors() if base.device.type == "cpu" else 1
    if divisible and threads > 1:
        room = ROOM * memory(base.device).free
        counts += sorted(n for n in {threads, max(2, threads // 2)} if (n - 1) * each <= room)
    return [replace(base, bf16=bf16, parts=parts) for bf16 in kinds for parts in counts]


def variants(way: Placement) -> list[Placement]:
    """What else is worth trying of a way: the other memory format, and PyTorch's kernels instead of our own."""
    kernels = (True, False) if way.bf16 else (True,)
    pairs = [(last, own) for last in (True, False) for own in kernels]
    return [replace(way, channels_last=last, own_kernels=own) for last, own in pairs[1:]]


def measured(ways: list[Callable[[], Callable[[], object]]], device: torch.device) -> list[float]:
    """The median of several runs of each, in seconds; in turns, so that a busy moment meets all of them.

    Infinite for what did not fit into memory, and for what was not tried because the others took so long.
    """

    def once(way: Callable[[], Callable[[], object]]) -> float:
        try:
            run = way()
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except torch.OutOfMemoryError:
            return math.inf
        return time.perf_counter() - start

    began, first = time.perf_counter(), list[float]()
    for way in ways:  # kernels are prepared; where that is all that there is time for, it counts
        first.append(once(way) if time.perf_counter() - began < LONGEST else math.inf)
    if time.perf_counter() - began > 8 * SECONDS or math.inf in first:
        return first
    rounds: list[list[float]] = []
    until = time.perf_counter() + SECONDS
    while not rounds or (time.perf_counter() < until and len(rounds) < 9):
        rounds.append([once(way) for way in ways])
    return [statistics.median(seconds) for seconds in zip(*rounds, strict=True)]


def fastest_training(
    task: Task, batch: Loaded, base: Placement, config: TrainConfig
) -> tuple[Placement, str]:
    """`fastest` for the gradient of a batch and Muon's products; weights and random numbers stay as they are."""
    shapes = [
        [(name, tuple(p.shape), p.requires_grad) for name, p in module.state_dict(keep_vars=True).items()]
        for module in task.modules.values()
    ]
    sizes = {name: tuple(getattr(values, "shape", ())) for name, values in batch.columns.items()}
    about = (type(task).__name__, shapes, sizes, len(batch.rows), config.accumulate, config.checkpointing)

    matrices: Counter[tuple[int, int]] = Counter()
    if config.optimizer == "muon":
        hidden = [
            p for module in task.modules.values() for p in split_parameters(module)[0] if p.requires_grad
        ]
        matrices.update((len(p), p.numel() // len(p)) for p in hidden)

    def work(way: Placement) -> Callable[[], None]:
        products = torch.bfloat16 if way.bf16 else torch.float32
        for module in task.modules.values():
            way.place(module)

        def run() -> None:
            with alone(way.parts > 1):
                gradients(task, batch, way, config)
                stacks = [torch.ones(count, *sides, device=base.device) for sides, count in matrices.items()]
                at_once(
                    [partial(orthogonalise, stack, products=products) for stack in stacks],
                    min(way.parts, processors()),
                )
            for module in task.modules.values():
                module.zero_grad()

        return run

    with _untouched(task):
        return fastest(
            base,
            work,
            about,
            precision=config.precision,
            divisible=task.divisible and not dropout.active(task.modules.values()),
            each=sum(p.nbytes for m in task.modules.values() for p in m.parameters() if p.requires_grad),
        )


def fastest_sampling(
    model: Model, rows: Sequence[Mapping[str, Any]], settings: Settings, precision: str = "auto"
) -> Model:
    """The model, to be sampled as is fastest for these requests at once; what it draws differs by rounding only.

    With "auto" the precision is that of a fixed number of pictures, so that a picture is the same among any others.
    """
    base = Placement(model.device, False)
    fixed = 1 if base.device.type == "cpu" else 16  # where fewer leave it idle
    if precision == "auto" and len(rows) != fixed:
        precision = "bf16" if fastest_sampling(model, [rows[0]] * fixed, settings).bf16 else "fp32"
    sides = {"height": settings.height, "width": settings.width}
    once = Settings(steps=1, sampler="ddim", grid="uniform", guidance=settings.guidance, **sides)
    numbers = list(range(len(rows)))

    def work(way: Placement) -> Callable[[], object]:
        way.place(model.network)
        return lambda: list(denoise(replace(model, parts=way.parts, bf16=way.bf16), rows, numbers, once))

    shapes = [tuple(p.shape) for p in (*model.network.parameters(), *model.conditions.parameters())]
    about = ("sampling", shapes, model.latent_of(settings.size(model)), len(rows), settings.guidance == 1)
    way, _ = fastest(base, work, about, precision=precision, divisible=True)
    way.place(model.network)
    return replace(model, parts=way.parts, bf16=way.bf16)


def fastest_encoding(autoencoder: StoredAutoencoder, base: Placement, precision: str = "auto") -> Placement:
    """How an autoencoder encodes and decodes faster: precision, memory format (it lies so afterwards) and kernels."""
    module: Any = autoencoder.module
    images = torch.zeros(4, int(autoencoder.config.image_channels), autoencoder.size, autoencoder.size)

    def work(way: Placement) -> Callable[[], object]:
        way.place(module)

        def run() -> None:
            with torch.inference_mode(), way.autocast():
                module.decode(module.encode(images.to(base.device)).mode())

        return run

    shapes = [tuple(p.shape) for p in module.parameters()]
    about = ("encoding", autoencoder.config.kind, shapes, autoencoder.size)
    way, _ = fastest(base, work, about, precision=precision, divisible=False)
    way.place(module)
    return way


@contextlib.contextmanager
def _untouched(task: Task) -> Iterator[None]:
    """What a forward pass may change stays: random numbers, and all that layers with buffers (codebooks) have."""
    layers = [part for module in task.modules.values() for part in module.modules()]
    own = [part for part in layers if any(True for _ in part.buffers(recurse=False))]
    tensors = [t for part in own for t in (*part.parameters(recurse=False), *part.buffers(recurse=False))]
    kept = [t.detach().clone() for t in tensors]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)


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
    with contextlib.suppress(OSError, UserError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(seconds))
