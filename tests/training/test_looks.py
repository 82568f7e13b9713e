"""Looks at held-out pictures: on the grid of a budget in steps, and within a tenth of a budget of time."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy import Recipe, Toy, batches, config, state_of

from carrara.training.checkpoint import TrainingState
from carrara.training.devices import Placement
from carrara.training.looks import Looks
from carrara.training.loop import train
from carrara.training.lr_and_budget import Budget
from carrara.training.run import Run
from conftest import run_out


class Clock:
    """Passes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Looking(Toy):
    """A step takes a second, a look ``cost``; ``at`` are the shares of the budget at which there was one."""

    def __init__(self, clock: Clock, cost: float, looks: Looks) -> None:
        super().__init__()
        self.clock, self.cost, self.at = clock, cost, list[float]()
        self.looks = replace(looks, passes=24 * cost)  # in a step a batch of 8 takes 3 passes

    def pending(self, state: TrainingState) -> str:
        return "validating" if self.looks.due(state) else ""

    def between(self, state: TrainingState) -> str:
        if not self.looks.due(state):
            return ""
        with self.looks.look(state):
            self.clock.now += self.cost * self.looks.size(state)
        self.at.append(round(state.fraction, 2))
        return "looked"

    last = between

    def losses(self, update: str, batch: Any) -> Any:
        self.clock.now += 1
        return super().losses(update, batch)


def looked(clock: Clock, cost: float, looks: Looks, budget: str) -> tuple[Looking, TrainingState]:
    task = Looking(clock, cost, looks)
    state = state_of(task, config(budget=budget))
    announced = [report.next for report in train(task, batches(0), state) if getattr(report, "losses", None)]
    assert announced.count("validating") == len(task.at)
    return task, state


@pytest.mark.parametrize("cost", [0.0, 1.0, 1000.0])
def test_a_budget_in_steps_has_all_looks_whatever_they_take(clock: Clock, cost: float) -> None:
    task, state = looked(clock, cost, Looks("a", 8), "40steps")
    assert task.at == [0.12, 0.25, 0.38, 0.5, 0.62, 0.75, 0.88, 1.0]
    assert state.step == 40


@pytest.mark.parametrize(
    ("cost", "count", "made"),
    [
        (0.1, 8, 8),
        (1, 8, 8),
        (4, 8, 4),
        (7, 8, 2),
        (15, 8, 2),
        (200, 8, 2),
        (1, 1, 1),
        (15, 1, 1),
        (200, 1, 1),
    ],
)
def test_looks_take_a_tenth_of_a_budget_of_time_and_are_within_it(
    clock: Clock, cost: float, count: int, made: int
) -> None:
    """Fewer where they are dear, smaller where two are too dear; the last one is at the finished model."""
    task, state = looked(clock, cost, Looks("a", count), "200s")
    assert made <= len(task.at) <= made + 1
    assert task.at[-1] == 1.0
    assert clock.now <= 202
    assert state.spent == pytest.approx(clock.now, abs=cost + 2)
    assert clock.now - state.step <= 0.1 * 200 + 1e-6
    assert state.step >= 178


def test_what_shall_stop_a_run_keeps_all_its_looks(clock: Clock) -> None:
    task, _ = looked(clock, 50, Looks("a", 10, least=10), "100s")
    assert len(task.at) == 10
    assert clock.now <= 102


def test_a_share_of_its_own(clock: Clock) -> None:
    task, state = looked(clock, 10, Looks("a", 8, share=0.5), "200s")
    assert len(task.at) == 8
    assert 78 <= clock.now - state.step <= 82


def test_what_the_caller_does_counts(clock: Clock) -> None:
    task = Looking(clock, 0, Looks("a", 0))
    state = state_of(task, config(budget="20s"))
    for _ in train(task, batches(0), state):
        clock.now += 1
    assert (state.step, clock.now) == (10, 20)


def test_what_comes_before_the_first_step_counts(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial of what is fastest; but half of a budget is for training, whatever it took. Steps are all made."""

    def trial(task: Any, batch: Any, base: Placement, config: Any) -> tuple[Placement, str]:
        clock.now += 30
        return base, "tried"

    monkeypatch.setattr("carrara.training.run.fastest_training", trial)
    for budget, made in {"100s": 70, "40s": 20, "50steps": 50}.items():
        task = Looking(clock, 0, Looks("a", 0))
        run = Run(tmp_path / budget, Recipe(train=config(budget=budget)), {})
        state = state_of(task, run.config)
        run.placement(task, batches, state.placement)
        run_out(run.train(task, state, batches))
        assert state.step == made
        assert state.numbers["startup"] == min(30, {"40s": 20}.get(budget, 30))


def test_a_prolonged_run_looks_at_the_shares_of_its_longer_budget(clock: Clock) -> None:
    task, state = looked(clock, 0, Looks("a", 4), "20steps")
    state.config = config(budget="60steps")
    task.at.clear()
    run_out(train(task, batches(state.seen), state))
    assert task.at == [0.5, 0.75, 1.0]


def test_what_a_plan_says_of_them() -> None:
    looks = Looks("a", 8, passes=300)
    assert looks.seconds(Budget(steps=100), rate=10) == pytest.approx(80)
    assert looks.seconds(Budget(seconds=300), rate=10) == pytest.approx(30)
    assert looks.seconds(Budget(seconds=3000), rate=10) == pytest.approx(80)
