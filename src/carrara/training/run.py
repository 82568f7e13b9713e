"""A run folder: the recipe, checkpoints, metrics and TensorBoard events; continues where it was killed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from carrara.config import Config, read_toml, to_toml
from carrara.data.writer import lock
from carrara.errors import UserError
from carrara.training import checkpoint
from carrara.training.loop import Report, Task, TrainingState, train

RECIPE, METRICS, CHECKPOINTS, EVENTS, MODEL = "recipe.toml", "metrics.jsonl", "checkpoints", "events", "model"
LOG_EVERY = 10  # steps
_FIRST_FILES = {"run.json", RECIPE + ".part"}  # all that a run killed at its very start can have left


class Run:
    """The folder of one training. Opening it again with the same recipe continues it."""

    def __init__(self, folder: Path, recipe: Config, made_from: Mapping[str, str]) -> None:
        """``made_from`` holds hashes by name of what is trained on, such as "pictures and captions".

        UserError where the folder belongs to something else.

        Nothing is written before ``train``, so that a recipe found wanting leaves no folder.
        """
        self.folder = folder
        self._recipe, self._about = to_toml(recipe), dict(made_from)
        if (folder / RECIPE).is_file():
            _same(folder, self._recipe, self._about)
        elif folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; give a new folder with --out")
        elif folder.exists() and {p.name for p in folder.iterdir()} - _FIRST_FILES:
            raise UserError(f"{folder} is not empty and holds no run; give a new folder with --out")

    def _begin(self) -> None:
        if (self.folder / RECIPE).is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "run.json").write_text(json.dumps(self._about))
        part = self.folder / (RECIPE + ".part")
        part.write_text(self._recipe, encoding="utf-8")
        os.replace(part, self.folder / RECIPE)

    @property
    def model(self) -> Path:
        """Where the finished model lies."""
        return self.folder / MODEL

    @property
    def finished(self) -> bool:
        """Whether the model is there."""
        return (self.model / "model.toml").is_file()

    def train(self, task: Task, state: TrainingState, load: Any) -> Iterator[Report]:
        """Trains to the end of the budget, from the newest checkpoint on.

        ``load(start)`` gives batches from a number of pictures seen. The reports of steps that a kill undid
        are taken out of the log. When the iterator is closed early (Ctrl-C), the state is saved first.
        """
        if (last := checkpoint.newest(self.folder / CHECKPOINTS)) is not None:
            state.restore(last)
        saved = time.monotonic()
        held = None
        try:
            self._begin()
            held = lock(self.folder)
            with closing(_Log(self.folder, state)) as log, closing(load(state.seen)) as batches:
                try:
                    for report in train(task, batches, state):
                        log.write(report)
                        if time.monotonic() - saved > state.config.save_every:
                            state.save(self.folder / CHECKPOINTS)
                            saved = time.monotonic()
                        yield report
                except GeneratorExit:  # between two steps: the state is whole
                    state.save(self.folder / CHECKPOINTS)
                    raise
                state.save(self.folder / CHECKPOINTS)
        except (UserError, OSError) as error:  # a loss is no longer finite, or the disk is full
            last = checkpoint.newest(self.folder / CHECKPOINTS)
            reason = (
                f"cannot write {self.folder}: {error.strerror or error}"
                if isinstance(error, OSError)
                else error
            )
            raise UserError(f"{reason}; the last good checkpoint is {last or 'none yet'}") from None
        finally:
            if held is not None:
                os.close(held)


class _Log:
    """Every tenth report as a line of metrics.jsonl and as TensorBoard events."""

    def __init__(self, folder: Path, state: TrainingState) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _cut_log(folder / METRICS, state.step)
        self._lines = open(folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)
        self._events = SummaryWriter(str(folder / EVENTS), purge_step=state.step)
        self._since = (time.monotonic(), state.seen)

    def write(self, report: Report) -> None:
        """Logs the report if its step is one of those logged; the rate is pictures a second since the last."""
        if report.step % LOG_EVERY:
            return
        before, self._since = self._since, (time.monotonic(), report.seen)
        rate = (report.seen - before[1]) / max(1e-9, self._since[0] - before[0])
        values = {
            **{name: round(value, 6) for name, value in report.losses.items()},
            **{name: round(value, 6) for name, value in report.measures.items()},
            "gradient": round(report.gradient, 5),
            "lr": report.lr,
            "rate": round(rate, 1),
            "spent": round(report.spent, 2),
        }
        self._lines.write(json.dumps({"step": report.step, "seen": report.seen, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, report.step)

    def close(self) -> None:
        """Closes both files."""
        self._lines.close()
        self._events.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, in order."""
    file = folder / METRICS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines]


def _cut_log(file: Path, step: int) -> None:
    """Removes lines after ``step``, and a last line that a kill cut short."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            break
    part = file.with_suffix(".part")
    part.write_text("".join(kept), encoding="utf-8")
    os.replace(part, file)


def _same(folder: Path, text: str, about: dict[str, str]) -> None:
    """UserError that names the first difference between a run's recipe or data and what is asked for now."""
    import tomllib

    before, now = read_toml(folder / RECIPE), tomllib.loads(text)
    if before != now:
        key, was, wanted = _difference(before, now)
        raise UserError(
            f"{folder} was begun with {key} = {was!r}, now it is {wanted!r}; "
            "continue with the former or give another folder with --out"
        )
    try:
        begun = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / 'run.json'} cannot be read: {error}; give another folder with --out"
        ) from None
    if changed := [
        name for name in sorted(begun.keys() | about.keys()) if begun.get(name) != about.get(name)
    ]:
        raise UserError(
            f"{folder} was begun with other {' and '.join(changed)}; give another folder with --out"
        )


def _difference(before: Any, now: Any, path: str = "") -> tuple[str, Any, Any]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                return _difference(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    return path, before, now
