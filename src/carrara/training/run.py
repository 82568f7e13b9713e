"""A run folder: the recipe, checkpoints, metrics and TensorBoard events; continues where it was killed.

While it is trained, ``unfinished`` is a whole model folder with the weights that training began from: what opens a
model (previews, averages) takes everything but the weights from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.config import to_toml
from carrara.dataset.store import lock
from carrara.errors import UserError, one_line
from carrara.files import DAMAGED, remove, replacing, set_aside
from carrara.training import checkpoint
from carrara.training.fastest import fastest_training
from carrara.training.loop import Report, train
from carrara.training.lr_and_budget import STARTUP, Budget
from carrara.training.metrics_log import CHECKPOINTS, EVENTS, METRICS, MODEL, STOPPED, MetricsLog, rounded
from carrara.training.optim import falls_from
from carrara.training.post_hoc_averages import Snapshots
from carrara.training.run_changes import PLATEAU, RECIPE, Change, change_of, go_back, is_run, noted

if TYPE_CHECKING:
    from carrara.config import Config
    from carrara.dataset.dataset import Dataset
    from carrara.training.checkpoint import TrainingState
    from carrara.training.devices import Placement
    from carrara.training.recipe import TrainConfig
    from carrara.training.task import Task


UNFINISHED, AVERAGES = "unfinished", "averages"

_FIRST_FILES = {
    "run.json",
    RECIPE + ".part",
    RECIPE + DAMAGED,
}  # a run killed at its very start leaves no other


class Run:
    """The folder of one training. Opening it again with the same recipe continues it."""

    def __init__(
        self,
        folder: Path,
        recipe: Config,
        made_from: Mapping[str, str],
        dataset: Dataset | None = None,
        pictures: int = 0,
    ) -> None:
        """``made_from`` holds hashes by name of what is trained on, such as "pictures and captions".

        ``pictures`` is how many of them an epoch has. The version of ``dataset`` that is trained on is remembered,
        and tagged so that cleaning keeps it. UserError where the folder belongs to something else.
        Nothing is written before ``train``, so that a recipe found wanting leaves no folder.
        """
        self.folder = folder
        self._recipe, self._about, self._dataset = recipe, dict(made_from), dataset
        self._placement: dict[str, Any] = {}
        self._note = ""
        self._pictures, self._began = pictures, time.perf_counter()
        self.config: TrainConfig = recipe.train.counted(pictures)  # type: ignore[attr-defined]
        self._change = self._compared()
        if is_run(folder):
            return
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; give a new folder with --out")
        if folder.exists() and {p.name for p in folder.iterdir()} - _FIRST_FILES:
            raise UserError(f"{folder} is not empty and holds no run; give a new folder with --out")

    def _compared(self) -> Change:
        """What is to become of a run that is there already; UserError where it belongs to something else."""
        if not is_run(self.folder):
            return Change(anew=True)
        return change_of(self.folder, self._recipe, self._about, self._pictures)

    def _begin(self) -> list[str]:
        """Brings the folder to what it is opened for; what to say of it."""
        change, notes = self._compared(), []
        if change.anew:
            for name in (METRICS, EVENTS, UNFINISHED, AVERAGES, STOPPED):
                remove(self.folder / name)
        file, known = self.folder / "run.json", None if change.anew else noted(self.folder)
        if known is None and not change.anew and os.path.lexists(file):
            set_aside(file)
        if known is None or self._placement:  # which a version before did not note
            known = known or {**self._about, **self._version()}
            file.write_text(json.dumps({**known, **self._placement}))
        if change.longer:
            notes.append(change.note)
            try:
                if change.back:
                    go_back(self.folder, change.back)
            except checkpoint.Damaged as error:
                notes = [f"{error}; going on from the newest one with the longer budget"]
            if self.model.is_dir():  # before the recipe is written: from then on nothing has changed
                remove(self.folder / UNFINISHED)
                self.model.rename(self.folder / UNFINISHED)
        own, text = self.folder / RECIPE, to_toml(self._recipe)
        if change.damaged and os.path.lexists(own):
            notes.append(f"{own} was damaged, and is {set_aside(own).name} now")
        for file in (self.folder / UNFINISHED / RECIPE, own):
            if file.parent.is_dir() and not (file.is_file() and file.read_bytes() == text.encode()):
                with replacing(file) as new:
                    new.write(text.encode())
        return notes

    def _version(self) -> dict[str, Any]:
        """Where the data set is, the version that this run sees, and its tag."""
        from carrara.dataset.versions import tag

        if self._dataset is None:
            return {}
        words = f"{self.folder.resolve()} {to_toml(self._recipe)} {self._about}"
        named = hashlib.sha256(words.encode()).hexdigest()[:8]
        seen = {"data": str(self._dataset.path), "version": self._dataset.version}
        try:
            tag(self._dataset, f"run-{named}", move=True)
        except (OSError, ValueError):  # a data set that may only be read is trained on all the same
            return seen
        return {**seen, "tag": f"run-{named}"}

    @property
    def model(self) -> Path:
        """Where the finished model lies."""
        return self.folder / MODEL

    @property
    def finished(self) -> bool:
        """Whether the model is there, and is not to be trained for longer."""
        return not self._change.longer and (self.model / "model.toml").is_file()

    def placement(self, task: Task, load: Any, base: Placement) -> Placement:
        """How this training computes: as it was begun, else as is fastest for its first batch (a report says so).

        It stays so wherever and beside whatever it goes on, as other parts or another precision give other weights.
        """
        self._began = time.perf_counter()  # what was encoded before is no training
        with contextlib.suppress(ValueError, KeyError, TypeError):
            known = {} if self._change.anew else (noted(self.folder) or {})["placement"]
            if (parts := int(known["parts"])) in range(1, 1025):
                return replace(
                    base,
                    bf16=known["precision"] == "bf16",
                    parts=parts,
                    channels_last=bool(known.get("channels_last", True)),
                    own_kernels=bool(known.get("own_kernels", True)),
                )
        with closing(load(0)) as batches:
            placement, self._note = fastest_training(task, next(batches), base, self.config)
        chosen = {
            "precision": "bf16" if placement.bf16 else "fp32",
            "parts": placement.parts,
            "why": self._note,
        }
        chosen |= {"channels_last": placement.channels_last, "own_kernels": placement.own_kernels}
        self._placement = {"placement": chosen}
        return placement

    def train(
        self, task: Task, state: TrainingState, load: Any, begun: Callable[[Path], object] | None = None
    ) -> Generator[Report]:
        """Trains to the end of the budget, from the newest checkpoint on that is whole.

        ``load(start)`` gives batches from a number of pictures seen; ``begun(folder)`` writes the model as it is
        now into ``unfinished``. The reports of steps that a kill undid are taken out of the log. When the iterator
        is closed early (Ctrl-C), the state is saved first.
        """
        with self._held() as notes:
            yield from self._train(task, state, load, begun, notes)

    def _train(
        self,
        task: Task,
        state: TrainingState,
        load: Any,
        begun: Callable[[Path], object] | None,
        notes: list[str],
    ) -> Generator[Report]:
        checkpoints = self.folder / CHECKPOINTS
        notes = [*notes, *self._resume(state)]
        (self.folder / STOPPED).unlink(missing_ok=True)
        saved = time.monotonic()
        try:
            if begun and not (self.folder / UNFINISHED).is_dir() and not self.model.is_dir():
                begun(self.folder / UNFINISHED)
            snapshots = Snapshots(self.folder / AVERAGES, state)
            with closing(MetricsLog(self.folder, state)) as log, closing(load(state.seen)) as batches:
                try:
                    yield from (
                        Report.remark(state, note) for note in (*notes, *snapshots.notes, log.note) if note
                    )
                    startup = self._startup()
                    state.spent += startup
                    state.numbers[STARTUP] = state.numbers.get(STARTUP, 0.0) + startup
                    fraction = state.fraction
                    for report in train(task, batches, state):
                        if fraction < falls_from(state.config) <= (fraction := report.fraction) < 1:
                            state.save(checkpoints / PLATEAU, only=True)
                        if report.best:
                            state.save(checkpoints / checkpoint.BEST, only=True)
                            continue
                        if report.last:
                            log.add(report.step, {"seen": report.seen, **rounded(report.measures)})
                        log.write(report)
                        snapshots.after(state)
                        if time.monotonic() - saved > state.config.save_every:
                            state.save(checkpoints)
                            saved = time.monotonic()
                        if self._note and report.losses:
                            report = replace(report, note="; ".join(filter(None, (self._note, report.note))))
                            self._note = ""
                        yield report
                except GeneratorExit:  # between two steps: the state is whole
                    state.save(checkpoints)
                    raise
                snapshots.store(state)
                state.save(checkpoints)
        except (UserError, OSError) as error:  # a loss is no longer finite, or the disk is full
            last = checkpoint.newest(checkpoints)
            reason = str(error)
            if isinstance(error, OSError):
                reason = f"cannot write {error.filename or self.folder}: {one_line(error)}"
            with contextlib.suppress(OSError):
                (self.folder / STOPPED).write_text(f"{reason}\n", encoding="utf-8")
            raise UserError(f"{reason}; the last good checkpoint is {last or 'none yet'}") from None

    def _startup(self) -> float:
        """Seconds from the opening of the run to its first step, which a budget of time includes: the trial of what is
        fastest, and what is built and written before. At most half of it, so that something is trained."""
        took, seconds = time.perf_counter() - self._began, Budget.parse(self.config.budget).seconds
        return took if seconds is None else min(took, seconds / 2)

    def finish(self, save: Callable[[Path], object]) -> None:
        """Has the finished model written, and the run's page; what stood for the model meanwhile goes."""
        from carrara.training.run_page import write_report

        with self._held():
            save(self.model)
            shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
            try:
                write_report(self.folder)
            except UserError as error:
                raise UserError(f"{error}; the model is complete") from None

    @contextmanager
    def _held(self) -> Iterator[list[str]]:
        """The run's folder for this process alone, made where it is missing; with what to say of it."""
        held = None
        try:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held = lock(self.folder)
                notes = self._begin()
            except OSError as error:
                last = checkpoint.newest(self.folder / CHECKPOINTS)
                raise UserError(
                    f"cannot write {self.folder}: {one_line(error)}; "
                    f"the last good checkpoint is {last or 'none yet'}"
                ) from None
            yield notes
        finally:
            if held is not None:
                os.close(held)

    def _resume(self, state: TrainingState) -> list[str]:
        """Takes up the newest checkpoint that can be read and fits; others get another name, and a note each.

        UserError where there are some but none does.
        """
        damaged: list[UserError] = []
        for path in reversed(checkpoint.all_of(self.folder / CHECKPOINTS)):
            try:
                state.restore(path)
            except UserError as error:  # it is damaged, or its tensors are not those of this recipe
                damaged.append(error)
                continue
            for bad in checkpoint.all_of(self.folder / CHECKPOINTS):
                if bad > path:
                    set_aside(bad)
            return [f"{error}; going on from {path.name}, the one before" for error in damaged]
        if damaged:
            raise damaged[0]
        return []


def trained_on(folder: Path) -> str:
    """How the run computes, as its trial found, or "" where it did not say."""
    with contextlib.suppress(KeyError, TypeError):
        return str((noted(folder) or {})["placement"]["why"])
    return ""
