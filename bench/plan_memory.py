"""How far `carrara plan` is off: the memory it foretells against the peak of real steps, a process a recipe.

    python bench/plan_memory.py                      the small recipes, on random data of the right shapes
    python bench/plan_memory.py ddpm --set train.batch=64

On a CPU the peak is what the process holds at most (ru_maxrss) less what it held before the network was made; on a
GPU it is what the caching allocator held.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from contextlib import closing
from itertools import islice

import torch

from carrara.recipes.catalogue import named
from carrara.training.checkpoint import TrainingState
from carrara.training.devices import Placement
from carrara.training.disk_and_memory import Subject
from carrara.training.loop import train
from carrara.training.memory_estimate import imagine
from carrara.training.plan import _rehearsal
from carrara.training.trial import random_batches

CASES = (
    ("ddpm", []),
    ("ddpm", ["train.batch=96"]),
    ("kl_autoencoder", ["train.batch=64"]),
    ("class_ldm", []),
    ("text_ldm", ["train.batch=64"]),
    ("text_ldm", ["train.batch=64", "train.checkpointing=true"]),
)
STEPS = 4


def subject_of(name: str, changes: list[str]) -> Subject:
    """The recipe, on latents of 4 x 16 x 16 where it works on latents."""
    return Subject.of(named(name, changes), None, None, (4, 16, 16))


def real(name: str, changes: list[str]) -> int:
    """Bytes at the peak of a few steps in this process."""
    subject = subject_of(name, changes)
    config = subject.recipe.train.model_copy(update={"budget": f"{STEPS}steps"})
    placement = Placement.choose(precision=config.precision)
    tiny = torch.nn.Conv2d(8, 8, 3).to(placement.device)
    tiny(torch.ones(1, 8, 8, 8, device=placement.device)).sum().backward()  # wakes the libraries
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    task = _rehearsal(subject, placement)[0]()
    state = TrainingState(task.modules, config, placement)
    with closing(random_batches(config.batch)) as batches:
        for _ in islice(train(task, batches, state), STEPS):
            pass
    if placement.device.type == "cuda":
        return int(torch.cuda.max_memory_reserved())
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def foretold(name: str, changes: list[str]) -> int:
    """Bytes at the peak by `carrara plan`."""
    subject = subject_of(name, changes)
    config = subject.recipe.train
    placement = Placement.choose(precision=config.precision)
    step = imagine(_rehearsal(subject, placement)[0], config, placement)
    return step.peak(config.batch // config.accumulate, config.accumulate)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--set", dest="change", action="append", default=[])
    parser.add_argument("--real", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.real:
        print(json.dumps(real(given.recipe, given.change)))
        return
    cases = [(given.recipe, given.change)] if given.recipe else CASES
    for name, changes in cases:
        sets = [part for change in changes for part in ("--set", change)]
        child = subprocess.run(
            [sys.executable, __file__, name, "--real", *sets], stdout=subprocess.PIPE, text=True, check=True
        )
        found, told = json.loads(child.stdout), foretold(name, changes)
        print(
            f"{name:18} {' '.join(changes):46} foretold {told / 1e6:7.0f} MB, real {found / 1e6:7.0f} MB "
            f"({told / found - 1:+.0%})"
        )


if __name__ == "__main__":
    main()
