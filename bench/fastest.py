"""Whether the choice by trial is good: every combination measured at length, and the chosen one beside the best.

    python bench/fastest.py --run runs/quickstart [--seconds 10] [--out bench/results/fastest.json]

Run it with nothing else running. It reads a finished quickstart and trains in memory: precision, parts at once, memory
format and kernels, for a step of stage two, for sampling, and for the autoencoder there and back.
"""

from __future__ import annotations

import argparse
import itertools
import json
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from carrara.generation.model import load_model
from carrara.generation.sample import Settings
from carrara.threads import processors
from carrara.training import fastest
from carrara.training.devices import Placement
from quickstart import stage_two


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    arguments.add_argument(
        "--seconds", type=float, default=10.0, help="for all combinations of one kind of work"
    )
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    choose, result = fastest.fastest, dict[str, Any]()

    def every(base: Placement, work: fastest.Work, shapes: Any, **options: Any) -> tuple[Placement, str]:
        chosen, words = choose(base, work, shapes, **options)
        parts = sorted({1, processors()}) if options["divisible"] else [1]
        ways = [
            replace(base, bf16=bf16, parts=count, channels_last=last, own_kernels=own)
            for bf16, count, last, own in itertools.product(
                (False, True), parts, (True, False), (True, False)
            )
            if bf16 or own
        ]
        short, fastest.SECONDS = fastest.SECONDS, given.seconds
        seconds = dict(
            zip(ways, fastest.measured([partial(work, way) for way in ways], base.device), strict=True)
        )
        fastest.SECONDS = short
        found = {
            str(way): round(second, 4) for way, second in sorted(seconds.items(), key=lambda pair: pair[1])
        }
        share = seconds[chosen] / min(seconds.values())
        result[str(shapes[0])] = {"chosen": str(chosen), "times the best": round(share, 3), "seconds": found}
        print(f"{shapes[0]}: {chosen}, {share:.2f} times the best of {len(ways)}")
        for way, second in found.items():
            print(f"    {second:8.4f} s  {way}")
        return chosen, words

    fastest.fastest = every
    base, model = Placement.choose(), load_model(given.run / "model")
    task, state, batches = stage_two(given.run, base)
    with closing(batches):
        fastest.fastest_training(task, next(batches), base, state.config)
    fastest.fastest_sampling(model.to(base.device), [{}] * 16, Settings())
    fastest.fastest_encoding(model.autoencoder, base)
    if given.out:
        given.out.write_text(json.dumps({"processors": processors(), "kinds": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
