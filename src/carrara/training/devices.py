"""Where and how a model runs: device, precision, memory format, compiled or computed twice; applied from outside.

What this machine has left: memory for training, disk where files go.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from carrara import layers
from carrara.errors import UserError

if TYPE_CHECKING:
    from carrara.training.recipe import TrainConfig


@dataclass(frozen=True)
class Placement:
    """A device, whether it computes in bfloat16 there (weights stay float32), and in how many parts at once.

    ``channels_last`` is how convolution weights lie, and with them all that they compute; without ``own_kernels``
    PyTorch's are used where Carrara has its own.
    """

    device: torch.device
    bf16: bool
    parts: int = 1
    channels_last: bool = True
    own_kernels: bool = True

    @staticmethod
    def choose(device: str = "auto", precision: str = "auto") -> Placement:
        """The GPU where there is one; with "auto" bfloat16 on a GPU that has it, else float32, until `fastest` says."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        check_device(device)
        able = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        return Placement(torch.device(device), precision == "bf16" or (precision == "auto" and able))

    def place(self, module: nn.Module) -> None:
        """Moves the module there, lays out its convolution weights, and says which kernels the process uses."""
        layers.use_own_kernels(self.own_kernels)
        module.to(self.device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                part.to(memory_format=layout)  # type: ignore[call-overload]

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context for a training step's forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        parts = f", {self.parts} parts of a batch at once" if self.parts > 1 else ""
        layout = "" if self.channels_last else ", channels first"
        kernels = "" if self.own_kernels else ", PyTorch's kernels"
        return f"{name}, {'bfloat16' if self.bf16 else 'float32'}{parts}{layout}{kernels}"


def check_device(device: str) -> None:
    """UserError where torch knows no such device, or this machine has none."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    there = ["cpu", *(f"{found.type}:{n}" for n in range(torch.accelerator.device_count()) if found)]
    if device not in (*there, *(name.partition(":")[0] for name in there)):
        raise UserError(f"this machine has no device {device!r}; it has {', '.join(there)}")


# --- blocks: what is compiled, and computed twice ---


def prepare(modules: Iterable[nn.Module], config: TrainConfig, placement: Placement) -> None:
    """Makes the blocks of these modules compiled and checkpointed, as the configuration says; weights keep their names.

    UserError where nothing can be compiled on this machine.
    """
    if not config.checkpointing and not config.compile:
        return
    if config.compile:
        _check_compiler(placement.device)
        # A U-Net's blocks share their code but not their shapes: every shape is a graph of its own.
        torch._dynamo.config.recompile_limit = 512
        torch._dynamo.config.accumulated_recompile_limit = 4096
    compiled: dict[type[nn.Module], Callable[..., Any]] = {}
    for module in modules:
        if config.compile and not _owners(module):
            # Stage one asks for gradients of single terms before the backward pass proper.
            torch._functorch.config.donated_buffer = False
        for block in blocks(module):
            forward: Callable[..., Any] = type(block).forward
            if config.compile:
                forward = compiled.setdefault(type(block), torch.compile(forward, dynamic=False))
            if config.checkpointing:
                forward = _twice(forward)
            block.forward = MethodType(
                forward, block
            )  # bound, so that a copy of the block runs the copy's weights


def blocks(module: nn.Module) -> list[nn.Module]:
    """The units of a module: what its networks name in ``blocks()``.

    Where none does (autoencoders), the composed members of its sequences: residual and attention blocks, but not
    single layers, nor a codebook, which must see a batch only once.
    """
    owners: list[Any] = _owners(module)
    return [block for owner in owners for block in owner.blocks()] if owners else list(_members(module))


def _owners(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if callable(getattr(type(part), "blocks", None))]


def _members(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(module, nn.Sequential) and any(True for _ in child.children()):
            yield child
        else:
            yield from _members(child)


def _twice(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass that keeps only what enters it and runs again in the backward pass (Chen et al. 2016).

    The state of the random generators is kept too, so that layers drop the same again.
    """

    def run(block: nn.Module, *inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(block, *inputs, **named)
        return checkpoint(forward, block, *inputs, use_reentrant=False, **named)

    return run


def _check_compiler(device: torch.device) -> None:
    """Compiles a trifle; UserError where that fails, as without a C++ compiler (CPU) or Triton (CUDA)."""
    never_seen = float(time.time_ns() % 1_000_003)  # so that no cache answers in the compiler's place

    def trifle(x: Tensor) -> Tensor:
        return (x + never_seen).sin()

    try:
        torch.compile(trifle)(torch.ones(3, device=device))
    except Exception as error:
        needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler (g++ or clang++)"
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise UserError(
            f"train.compile does not work on this machine ({reason}): it needs {needed}; install it, "
            "or leave train.compile at false"
        ) from None


_LOOK, _NOTICED = 3.0, 0.15  # seconds between looks; share of the time spent waiting that is worth a word


@dataclass(frozen=True)
class Memory:
    """Bytes that are free, of how many, and of what kind: "RAM" or a GPU's."""

    free: int
    total: int
    kind: str


def memory(device: torch.device) -> Memory:
    """The memory that training on a device would use."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(free, total, "GPU memory")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _meminfo("MemAvailable") or total
    limit, used = _container()
    if limit is not None:
        total, free = min(total, limit), min(free, limit - used)
    return Memory(free, total, "RAM")


def disk_free(path: Path) -> int:
    """Bytes free where ``path`` is, or will be."""
    place = path.resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def resident(word: str = "VmRSS") -> int | None:
    """Bytes of this process in RAM now, or at most so far with "VmHWM"; None where the system does not tell."""
    return _field(Path("/proc/self/status"), word)


def core_time() -> tuple[float, float] | None:
    """Seconds that this process's threads ran, and that they were ready but had no core.

    None where the system does not tell.
    """
    ran, waited = 0, 0
    try:
        for thread in Path("/proc/self/task").iterdir():
            numbers = (thread / "schedstat").read_text().split()
            ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
    except (OSError, ValueError, IndexError):
        return None
    return (ran / 1e9, waited / 1e9) if ran else None


def busy_time() -> float:
    """Seconds that all cores together were busy, of the whole machine; 0 where the system does not tell."""
    try:
        user, nice, system, _, _, *rest = map(
            int, Path("/proc/stat").read_text().splitlines()[0].split()[1:8]
        )
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


class Sharing:
    """Whether other programs want the cores that this process computes on, looked at every few seconds."""

    def __init__(self) -> None:
        self._before, self._at, self._words = core_time(), time.monotonic(), ""
        self._busy = busy_time()

    def words(self) -> str:
        """Something for a line of progress, or ""."""
        if time.monotonic() - self._at > _LOOK and (now := core_time()) and self._before:
            ran, waited = (max(0.0, new - old) for new, old in zip(now, self._before, strict=True))
            share, others = waited / max(1e-9, ran + waited), busy_time() - self._busy - ran
            shared = share > _NOTICED and others > _NOTICED * (time.monotonic() - self._at)
            self._words = f" · shared machine: waits {share:.0%} of the time" if shared else ""
            self._before, self._at, self._busy = now, time.monotonic(), busy_time()
        return self._words


def _meminfo(word: str) -> int | None:
    return _field(Path("/proc/meminfo"), word)


def _field(file: Path, word: str) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(word + ":")), None)
    return int(found.split()[1]) * 1024 if found else None


def _container() -> tuple[int | None, int]:
    """The limit of a container and what it uses of it, without files that could be dropped; None without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        held = (folder / "memory.stat").read_text().splitlines()
        files = next((int(line.split()[1]) for line in held if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError):
        return None, 0
    return limit, max(0, used - files)
