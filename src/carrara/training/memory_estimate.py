"""A training step imagined: its memory at the peak and its FLOPs, without a number being computed.

The step runs on tensors that have shapes but no values (PyTorch's FakeTensorMode, the meta device that knows which
device it stands for), so networks of any size can be looked at. What each operation allocates is counted when it
comes and when it goes, which sees more than what autograd saves: gradients and passing values too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from carrara.autoencoders.codebook import Codebook
from carrara.training.checkpoint import TrainingState
from carrara.training.devices import Placement, blocks
from carrara.training.random_data import Rehearsal
from carrara.training.recipe import TrainConfig

# A CPU's allocator keeps what it was given in pieces that do not fit the next tensor; measured with glibc on U-Nets
# and autoencoders (docs/plan.md). CUDA's caching allocator wastes less; a GPU's libraries want some room as well.
_WASTE = {"cpu": 0.3, "cuda": 0.1}
_ALWAYS = {"cpu": 90_000_000, "cuda": 300_000_000}  # bytes: code and workspaces of the libraries, once used
_FEW, _MANY = 2, 6  # pictures: what a picture takes is the difference
_EIGHT_BIT = 2 * (1 + 4 / 256)  # bytes a weight: two averages in blocks of 256 with a float32 each


@dataclass(frozen=True)
class Imagined:
    """Bytes of what stays (``weights``, ``averages``, ``optimizer``), of the ``gradients``, and of a step.

    A forward and backward pass over n pictures needs ``base + each * n`` where it turns back; at its end, where the
    gradients are all there, ``least`` for the first picture and ``further`` for each one more. ``activations`` are
    saved a picture, ``flops`` are those of a picture forward and backward; ``stepping`` is what the optimizer needs
    besides, while it steps. ``parameters`` are the weights of each part, counted.
    """

    parameters: Mapping[str, int]
    weights: int
    averages: int
    optimizer: int
    gradients: int
    least: int
    further: float
    base: float
    each: float
    activations: float
    stepping: int
    flops: float
    device: str

    def passing(self, pictures: int) -> int:
        """Bytes at the peak of a forward and backward pass over so many pictures at once, on top of what stays."""
        return round(max(self.least + self.further * (pictures - 1), self.base + self.each * pictures))

    def peak(self, pictures: int, accumulate: int) -> int:
        """Bytes at the peak of a step in ``accumulate`` parts of ``pictures``, with what the allocator wastes."""
        held = self.gradients if accumulate > 1 else 0
        most = max(held + self.passing(pictures), self.gradients + self.stepping)
        return round(self.lasting + most * (1 + _WASTE[self.device]) + _ALWAYS[self.device])

    @property
    def floor(self) -> int:
        """Bytes that no smaller batch and no second forward pass goes below."""
        return round(self.lasting + self.gradients * (1 + _WASTE[self.device]) + _ALWAYS[self.device])

    @property
    def lasting(self) -> int:
        """Bytes of what is there all the time."""
        return self.weights + self.averages + self.optimizer


class _Shapes(Placement):
    """A placement for tensors without values, which cannot be moved: they are made where they belong."""

    def place(self, module: nn.Module) -> None:
        """Convolution weights channels-last, as they will be: other layouts allocate otherwise."""
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                held = part.weight.detach().contiguous(memory_format=torch.channels_last)
                part.weight = nn.Parameter(held, requires_grad=part.weight.requires_grad)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors alive (``now``), the most there were at once (``most``), and without gradients.

    ``gradients`` is told from outside; ``apart`` is the most there was of everything else.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = self.apart = self.gradients = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.meet(value)
        return out

    def meet(self, value: Tensor) -> None:
        """Counts a tensor's storage until it goes."""
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.most = max(self.most, self.now)
            self.apart = max(self.apart, self.now - self.gradients)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def imagine(build: Callable[[], Rehearsal], config: TrainConfig, placement: Placement) -> Imagined:
    """A step of what ``build`` makes, for any number of pictures."""
    shapes = _Shapes(placement.device, placement.bf16)
    eight = config.optimizer == "adamw8bit"  # its library knows no tensors without values
    twice = config.checkpointing
    config = config.model_copy(
        update={"compile": False, "checkpointing": False, **({"optimizer": "adamw"} if eight else {})}
    )
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, _Allocations() as tally:
        with torch.device(placement.device):
            rehearsal = build()
        for module in rehearsal.modules.values():
            _enter(module, fake, tally)
        weights = tally.now
        state = TrainingState(rehearsal.modules, config, shapes)
        averages = tally.now - weights
        trained = sum(
            p.nbytes for module in rehearsal.modules.values() for p in module.parameters() if p.requires_grad
        )
        first = _pass(rehearsal, state, tally, 1, twice)
        before, tally.most = tally.now, tally.now  # with the gradients, and with pictures that are still held
        for name, optimizer in state.optimizers.items():
            optimizer.step()
            optimizer.zero_grad()
            state.averages[name].update(rehearsal.modules[name], 1)
        optimizer_bytes = tally.now - (before - trained)
        stepping = max(0, tally.most - before - optimizer_bytes)
        few = _pass(rehearsal, state, tally, _FEW, twice)
        for optimizer in state.optimizers.values():
            optimizer.zero_grad()
        many = _pass(rehearsal, state, tally, _MANY, twice)
    count = _MANY - _FEW
    each = (many.apart - few.apart) / count
    parts = {part.name: part.module for part in rehearsal.parts}
    return Imagined(
        parameters={name: sum(p.numel() for p in module.parameters()) for name, module in parts.items()},
        weights=weights,
        averages=averages,
        optimizer=round(trained / 4 * _EIGHT_BIT) if eight else max(0, optimizer_bytes),
        gradients=trained,
        least=first.most,
        further=max(0.0, (many.most - first.most) / (_MANY - 1)),
        base=few.apart - each * _FEW,
        each=each,
        activations=(many.saved - few.saved) / count,
        stepping=stepping,
        flops=(many.flops - few.flops) / count,
        device=placement.device.type,
    )


@dataclass(frozen=True)
class _Pass:
    """The most bytes at once on top of what stays, the same without gradients; those saved for going back; FLOPs."""

    most: int
    apart: int
    saved: int
    flops: int


def _pass(
    rehearsal: Rehearsal, state: TrainingState, tally: _Allocations, pictures: int, twice: bool
) -> _Pass:
    """One forward and backward pass of every module, as the loop does it.

    Where blocks are computed ``twice`` (gradient checkpointing), what they save goes and comes back one block at a
    time, and there is another forward pass. This is reckoned: checkpoints of tensors without values leave garbage.
    """
    before, saved = tally.now, 0
    tally.most, tally.apart, tally.gradients = before, before, 0
    trained = [p for module in state.modules.values() for p in module.parameters() if p.requires_grad]

    def arrived(parameter: Tensor) -> None:
        tally.gradients += parameter.nbytes

    hooks: list[Any] = [p.register_post_accumulate_grad_hook(arrived) for p in trained]  # type: ignore[no-untyped-call]
    with FlopCounterMode(display=False) as flops, _saved_by_blocks(state.modules, tally) as left:
        for name in state.modules:
            start = tally.now
            with state.placement.autocast():
                terms = rehearsal.terms(name, pictures)
            total = torch.stack(list(terms.values())).sum()
            saved += tally.now - start
            total.backward()  # type: ignore[no-untyped-call]
            del terms, total
    for hook in hooks:
        hook.remove()
    most, apart, count = tally.most - before, tally.apart - before, flops.get_total_flops()
    if not twice or not left:
        return _Pass(most, apart, saved, count)
    gone = sum(left) - max(left)
    least = sum(parameter.nbytes for parameter in trained) + max(left)
    return _Pass(max(most - gone, least), apart - gone, saved - sum(left), count * 4 // 3)


@contextmanager
def _saved_by_blocks(modules: Mapping[str, nn.Module], tally: _Allocations) -> Iterator[list[int]]:
    """A list that gets the bytes which each block's forward pass leaves, besides its output."""
    found: list[int] = []
    began: list[int] = []

    def enter(block: nn.Module, inputs: Any) -> None:
        began.append(tally.now)

    def leave(block: nn.Module, inputs: Any, out: Any) -> None:
        outer = sum(
            value.untyped_storage().nbytes() for value in tree_leaves(out) if isinstance(value, Tensor)
        )
        found.append(max(0, tally.now - began.pop() - outer))

    owned = [block for module in modules.values() for block in blocks(module)]
    hooks = [block.register_forward_pre_hook(enter) for block in owned]
    hooks += [block.register_forward_hook(leave) for block in owned]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _enter(module: nn.Module, fake: FakeTensorMode, tally: _Allocations) -> None:
    """Every weight as a tensor without values, also of parts that were made before; books of codes keep still."""
    for part in module.modules():
        if isinstance(part, Codebook):
            part.eval()  # following the vectors depends on their values
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = _as_fake(parameter, fake)
                tally.meet(part._parameters[name])  # type: ignore[arg-type]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _as_fake(buffer, fake)
                tally.meet(part._buffers[name])  # type: ignore[arg-type]


def _as_fake(value: Any, fake: FakeTensorMode) -> Any:
    from torch._subclasses.fake_tensor import FakeTensor

    if isinstance(value, FakeTensor):
        return value
    made = fake.from_tensor(value.detach())
    return nn.Parameter(made, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else made
