"""One loop for every objective: it asks a task for its losses and yields a report after each step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from carrara.config import Config
from carrara.errors import UserError
from carrara.training import checkpoint
from carrara.training.budget import Budget
from carrara.training.ema import Ema
from carrara.training.optim import Muon
from carrara.training.parallel import Placement

if TYPE_CHECKING:
    from carrara.data.loader import Loaded


Share = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Config):
    """How to train; the same fields for every recipe."""

    budget: str = Field("10m", description="How long: 90s, 10m, 2h, or 4000steps (repeats bit for bit).")
    batch: int = Field(32, ge=1, le=65536, description="Pictures a step.")
    optimizer: Literal["muon", "adamw"] = Field("muon", description="Muon for matrices, or AdamW throughout.")
    lr: float = Field(3e-3, gt=0, description="Learning rate at its highest.")
    betas: tuple[Share, Share] = Field((0.9, 0.99), description="AdamW's averages.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    warmup: int = Field(100, ge=0, description="Steps until the learning rate is at its highest.")
    cooldown: float = Field(0.4, ge=0, le=1, description="Share of the budget in which it falls to zero.")
    ema: float = Field(
        0.05, gt=0, lt=0.25, description="Length of the weights' average, as a share of training."
    )
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="Arithmetic of the forward pass.")
    seed: int = Field(
        0, ge=0, lt=2**63, description="Order, noise, times and initial weights follow from it."
    )
    save_every: float = Field(30.0, gt=0, description="Seconds between checkpoints.")

    @field_validator("budget")
    @classmethod
    def _readable(cls, value: str) -> str:
        Budget.parse(value)
        return value


class Task(Protocol):
    """An objective: modules by name, and for each of them its named loss terms (already weighted)."""

    modules: Mapping[str, nn.Module]

    def losses(self, update: str, batch: Loaded) -> Mapping[str, Tensor]:
        """The terms whose sum the module ``update`` descends, each a scalar; none where it is not its turn."""
        ...

    def between(self, state: TrainingState) -> str:
        """Before each step, outside of the time that counts: may look at held-out pictures and change the state.

        A function of the state alone, so that a resumed run does the same. Returns a note for the user, or "".
        """
        ...

    def measures(self) -> Mapping[str, float]:
        """Numbers about the last step for the log, besides its losses."""
        ...


@dataclass(frozen=True)
class Report:
    """One step: pictures seen after it, the terms of each loss, the share of the budget used.

    ``measures`` are further numbers of the task for the log, ``note`` is something that the user should read;
    a report without losses brings only that.
    """

    seen: int
    step: int
    losses: Mapping[str, float]
    gradient: float
    lr: float
    spent: float
    fraction: float
    measures: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass
class TrainingState:
    """Everything that changes while training: what a checkpoint holds.

    ``own`` says how a module is trained that is not trained as ``config`` says (its optimizer and learning rate);
    ``numbers`` are the task's.
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

    def __post_init__(self) -> None:
        for name, module in self.modules.items():
            self.placement.place(module)
            self.optimizers[name] = _optimizer(module, self.own.get(name, self.config), self.placement)
            self.averages[name] = Ema(module, self.config.ema)

    @property
    def fraction(self) -> float:
        """Share of the budget used, from 0 to 1."""
        return Budget.parse(self.config.budget).fraction(spent=self.spent, step=self.step)

    def save(self, folder: Path) -> Path:
        """Writes a checkpoint under ``folder``."""
        tensors: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            tensors |= {f"module.{name}.{k}": v for k, v in module.state_dict().items()}
            tensors |= {f"average.{name}.{k}": v for k, v in self.averages[name].average.items()}
            for index, values in self.optimizers[name].state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{index}.{k}": v for k, v in values.items()}
        numbers = {"step": self.step, "spent": self.spent, "task": self.numbers}
        return checkpoint.save(folder, self.seen, tensors, numbers)

    def restore(self, path: Path) -> None:
        """Takes up a checkpoint; UserError where it does not fit these modules."""
        tensors, numbers = checkpoint.load(path)
        try:
            for name, module in self.modules.items():
                module.load_state_dict(_under(tensors, f"module.{name}."))
                for key, value in _under(tensors, f"average.{name}.").items():
                    self.averages[name].average[key].copy_(value)
                states: dict[int, dict[str, Tensor]] = {}
                for key, value in _under(tensors, f"optimizer.{name}.").items():
                    index, _, inner = key.partition(".")
                    states.setdefault(int(index), {})[inner] = value
                optimizer = self.optimizers[name]
                optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
                # Fused kernels go by memory, not by index: what is loaded takes its parameter's memory format.
                for parameter, inner_state in optimizer.state.items():
                    for key, value in inner_state.items():
                        if value.shape == parameter.shape:
                            inner_state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            self.seen, self.step, self.spent = numbers["seen"], numbers["step"], numbers["spent"]
            self.numbers.clear()
            self.numbers.update(numbers["task"])
        except (RuntimeError, KeyError) as error:
            raise UserError(
                f"checkpoint {path} does not fit this recipe: {str(error).splitlines()[0]}"
            ) from None

    def roll_back(self, path: Path) -> None:
        """Weights, averages and optimizers as they were in a checkpoint; progress and the task's numbers stay."""
        seen, step, spent, numbers = self.seen, self.step, self.spent, dict(self.numbers)
        self.restore(path)
        self.seen, self.step, self.spent = seen, step, spent
        self.numbers.clear()
        self.numbers.update(numbers)


def train(task: Task, batches: Iterable[Loaded], state: TrainingState) -> Iterator[Report]:
    """Steps until the budget is used. ``batches`` begin at ``state.seen``; the state is whole at every yield.

    Time counts from asking for a batch to the end of its step, so not what the caller does with a report.
    UserError where a loss or a gradient is no longer finite: the weights are then those before that step.
    """
    budget = Budget.parse(state.config.budget)
    waiting = iter(batches)
    while budget.fraction(spent=state.spent, step=state.step) < 1:
        note = task.between(state)
        start = time.perf_counter()
        if (batch := next(waiting, None)) is None:
            return
        shape = _shape_of_lr(state, budget)
        terms: dict[str, float] = {}
        norms: dict[str, float] = {}
        for name, module in state.modules.items():
            with state.placement.autocast():
                losses = task.losses(name, batch)
            if not losses:
                continue
            total = torch.stack(list(losses.values())).sum()
            terms |= {key: value.item() for key, value in losses.items()}
            if not math.isfinite(total.item()):
                bad = [key for key, value in terms.items() if not math.isfinite(value)]
                raise UserError(
                    f"the loss {', '.join(bad)} is no longer finite at {state.seen} pictures seen"
                )
            total.backward()  # type: ignore[no-untyped-call]
            norms[name] = nn.utils.clip_grad_norm_(module.parameters(), state.config.clip).item()
            if not math.isfinite(norms[name]):
                raise UserError(_exploded(task, name, batch, state))
            for group in state.optimizers[name].param_groups:
                group["lr"] = state.own.get(name, state.config).lr * shape
            state.optimizers[name].step()
            state.optimizers[name].zero_grad()
        state.step += 1
        state.seen += len(batch.rows)
        for name, module in state.modules.items():
            state.averages[name].update(module, state.step)
        state.spent += time.perf_counter() - start
        fraction = budget.fraction(spent=state.spent, step=state.step)
        yield Report(
            state.seen,
            state.step,
            terms,
            next(iter(norms.values()), 0.0),
            state.config.lr * shape,
            state.spent,
            fraction,
            task.measures(),
            note,
        )


def _exploded(task: Task, name: str, batch: Loaded, state: TrainingState) -> str:
    """What to say of a gradient that is not finite: the term whose own gradient is not, or is the largest."""
    module = state.modules[name]
    module.zero_grad()
    with state.placement.autocast():
        losses = task.losses(name, batch)
    weights = [p for p in module.parameters() if p.requires_grad]
    norms: dict[str, float] = {}
    for key, value in losses.items():
        if value.requires_grad:
            slopes = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
            norm = sum(float(s.double().square().sum()) for s in slopes if s is not None) ** 0.5
            norms[key] = norm if math.isfinite(norm) else math.inf
    values = ", ".join(f"{key} {value.item():.4g}" for key, value in losses.items())
    return (
        f"the gradient of {name} is no longer finite at {state.seen} pictures seen, that of the loss "
        f"{max(norms, key=lambda key: norms[key])} first; the losses themselves are ({values})"
    )


def _shape_of_lr(state: TrainingState, budget: Budget) -> float:
    """Warm-up, plateau, linear fall to zero: the last part is where most of the detail is learnt."""
    rise = min(1.0, (state.step + 1) / max(1, state.config.warmup))
    left = 1 - budget.fraction(spent=state.spent, step=state.step)
    return rise * min(1.0, left / state.config.cooldown) if state.config.cooldown else rise


def _optimizer(module: nn.Module, config: TrainConfig, placement: Placement) -> torch.optim.Optimizer:
    if config.optimizer == "muon":
        products = torch.bfloat16 if placement.bf16 else torch.float32
        return Muon(
            module, config.lr, betas=config.betas, weight_decay=config.weight_decay, products=products
        )
    options: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay, "fused": True}
    return torch.optim.AdamW(module.parameters(), config.lr, **options)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
