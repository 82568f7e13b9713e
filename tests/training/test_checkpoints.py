"""Which checkpoints stay, which one is the best, and what happens where the newest cannot be read."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import Recipe, Toy, Training, config

from carrara.errors import UserError
from carrara.training import checkpoint
from carrara.training.metrics_log import _cut_log, read_metrics
from carrara.training.run import Run

ALWAYS = {"save_every": 1e-9}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def assert_same(one: Training, two: Training) -> None:
    assert one.weights().keys() == two.weights().keys()
    assert all(torch.equal(value, two.weights()[name]) for name, value in one.weights().items())


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_stay(tmp_path: Path, keep: int) -> None:
    Training(tmp_path / "run", keep=keep, **ALWAYS).run()
    last = [f"{8 * step:012d}" for step in range(13 - keep, 13)]
    assert names(tmp_path / "run" / "checkpoints") == [*last, "plateau"]


# --- dropout, parts and everything else with state ---


def test_killed_with_dropout_in_parts_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "accumulate": 2,
        "checkpointing": True,
        "ema_lengths": (0.1,),
        "save_every": 1e-9,
    }
    whole = Training(tmp_path / "whole", lambda: Toy(0.4), **options)
    steps = whole.run()
    killed = Training(tmp_path / "killed", lambda: Toy(0.4), **options)
    again = [*killed.run(3), *killed.run(6), *killed.run()]
    assert_same(whole, killed)
    # A step whose checkpoint the kill prevented is done again, and is the same again.
    losses = {report.step: report.losses for report in steps}
    assert [report.losses for report in again] == [losses[report.step] for report in again]
    assert {report.step for report in again} == set(losses)
    without = Training(tmp_path / "without", lambda: Toy(0.0), **options)
    without.run()
    assert without.run() == []
    assert not torch.equal(without.weights()["conv_in.weight"], whole.weights()["conv_in.weight"])


# --- the best one ---

MEASURES = {1: math.nan, 2: 5.0, 4: 3.0, 6: 4.0, 7: 3.0, 9: 1.0, 11: 2.0}


def test_the_best_is_kept_as_it_was_measured(tmp_path: Path) -> None:
    """The weights that were looked at, not those of a step later; equal is not better."""
    run = Training(tmp_path / "run", lambda: Toy(held_out=MEASURES.get), **ALWAYS)
    reports = run.run()
    assert [report.step for report in reports] == list(range(1, 13))
    assert names(tmp_path / "run" / "checkpoints") == [f"{88:012d}", f"{96:012d}", "best", "plateau"]
    best = checkpoint.newest(tmp_path / "run" / "checkpoints" / "best")
    assert best is not None
    assert names(best.parent) == [f"{9 * 8:012d}"]
    nine = Training(tmp_path / "nine", **ALWAYS)
    nine.run(9)
    expected = nine.weights()
    tensors, numbers = checkpoint.load(best)
    assert numbers["best"] == 1.0
    assert all(torch.equal(tensors[f"module.m.{name}"], value) for name, value in expected.items())
    assert run.state.best == 1.0


def test_the_best_survives_kills(tmp_path: Path) -> None:
    run = Training(tmp_path / "run", lambda: Toy(held_out=MEASURES.get))
    run.run(10)  # only the best is there, and the last before the learning rate fell
    assert names(tmp_path / "run" / "checkpoints") == ["best", "plateau"]
    run.run(5)
    assert names(tmp_path / "run" / "checkpoints" / "best") == [f"{4 * 8:012d}"]
    for report in run.run():
        assert not report.best
    assert names(tmp_path / "run" / "checkpoints" / "best") == [f"{9 * 8:012d}"]


# --- an early end ---


def test_a_task_may_end_it(tmp_path: Path) -> None:
    run = Training(
        tmp_path / "run", lambda: Toy(over=lambda step: "nothing gained" if step >= 10 else ""), **ALWAYS
    )
    reports = run.run()
    assert [report.step for report in reports if getattr(report, "losses", None)] == list(range(1, 11))
    assert reports[-1].note == "stopped: nothing gained"
    assert reports[-1].losses == {}
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [10]
    again = run.run()
    assert [report.note for report in again] == ["stopped: nothing gained"]
    assert run.state.step == 10


# --- damage ---


@pytest.mark.parametrize("fault", ["cut", "no weights", "no numbers", "other numbers", "a bit", "empty"])
def test_of_a_damaged_newest_the_one_before_is_taken(tmp_path: Path, fault: str) -> None:
    whole = Training(tmp_path / "whole", **ALWAYS)
    whole.run()
    run = Training(tmp_path / "run", **ALWAYS)
    run.run(7)
    folder = tmp_path / "run" / "checkpoints"
    old, bad = checkpoint.all_of(folder)
    weights = bad / "state.safetensors"
    if fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "no weights":
        weights.unlink()
    elif fault == "no numbers":
        (bad / "state.json").unlink()
    elif fault == "empty":
        weights.write_bytes(b"")
    elif fault == "a bit":
        numbers = json.loads((bad / "state.json").read_text())
        (bad / "state.json").write_text(json.dumps({**numbers, "step": numbers["step"] ^ 1}))
    else:
        (bad / "state.json").write_text('{"seen": 8}')
    first, *rest = run.run()
    assert first.note.startswith(f"checkpoint {bad} is damaged: ")
    assert first.note.endswith(f"; going on from {old.name}, the one before")
    assert [report.step for report in rest] == list(range(int(old.name) // 8 + 1, 13))
    assert_same(run, whole)
    assert (folder / f"{bad.name}.damaged" / "state.json").exists() == (fault != "no numbers")
    assert read_metrics(tmp_path / "run")[0].keys() == read_metrics(tmp_path / "whole")[0].keys()


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"seen": "x"}', '{"seen": -1}', '{"spent": NaN}', '{"task": {"a": [1]}}', "[" * 99999],
)
def test_numbers_of_a_checkpoint_without_hashes_are_read_with_care(tmp_path: Path, text: str) -> None:
    saved = checkpoint.save(tmp_path, 8, {"a": torch.zeros(3)}, {})
    (saved / "state.json").write_text(text)
    with pytest.raises(checkpoint.Damaged, match=r"its bytes are not those that were written"):
        checkpoint.numbers(saved)
    (saved / "hashes.json").unlink()
    with pytest.raises(checkpoint.Damaged, match=rf"checkpoint {saved} is damaged: state.json.*: expected"):
        checkpoint.numbers(saved)


@pytest.mark.parametrize("name", ["module.m.", "average.m.", "optimizer.m.0."])
@pytest.mark.parametrize("fault", ["renamed", "of another shape"])
def test_of_a_newest_with_a_wrong_tensor_the_one_before_is_taken(
    tmp_path: Path, name: str, fault: str
) -> None:
    run = Training(tmp_path / "run", **ALWAYS)
    run.run(4)
    old, bad = checkpoint.all_of(tmp_path / "run" / "checkpoints")
    tensors = load_file(bad / "state.safetensors")
    key = next(k for k in tensors if k.startswith(name) and tensors[k].ndim)
    if fault == "renamed":
        tensors[f"{key}x"] = tensors.pop(key)
    else:
        tensors[key] = tensors[key].flatten()[:1].clone()
    if (name, fault) == ("optimizer.m.0.", "of another shape"):
        tensors["optimizer.m.999.momentum"] = tensors[key].clone()
    save_file(tensors, bad / "state.safetensors")
    (bad / "hashes.json").unlink()  # a checkpoint of a time when none were kept
    first, *rest = run.run(2)
    assert first.note.startswith(f"checkpoint {bad} does not fit this recipe: ")
    assert first.note.endswith(f"; going on from {old.name}, the one before")
    assert rest[0].step == int(old.name) // 8 + 1
    assert not bad.exists() or rest[-1].step * 8 >= int(bad.name)
    assert (bad.parent / f"{bad.name}.damaged").is_dir()


@pytest.mark.parametrize("text", ["[]", "", "{", "\0", None])
def test_a_damaged_note_of_the_data_does_not_end_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    run = Training(tmp_path / "run", **ALWAYS)
    run.run(4)
    about = tmp_path / "run" / "run.json"
    about.unlink()
    if text is not None:
        about.write_text(text)
    steps = [report.step for report in run.run(2) if getattr(report, "losses", None)]
    assert steps[0] > 1
    assert f"{about} is missing or damaged" in capsys.readouterr().err
    assert json.loads(about.read_text()) == {}
    assert (tmp_path / "run" / "run.json.damaged").exists() == (text is not None)


DAMAGE = {
    "a bad byte": lambda lines: [b"\xff" + lines[0][1:], *lines[1:]],
    "a list": lambda lines: [b"[]\n", *lines],
    "no step": lambda lines: [b'{"loss": 1}\n', *lines],
    "words": lambda lines: [lines[0].replace(b'"step": 1', b'"step": "1'), *lines],
    "a torn line within": lambda lines: [lines[0][:9] + b"\n", *lines],
    "zeros": lambda lines: [bytes(40) + b"\n", *lines],
    "deep brackets": lambda lines: [b"[" * 100_000 + b"\n", *lines],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_lines_of_a_log_are_set_aside(tmp_path: Path, damage: str) -> None:
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 0.5}).encode() + b"\n" for step in (10, 20, 30)]
    damaged = DAMAGE[damage](lines)
    log.write_bytes(b"".join(damaged) + b'{"step": 40, "lo')
    whole = [10, 20, 30][damage == "a bad byte" :]
    assert [line["step"] for line in read_metrics(tmp_path)] == whole
    assert _cut_log(log, 20) == f"1 damaged lines of {log} are in metrics.jsonl.damaged now"
    assert log.read_bytes() == b"".join(lines[damage == "a bad byte" : 2])
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damaged[0]
    assert _cut_log(log, 20) == ""


def test_where_none_can_be_read_nothing_is_lost(tmp_path: Path) -> None:
    run = Training(tmp_path / "run", **ALWAYS)
    run.run(7)
    both = checkpoint.all_of(tmp_path / "run" / "checkpoints")
    for path in both:
        (path / "state.safetensors").write_bytes(b"rust")
    with pytest.raises(UserError, match=f"checkpoint .*{both[-1].name} is damaged"):
        run.run()
    assert checkpoint.all_of(tmp_path / "run" / "checkpoints") == both


def test_another_network_is_no_damage(tmp_path: Path) -> None:
    run = Training(tmp_path / "run", **ALWAYS)
    run.run(7)
    before = names(tmp_path / "run" / "checkpoints")
    run.task = lambda: _wider()
    with pytest.raises(UserError, match="does not fit this recipe"):
        run.run()
    assert names(tmp_path / "run" / "checkpoints") == before


def _wider() -> Toy:
    from toy import Net

    task = Toy()
    task.modules = {"m": Net(width=16)}
    return task


# --- runs of an earlier version ---


def test_a_run_that_knew_fewer_fields_goes_on(tmp_path: Path) -> None:
    """Its recipe lacks what has come since, and so does its checkpoint."""
    whole = Training(tmp_path / "whole", **ALWAYS)
    whole.run()
    run = Training(tmp_path / "run", **ALWAYS)
    run.run(7)
    recipe = tmp_path / "run" / "recipe.toml"
    new = (
        "accumulate",
        "lr_schedule",
        "ema_lengths",
        "posthoc",
        "snapshots",
        "checkpointing",
        "compile",
        "keep",
    )
    lines = recipe.read_text().splitlines(keepends=True)
    recipe.write_text("".join(line for line in lines if line.partition(" ")[0] not in new))
    assert recipe.read_text() != "".join(lines)
    for path in checkpoint.all_of(tmp_path / "run" / "checkpoints"):
        numbers = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(
            json.dumps({k: numbers[k] for k in ("seen", "step", "spent", "task")})
        )
        (path / "hashes.json").unlink()
    run.run()
    assert_same(run, whole)

    with pytest.raises(UserError, match=r"was begun with train\.ema = 0\.05, now it is 0\.06"):
        Run(tmp_path / "whole", Recipe(train=config(ema=0.06, **ALWAYS)), {})


def test_the_log_says_what_a_step_needs(tmp_path: Path) -> None:
    """In its first line, the same after a kill."""
    run = Training(tmp_path / "run", **ALWAYS)
    assert [*run.run(4), *run.run()]
    (line,) = read_metrics(tmp_path / "run")
    assert line["activation_mb"] == run.state.measured["activation_mb"] > 0
