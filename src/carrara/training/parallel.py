"""Where and how a model runs: device, precision, memory format, compiled or computed twice; applied from outside."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from carrara import layers
from carrara.errors import UserError

if TYPE_CHECKING:
    from carrara.training.train_config import TrainConfig


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
