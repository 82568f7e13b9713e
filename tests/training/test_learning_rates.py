"""The learning rate's course, exactly, for budgets of steps and of time; and AdamW with its averages in 8 bits."""

import math
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from toy import Block, Net, Toy, Training, batches, config, state_of

from carrara.errors import UserError
from carrara.training.checkpoint import TrainingState
from carrara.training.devices import Placement
from carrara.training.loop import train
from carrara.training.lr_and_budget import SCHEDULES
from carrara.training.optim import lr_share
from carrara.training.recipe import TrainConfig
from conftest import run_out

EXACT: dict[str, Any] = {
    "wsd": lambda used: 1.0 if used < 0.75 else (1 - used) / 0.25,
    "cosine": lambda used: 0.5 + 0.5 * math.cos(math.pi * used),
    "constant": lambda used: 1.0,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_its_formula(name: str) -> None:
    given = TrainConfig(lr_schedule=name, warmup=10, cooldown=0.25)
    for step in range(100):
        used = step / 100
        expected = min(1, (step + 1) / 10) * EXACT[name](used)
        assert lr_share(given, used=used, step=step) == pytest.approx(expected, abs=1e-12)
    assert lr_share(given, used=0.0, step=9) == 1.0
    assert lr_share(TrainConfig(lr_schedule=name, warmup=0, cooldown=0.0), used=0.0, step=0) == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_follows_a_budget_of_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes half a second of a minute, and what comes between two another half: all of it counts."""
    clock = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) / 2)
    state = state_of(task := Toy(), config(budget="60s", warmup=4, cooldown=0.25, lr=0.5, lr_schedule=name))
    reports = run_out(train(task, batches(0), state))
    assert [report.spent for report in reports] == [float(k) for k in range(1, 61)]
    expected = [0.5 * min(1, (k + 1) / 4) * EXACT[name]((k + 0.5) / 60) for k in range(60)]
    assert [report.lr for report in reports] == pytest.approx(expected)


def test_an_unknown_schedule_is_told_the_nearest() -> None:
    with pytest.raises(
        ValidationError, match=r"no learning-rate schedule is called 'cosin'; did you mean 'cosine'"
    ):
        TrainConfig(lr_schedule="cosin")


# --- eight bits ---


def test_eight_bits_need_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"pip install 'carrara\[eightbit\]'"):
        state_of(Toy(), config(optimizer="adamw8bit"))


@pytest.fixture
def eight_bits() -> None:
    pytest.importorskip("bitsandbytes")


@pytest.mark.usefixtures("eight_bits")
def test_eight_bits_go_the_way_of_thirty_two() -> None:
    """Weights in channels-last too, whose memory is in another order; the averages take a quarter of the memory."""

    def trained(optimizer: str, steps: int = 20) -> TrainingState:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1))
        state = TrainingState(
            {"m": module}, config(optimizer=optimizer, lr=1e-3), Placement(torch.device("cpu"), False)
        )
        for k in range(steps):
            x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(k))
            goal = x.repeat(1, 22, 1, 1)[:, :64].sin()
            (module(x.contiguous(memory_format=torch.channels_last)) - goal).square().mean().backward()
            state.optimizers["m"].step()
            state.optimizers["m"].zero_grad()
        return state

    states = [trained("adamw", 0), trained("adamw"), trained("adamw8bit")]
    start, one, two = (state.modules["m"].get_parameter("2.weight").detach() for state in states)
    assert float((one - two).norm()) < 0.1 * float((one - start).norm())
    assert not torch.equal(one, two)
    sizes = [
        sum(
            v.nbytes
            for v in list(state.optimizers["m"].state.values())[2].values()
            if isinstance(v, torch.Tensor)
        )
        for state in states[1:]
    ]
    assert sizes[1] < 0.3 * sizes[0]


@pytest.mark.usefixtures("eight_bits")
def test_eight_bits_are_resumed_exactly(tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": "adamw8bit", "save_every": 1e-9, "lr": 0.01}

    def wide() -> Toy:
        """With matrices large enough to be kept in eight bits."""
        task = Toy()
        net = task.modules["m"]
        assert isinstance(net, Net)
        net.body[0] = Block(8, 0.0, 1024)
        return task

    whole, killed = (
        Training(tmp_path / "whole", wide, **options),
        Training(tmp_path / "killed", wide, **options),
    )
    whole.run()
    killed.run(5)
    killed.run()
    assert killed.state.step == 12
    dtypes = {
        v.dtype
        for s in killed.state.optimizers["m"].state.values()
        for v in s.values()
        if hasattr(v, "dtype")
    }
    assert torch.uint8 in dtypes
    for name, value in whole.weights().items():
        assert torch.equal(killed.weights()[name], value)
    first = Training(tmp_path / "first", wide, **options)
    run_out(islice(first.open(), 1))
    assert not torch.equal(first.weights()["body.0.inner.weight"], whole.weights()["body.0.inner.weight"])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("steps", "warmup"), [(10, 100), (41, 100), (100, 100), (100, 11), (100, 10), (5, 0)]
)
def test_a_warm_up_takes_at_most_a_tenth_of_the_budget(name: str, steps: int, warmup: int) -> None:
    """One that takes no more is as it was."""
    given = TrainConfig(lr_schedule=name, warmup=warmup, cooldown=0.0)
    shape = EXACT[name] if name != "wsd" else (lambda used: 1.0)
    rises = [lr_share(given, used=k / steps, step=k) / shape(k / steps) for k in range(steps)]
    assert rises == sorted(rises)
    assert all(rise == pytest.approx(1) for k, rise in enumerate(rises) if k >= 0.1 * steps)
    if warmup <= 0.1 * steps:
        assert rises == pytest.approx([min(1, (k + 1) / max(1, warmup)) for k in range(steps)])
