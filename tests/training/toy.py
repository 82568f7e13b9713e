"""A task without pictures: a small network learns to turn vectors round, for tests of the engine alone."""

from collections.abc import Callable, Generator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from carrara.config import Config
from carrara.dataset.loader import Loaded
from carrara.dataset.order import sample_seeds
from carrara.tensors import sample_noise
from carrara.training.activation_memory import Saved
from carrara.training.checkpoint import TrainingState
from carrara.training.devices import Placement
from carrara.training.loop import Report
from carrara.training.recipe import TrainConfig
from carrara.training.run import Run
from carrara.training.task import Task


def activation_bytes(step: Callable[[], Tensor]) -> int:
    """Bytes that ``step``, a forward pass up to its loss, leaves saved for the backward pass."""
    with Saved() as saved:
        step()
    return saved.most


class Recipe(Config):
    """What a run folder asks of a recipe."""

    train: TrainConfig = TrainConfig()


class Block(nn.Module):
    """A residual block with dropout."""

    def __init__(self, width: int, drop: float, hidden: int = 32) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.outer(self.drop(torch.sin(self.inner(x))))
        return out


class Net(nn.Module):
    """Two blocks between two layers."""

    def __init__(self, drop: float = 0.0, width: int = 8) -> None:
        super().__init__()
        self.conv_in, self.conv_out = nn.Linear(6, width), nn.Linear(width, 6)
        self.body = nn.ModuleList([Block(width, drop), Block(width, drop)])

    def blocks(self) -> list[nn.Module]:
        return list(self.body)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.body:
            x = block(x)
        out: Tensor = self.conv_out(x)
        return out


class Toy(Task):
    """The task. ``held_out`` and ``over`` are functions of the step, for what a validation would find."""

    def __init__(
        self,
        drop: float = 0.0,
        held_out: Callable[[int], float | None] = lambda step: None,
        over: Callable[[int], str] = lambda step: "",
    ) -> None:
        torch.manual_seed(0)
        self.modules = {"m": Net(drop)}
        self.drop = drop
        self.held_out, self.over, self.found = held_out, over, None

    @property
    def divisible(self) -> bool:
        """Where nothing is dropped."""
        return self.drop == 0

    def losses(self, update: str, batch: Loaded) -> Mapping[str, Tensor]:
        x = batch.columns["x"]
        assert isinstance(x, Tensor)
        error = self.modules[update](x) - x.flip(1).sin()
        return {"square": error.square().mean(), "absolute": 0.1 * error.abs().mean()}

    def between(self, state: TrainingState) -> str:
        self.found = self.held_out(state.step)
        return ""

    def finished(self, state: TrainingState) -> str:
        return self.over(state.step)

    def measures(self) -> Mapping[str, float]:
        return {} if self.found is None else {"held_out": self.found}


def batches(start: int, size: int = 8) -> Generator[Loaded, None, None]:
    """Batches without end of vectors and of words, functions of how many came before."""
    while True:
        seeds = sample_seeds(3, np.arange(start, start + size))
        x = sample_noise([int(s) for s in seeds], (6,))
        rows = np.arange(start, start + size)
        yield Loaded(rows, start, seeds, {"x": x, "word": [f"word {row}" for row in rows]})
        start += size


def config(**train: Any) -> TrainConfig:
    return TrainConfig(**{"budget": "12steps", "batch": 8, "warmup": 2, "precision": "fp32", **train})


def state_of(task: Toy, given: TrainConfig) -> TrainingState:
    return TrainingState(task.modules, given, Placement(torch.device("cpu"), False))


class Training:
    """A run of the toy in a folder, as a command would open it again and again."""

    def __init__(self, folder: Path, task: Callable[[], Toy] = Toy, **train: Any) -> None:
        self.folder, self.task, self.config = folder, task, config(**train)

    def open(self) -> Generator[Report, None, None]:
        """The reports of one opening; ``state`` and ``toy`` are then its."""
        self.toy = self.task()
        torch.manual_seed(hash(self.folder.name) % 1000)  # whatever drew from the global generator before
        self.state = state_of(self.toy, self.config)
        run = Run(self.folder, Recipe(train=self.config), {})
        yield from run.train(self.toy, self.state, lambda start: batches(start, self.config.batch))

    def run(self, steps: int | None = None) -> list[Report]:
        """To the end, or killed after ``steps`` reports: then nothing is saved that was not."""
        opened = self.open()
        reports = list(islice(opened, steps))
        if steps is not None:
            self.state.save = lambda *_, **__: self.folder  # type: ignore[method-assign]
            opened.close()
        return reports

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.toy.modules["m"].state_dict().items()}
