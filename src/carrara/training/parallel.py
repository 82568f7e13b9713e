"""Where and how precisely a model runs: device, precision and memory format, applied from outside of it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Placement:
    """A device, and whether training computes in bfloat16 there (weights stay float32)."""

    device: torch.device
    bf16: bool

    @staticmethod
    def choose(device: str = "auto", precision: str = "auto") -> Placement:
        """The GPU where there is one; bfloat16 where the processor multiplies in it natively."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = torch.device(device)
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if chosen.type == "cuda"
            else _cpu_has_bf16()
        )
        return Placement(chosen, native if precision == "auto" else precision == "bf16")

    def place(self, module: nn.Module) -> None:
        """Moves the module there, convolution weights channels-last."""
        module.to(self.device)
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context for a training step's forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{name}, {'bfloat16' if self.bf16 else 'float32'}"


def _cpu_has_bf16() -> bool:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        return "bf16" in info.read()  # avx512_bf16, amx_bf16, or ARM's bf16
    return False
