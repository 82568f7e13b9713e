"""A model with averaged weights of any kept or reconstructed length, out of a run that may still be going on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carrara.autoencoders.stored import load_autoencoder
from carrara.errors import UserError
from carrara.generation.model import load_model
from carrara.model_folder import read_about
from carrara.tensors import under
from carrara.training import checkpoint, post_hoc_averages
from carrara.training.metrics_log import CHECKPOINTS, MODEL
from carrara.training.recipe import TrainConfig, written
from carrara.training.run import AVERAGES, UNFINISHED


class Averaged(NamedTuple):
    """Where the weights of an averaged model come from: pictures seen, and in words."""

    seen: int
    steps: int
    source: str


def write_averaged(
    run: Path, config: TrainConfig, out: Path, *, length: float | None = None, best: bool = False
) -> Averaged:
    """Writes a model folder with the average of ``length`` (that of the recipe if None); the run is only read.

    A length that the run keeps is taken from its newest checkpoint, with ``best`` from the best one; any other is
    made from its snapshots. UserError where the run has neither, or not enough.
    """
    length = config.ema if length is None else length
    base = next((run / name for name in (MODEL, UNFINISHED) if (run / name).is_dir()), None)
    if base is None:
        raise UserError(f"{run} has nothing to average yet: its training has not begun")
    saved = _saved(run, best=best)
    kept = [written(known) for known in dict.fromkeys((config.ema, *config.ema_lengths, *config.posthoc))]
    weights = saved.weights("module.")
    seen, steps = saved.seen, saved.steps
    if written(length) in kept:
        weights |= saved.weights(
            "average." if written(length) == written(config.ema) else f"average_{written(length)}."
        )
        source = saved.source
    elif best:
        raise UserError(f"the best checkpoint has the lengths {', '.join(kept)}; got {written(length)}")
    else:
        found = post_hoc_averages.snapshots(run / AVERAGES)
        if not config.posthoc:
            raise UserError(
                f"{run} keeps the lengths {', '.join(kept)} and no snapshots to make {written(length)} from; "
                "train with --set train.posthoc=[0.05,0.1] for any length"
            )
        averages, error = post_hoc_averages.rebuild(found, length)
        weights |= averages
        seen, steps = found[-1].seen, found[-1].step
        source = f"made from {len(found)} snapshots, to within {error:.1%} of its profile"
    about = {"length": length, "source": source}
    _save(base, weights, out, {"seen": seen, "steps": steps, "average": about})
    return Averaged(seen, steps, source)


def fill_best(run: Path, config: TrainConfig, modules: Mapping[str, nn.Module]) -> Averaged:
    """Gives ``modules`` the average (of the recipe's length) that did best on held-out pictures."""
    saved = _saved(run, best=True)
    _fill(modules, {**saved.weights("module."), **saved.weights("average.")})
    return Averaged(saved.seen, saved.steps, f"the best on held-out pictures, {saved.source}")


class _Saved(NamedTuple):
    path: Path
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """Those whose names begin so, by the rest of their names."""
        return under(prefix, self.tensors)

    @property
    def seen(self) -> int:
        """Pictures."""
        return int(self.numbers["seen"])

    @property
    def steps(self) -> int:
        """Of training."""
        return int(self.numbers["step"])

    @property
    def source(self) -> str:
        """In words."""
        return f"kept while training, from the checkpoint {self.path.name}"


def _saved(run: Path, *, best: bool) -> _Saved:
    """Weights and averages of a checkpoint."""
    folder = run / CHECKPOINTS / checkpoint.BEST if best else run / CHECKPOINTS
    if found := checkpoint.newest_readable(folder, only=("module.", "average")):
        return _Saved(*found)
    if best:
        raise UserError(f"{run} has no best checkpoint: nothing was measured on held-out pictures")
    raise UserError(f"{run} has no whole checkpoint yet; the first comes after train.save_every seconds")


def _save(base: Path, weights: Mapping[str, Tensor], out: Path, passport: Mapping[str, Any]) -> None:
    """``base`` with other weights and further entries in its passport, written to ``out``."""
    import dataclasses

    if read_about(base).get("kind") == "diffusion":
        model = load_model(base)
        parts = nn.ModuleDict({"network": model.network, "conditions": model.conditions})
        _fill({"denoiser": parts}, weights)
        dataclasses.replace(model, passport={**model.passport, **passport}).save(out)
    else:
        stored = load_autoencoder(base)
        _fill({"autoencoder": stored.module}, weights)
        dataclasses.replace(stored, passport={**stored.passport, **passport}).save(out)


@torch.no_grad()
def _fill(modules: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> None:
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            try:
                value.copy_(weights[f"{name}.{key}"])
            except (KeyError, RuntimeError):
                raise UserError(f"the run's weights do not fit its model: {key} differs") from None
