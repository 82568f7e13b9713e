"""Averages of any length after training, from stored ones of two lengths (Karras et al. 2024, section 3.2).

A power-function average of length l at time t weighs the weights at time s <= t by p(s) = (g + 1) s^g / t^(g + 1),
g a function of l (`ema.power_of`). Snapshots of two such averages, taken now and then while training goes on, are
so many of these profiles: their least-squares combination comes close to the profile of any other length.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from carrara.errors import UserError
from carrara.files import json_object, set_aside
from carrara.model_folder import check_hash, write_folder, write_weights
from carrara.training import checkpoint
from carrara.training.checkpoint import TrainingState
from carrara.training.ema import power_of
from carrara.training.recipe import written

_ABOUT = "snapshot.json"
TOLERANCE = (
    0.1  # largest distance between the profile asked for and what the snapshots give, relative to its norm
)


class Snapshot(NamedTuple):
    """The averages at one moment of a training: a folder with a safetensors file for each length."""

    path: Path
    step: int
    seen: int
    lengths: tuple[float, ...]


class Fit(NamedTuple):
    """What to multiply each stored average with (float64, they sum to 1), and how far the profile is off."""

    shares: Tensor
    error: float


class Snapshots:
    """Stores the averages of a run's ``posthoc`` lengths at regular points of its budget."""

    def __init__(self, folder: Path, state: TrainingState) -> None:
        """Those after ``state.step`` are of steps that a kill undid: they are removed, and will be made again.

        Damaged ones are set aside; ``notes`` say so.
        """
        self._folder, self._count = folder, state.config.snapshots
        self._lengths = state.config.posthoc
        self._due = _due(state, self._count)
        self.notes = list[str]()
        for path in checkpoint.all_of(folder):
            try:
                if _opened(path).step > state.step:
                    shutil.rmtree(path, ignore_errors=True)
            except UserError as error:
                self.notes.append(f"{error}, and is {set_aside(path).name} now")

    def after(self, state: TrainingState) -> None:
        """After each step: stores them where another part of the budget is done."""
        if (due := _due(state, self._count)) > self._due:
            self._due = due
            self.store(state)

    def store(self, state: TrainingState) -> None:
        """Stores them now, whole or not at all; UserError on a full disk."""
        path = self._folder / f"{state.step:012d}"
        if not self._lengths or path.is_dir():
            return

        def fill(part: Path) -> None:
            for length in self._lengths:
                tensors = {
                    f"{name}.{key}": _halved(value)
                    for name, ema in state.averages_of(length).items()
                    for key, value in ema.average.items()
                }
                write_weights(part / f"{written(length)}.safetensors", tensors)
            about = {"step": state.step, "seen": state.seen, "lengths": self._lengths}
            (part / _ABOUT).write_text(json.dumps(about))

        write_folder(path, fill)


def _due(state: TrainingState, count: int) -> int:
    return int(state.fraction * count + 1e-9)


def _halved(value: Tensor) -> Tensor:
    """In float16, which keeps three digits of what weights usually are; as it is where that cannot hold it."""
    half = value.half()
    return half if bool(half.isfinite().all()) else value


def snapshots(folder: Path) -> list[Snapshot]:
    """The whole snapshots under a folder, the oldest first."""
    return [_opened(path) for path in checkpoint.all_of(folder)]


def _opened(path: Path) -> Snapshot:
    try:
        check_hash(path / _ABOUT)
        about = json_object((path / _ABOUT).read_bytes()) or {}
        return Snapshot(path, int(about["step"]), int(about["seen"]), tuple(map(float, about["lengths"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the snapshot {path} is damaged: {error}") from None


def fit(stored: Sequence[tuple[int, float]], step: int, length: float) -> Fit:
    """The combination of ``stored`` averages (their step and length) closest to that of ``length`` at ``step``.

    Least squares between profiles (their section C.2), under the condition that the shares sum to 1: what all
    weights of a training have in common is then kept exactly.
    """
    times = torch.tensor([at for at, _ in stored], dtype=torch.float64) / step
    powers = torch.tensor([power_of(own) for _, own in stored], dtype=torch.float64)
    one, power = torch.ones(1, dtype=torch.float64), torch.tensor([power_of(length)], dtype=torch.float64)
    gram, wanted = _products(powers, times, powers, times), _products(powers, times, power, one)[:, 0]
    norms, norm = gram.diagonal().sqrt(), _products(power, one, power, one)[0, 0].sqrt()
    gram, wanted = gram / (norms[:, None] * norms), wanted / (norms * norm)
    # A Lagrange multiplier holds the sum of the shares, which are what is solved for times this:
    condition = norm / norms
    size = len(stored)
    system = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    system[:size, :size], system[:size, size], system[size, :size] = gram, condition, condition
    right = torch.cat([wanted, one])
    solved = torch.linalg.lstsq(system, right[:, None], rcond=1e-12, driver="gelsd").solution[:size, 0]
    error = float((1 - 2 * solved @ wanted + solved @ gram @ solved).clamp_min(0).sqrt())
    return Fit(solved * condition, error)


def _products(a: Tensor, s: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Inner products [n m] of the profiles of powers ``a [n]`` at times ``s [n]`` and ``b [m]`` at ``t [m]``.

    Their equation 151, written with the ratio of the two times so that no power overflows.
    """
    a, s = a[:, None], s[:, None]
    earlier, later = torch.minimum(s, t), torch.maximum(s, t)
    power_of_later = torch.where(s <= t, b, a)
    return (a + 1) * (b + 1) / (a + b + 1) * (earlier / later) ** power_of_later / later


def rebuild(found: Sequence[Snapshot], length: float) -> tuple[dict[str, Tensor], float]:
    """The average of ``length`` at the newest snapshot: float32 tensors by "module.parameter", and the fit's error.

    UserError where the snapshots do not give this length closely enough. One tensor is in memory at a time.
    """
    stored = [(snapshot.step, own) for snapshot in found for own in snapshot.lengths]
    if not stored:
        raise UserError("there is no snapshot yet")
    shares, error = fit(stored, found[-1].step, length)
    if error > TOLERANCE:
        lengths = " and ".join(written(own) for own in found[-1].lengths)
        raise UserError(
            f"{len(found)} snapshots of the lengths {lengths} give the length {written(length)} only to within "
            f"{error:.1%} of its profile (at most {TOLERANCE:.0%} is good); take a length nearer to those"
            + (", or wait for more snapshots" if len(found) < 16 else "")
        )
    files = [s.path / f"{written(own)}.safetensors" for s in found for own in s.lengths]
    return dict(_combined(files, shares.tolist())), error


def _combined(files: Sequence[Path], shares: Sequence[float]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    with ExitStack() as stack:
        try:
            for file in files:
                check_hash(file)
            opened = [stack.enter_context(safe_open(str(file), "pt")) for file in files]
            for name in opened[-1].keys():  # noqa: SIM118  (a handle, not a dictionary)
                total = torch.zeros((), dtype=torch.float64)
                for file, share in zip(opened, shares, strict=True):
                    total = total + file.get_tensor(name).double() * share
                yield name, total.float()
        except (OSError, SafetensorError) as error:
            raise UserError(f"a snapshot under {files[0].parents[1]} is damaged: {error}") from None
