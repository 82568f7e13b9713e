"""Checkpoints: all state as safetensors and JSON, in a folder that appears whole or not at all.

Everything that changes while training: what a checkpoint holds, and how it is taken up again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, FiniteFloat, NonNegativeInt, ValidationError
from torch import Tensor, nn

from carrara.config import plain
from carrara.errors import UserError, one_line
from carrara.files import json_object
from carrara.model_folder import check_hash, write_folder, write_weights
from carrara.tensors import misfit, under
from carrara.threads import processors
from carrara.training.devices import Placement, prepare
from carrara.training.ema import Ema
from carrara.training.lr_and_budget import RESERVED, Budget
from carrara.training.optim import make_optimizer
from carrara.training.recipe import LOG_EVERY, TrainConfig, written

KEEP = 2
STATE, NUMBERS = "state.safetensors", "state.json"
BEST = "best"  # folder beside the newest ones, of the one that did best on held-out pictures


class Damaged(UserError):
    """A checkpoint whose files cannot be read; an older one may be whole."""


def save(
    folder: Path, seen: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], *, keep: int = KEEP
) -> Path:
    """Writes ``folder/<seen>``, then removes all but the newest ``keep``.

    UserError on a full disk; those that were there stay.
    """
    path = _write(folder, seen, tensors, numbers)
    for old in all_of(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def save_only(folder: Path, seen: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Path:
    """Writes ``folder/<seen>``, then removes every other: there is never a moment without one."""
    path = _write(folder, seen, tensors, numbers)
    for other in all_of(folder):
        if other != path:
            shutil.rmtree(other, ignore_errors=True)
    return path


def _write(folder: Path, seen: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Path:
    path = place(folder, seen)
    if path.is_dir():  # the same state already; writing it again would only open a moment without it
        return path

    def fill(part: Path) -> None:
        write_weights(part / STATE, tensors)
        (part / NUMBERS).write_text(json.dumps({"seen": seen, **numbers}))

    write_folder(path, fill)
    for half in (*folder.glob("*.part"), *folder.glob("*.old")):  # of a run that was killed while it wrote
        shutil.rmtree(half, ignore_errors=True)
    return path


def place(folder: Path, seen: int) -> Path:
    """Where the checkpoint after so many pictures lies."""
    return folder / f"{seen:012d}"


def newest(folder: Path) -> Path | None:
    """The latest whole checkpoint, None where there is none."""
    found = all_of(folder)
    return found[-1] if found else None


def all_of(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, the oldest first."""
    return sorted(p for p in folder.glob("*") if p.name.isdecimal()) if folder.is_dir() else []


class Saved(NamedTuple):
    """What a checkpoint holds."""

    path: Path
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


def newest_readable(folder: Path, *, only: tuple[str, ...] = ("",)) -> Saved | None:
    """The newest checkpoint that can be read, and of it as `load`; None where there is none.

    It looks three times, as a training that goes on may remove one while it is being read.
    """
    for path in (path for _ in range(3) for path in reversed(all_of(folder))):
        with suppress(Damaged):
            return Saved(path, *load(path, only=only))
    return None


class _Numbers(BaseModel, extra="allow"):
    """What a checkpoint has besides tensors; ``task`` are the task's own numbers."""

    seen: NonNegativeInt = 0
    step: NonNegativeInt = 0
    spent: FiniteFloat = 0.0
    task: dict[str, float] = {}
    best: float | None = None
    measured: dict[str, float] = {}


def numbers(path: Path) -> dict[str, Any]:
    """All of a checkpoint but its tensors; Damaged where they cannot be read, or are not those that were written."""
    try:
        check_hash(path / NUMBERS)
        found = json_object((path / NUMBERS).read_bytes())
        return _Numbers.model_validate(found).model_dump(exclude_unset=True)
    except ValidationError as error:
        fault = error.errors()[0]
        where = " ".join(map(str, (NUMBERS, *fault["loc"])))
        raise Damaged(f"checkpoint {path} is damaged: {where}: {plain(fault)}") from None
    except (OSError, UserError) as error:
        raise Damaged(f"checkpoint {path} is damaged: {error}") from None


def load(path: Path, *, only: tuple[str, ...] = ("",)) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (whose names begin with one of ``only``) and numbers of a checkpoint; Damaged where unreadable."""
    from safetensors import SafetensorError, safe_open

    about = numbers(path)
    try:
        check_hash(path / STATE)
        with safe_open(str(path / STATE), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(only)}, about  # noqa: SIM118
    except (OSError, UserError, SafetensorError) as error:
        raise Damaged(f"checkpoint {path} is damaged: {error}") from None


@dataclass
class TrainingState:
    """Modules, their optimizers and averages, and progress.

    ``own`` says how a module is trained that is not trained as ``config`` says (its optimizer and learning rate);
    ``numbers`` are the task's. ``averages`` are those of length ``config.ema``, by module; ``further`` those of
    the other lengths, by length (see `written`) and module. ``spent`` are the seconds in which the training ran,
    with looks at held-out pictures and saving. ``best`` is the lowest held-out measure so far,
    ``measured`` what the first step was found to need.
    """

    modules: Mapping[str, nn.Module]
    config: TrainConfig
    placement: Placement
    seen: int = 0
    step: int = 0
    spent: float = 0.0
    own: Mapping[str, TrainConfig] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    averages: dict[str, Ema] = field(default_factory=dict)
    further: dict[str, dict[str, Ema]] = field(default_factory=dict)
    best: float | None = None
    measured: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, module in self.modules.items():
            self.placement.place(module)
            self.optimizers[name] = make_optimizer(
                module,
                self.own.get(name, self.config),
                fast_bf16=self.placement.bf16,
                threads=min(self.placement.parts, processors()),
            )
            self.averages[name] = Ema(module, self.config.ema)
        for length in (*self.config.ema_lengths, *self.config.posthoc):
            if written(length) != written(self.config.ema) and written(length) not in self.further:
                self.further[written(length)] = {n: Ema(m, length) for n, m in self.modules.items()}
        prepare(self.modules.values(), self.config, self.placement)

    @property
    def fraction(self) -> float:
        """Share of the budget used, from 0 to 1."""
        return self.fraction_at(spent=self.spent, step=self.step)

    def fraction_at(self, *, spent: float, step: int) -> float:
        """Share of the budget that was used after so many seconds and steps."""
        reserved = self.numbers.get(RESERVED, 0.0)
        return Budget.parse(self.config.budget).fraction(spent=spent, step=step, reserved=reserved)

    def unlogged(self, at: float) -> bool:
        """Whether what was measured before step ``at + 1`` is yet to be logged, or training is over."""
        return self.step + 1 <= -(-int(at + 1) // LOG_EVERY) * LOG_EVERY or self.fraction >= 1

    def averages_of(self, length: float) -> Mapping[str, Ema]:
        """The averages of one of the lengths that are kept, by module; KeyError for another."""
        if written(length) == written(self.config.ema):
            return self.averages
        return self.further[written(length)]

    def average(self) -> None:
        """Takes the weights after step number ``step`` into every average."""
        for averages in (self.averages, *self.further.values()):
            for name, module in self.modules.items():
                averages[name].update(module, self.step)

    def save(self, folder: Path, *, only: bool = False) -> Path:
        """Writes a checkpoint under ``folder``; as its only one with ``only``, else beside the newest others."""
        tensors: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            tensors |= {f"module.{name}.{k}": v for k, v in module.state_dict().items()}
            tensors |= {f"optimizer.{name}.{k}": v for k, v in _states(self.optimizers[name]).items()}
        for prefix, ema in self._averages():
            tensors |= {f"{prefix}{key}": value for key, value in ema.average.items()}
        numbers: dict[str, Any] = {"step": self.step, "spent": self.spent, "task": self.numbers}
        numbers |= {"best": self.best, "measured": self.measured}
        if only:
            return save_only(folder, self.seen, tensors, numbers)
        return save(folder, self.seen, tensors, numbers, keep=self.config.keep)

    def restore(self, path: Path) -> None:
        """Takes up a checkpoint. Damaged where its files are, else UserError where it does not fit these modules."""
        tensors, numbers = load(path)
        if lacking := {"seen", "step", "spent", "task"} - numbers.keys():
            raise Damaged(f"checkpoint {path} is damaged: its numbers lack {min(lacking)!r}")
        try:
            self._take(tensors)
        except (RuntimeError, KeyError, ValueError) as error:
            raise UserError(f"checkpoint {path} does not fit this recipe: {one_line(error)}") from None
        self.seen, self.step, self.spent = numbers["seen"], numbers["step"], numbers["spent"]
        self.best, self.measured = numbers.get("best"), numbers.get("measured", {})
        self.numbers.clear()
        self.numbers.update(numbers["task"])

    def roll_back(self, path: Path) -> None:
        """Weights, averages and optimizers as they were in a checkpoint; progress and the task's numbers stay."""
        self._take(load(path)[0])

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(under(f"module.{name}.", tensors))
            states: dict[int, dict[str, Any]] = {}
            for key, value in under(f"optimizer.{name}.", tensors).items():
                index, _, inner = key.partition(".")
                plain = value.ndim == 0 and not value.is_floating_point()
                states.setdefault(int(index), {})[inner] = value.item() if plain else value
            optimizer = self.optimizers[name]
            _check_states(optimizer, states)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
            # Fused kernels go by memory, not by index: what is loaded takes its parameter's memory format.
            for parameter, inner_state in optimizer.state.items():
                for key, value in inner_state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        inner_state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        for prefix, ema in self._averages():
            given = under(prefix, tensors)
            if fault := misfit(given, ema.average):  # copy_ would spread out a smaller one
                raise ValueError(f"{prefix}{fault}")
            for key, value in ema.average.items():
                value.copy_(given[key])

    def _averages(self) -> Iterator[tuple[str, Ema]]:
        """Each average with what its tensors' names begin with in a checkpoint."""
        for name, ema in self.averages.items():
            yield f"average.{name}.", ema
        for length, averages in self.further.items():
            for name, ema in averages.items():
                yield f"average_{length}.{name}.", ema


def _states(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state by "number of the parameter.name", as every optimizer takes it up again.

    Some count their steps in plain numbers, some share a table among parameters: here each is a tensor of its own.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found: dict[str, Tensor] = {}
    met: set[int] = set()
    for index, parameter in enumerate(parameters):
        for name, value in optimizer.state.get(parameter, {}).items():
            tensor = torch.as_tensor(value)
            place = tensor.untyped_storage().data_ptr()
            found[f"{index}.{name}"] = tensor.clone() if place in met else tensor
            met.add(place)
    return found


def _check_states(optimizer: torch.optim.Optimizer, states: Mapping[int, Mapping[str, Any]]) -> None:
    """ValueError where a state is of no parameter, or lacks what another of the same group has."""
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if states.keys() - set(range(sum(sizes))):
        raise ValueError("it has an optimizer's state of a parameter that there is not")
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        names = sorted((set(states[k]) for k in range(end - size, end) if k in states), key=len)
        for fewer, more in pairwise(
            names
        ):  # a small tensor may have less than a large one, not something else
            if not fewer <= more:
                raise ValueError(f"an optimizer's state has {sorted(fewer)} where another has {sorted(more)}")
