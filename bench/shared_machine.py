"""What is left of a training's rate beside busy programs: parts of a batch at once, and threads inside operations.

    python bench/shared_machine.py --run runs/quickstart [--seconds 12] [--out bench/results/shared_machine.json]

Run it with nothing else running. It reads a finished quickstart, trains in memory, and starts and ends the busy
programs itself (loops that stop by themselves after ten minutes).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from carrara.threads import processors
from carrara.training.devices import Placement
from carrara.training.loop import train
from quickstart import stage_two

LOOP = "import time; until = time.monotonic() + 600\nwhile time.monotonic() < until: pass"


@contextmanager
def busy(count: int, own: bool) -> Iterator[None]:
    """So many other programs, each of which would use a whole core; Linux shares out cores by session first."""
    started = [subprocess.Popen([sys.executable, "-c", LOOP], start_new_session=own) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def rates(run: Path, placement: Placement, seconds: float, own: bool) -> list[float]:
    """Pictures per second alone, beside one, beside two, and alone again."""
    task, state, batches = stage_two(run, placement)
    found = []
    with closing(batches):
        reports = train(task, batches, state)
        for _ in range(4):
            next(reports)
        for count in (0, 1, 2, 0):
            with busy(count, own):
                next(reports)
                start, seen = time.perf_counter(), state.seen
                while time.perf_counter() - start < seconds:
                    next(reports)
                found.append((state.seen - seen) / (time.perf_counter() - start))
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    arguments.add_argument("--seconds", type=float, default=12.0)
    arguments.add_argument("--precision", choices=["fp32", "bf16"], nargs="+", default=["fp32", "bf16"])
    arguments.add_argument(
        "--same-session", action="store_true", help="busy programs as if started from the same shell"
    )
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    result = {}
    for precision in given.precision:
        base = Placement.choose(precision=precision)
        for parts in (processors(), 1):
            placement = Placement(base.device, base.bf16, parts)
            alone, one, two, again = rates(given.run, placement, given.seconds, not given.same_session)
            most = max(alone, again)
            kind = f"{precision}, {f'{parts} parts' if parts > 1 else 'threads inside'}"
            result[kind] = {
                "alone": round(most, 1),
                "beside one": round(one / most, 3),
                "beside two": round(two / most, 3),
            }
            beside = f"{one / most:4.0%} beside one busy program, {two / most:4.0%} beside two"
            print(f"{kind:22} {most:6.1f} pictures/s alone, {beside}")
    if given.out:
        given.out.write_text(json.dumps({"processors": processors(), "rates": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
