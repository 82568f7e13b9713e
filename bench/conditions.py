"""Whether the conditions of finished models are obeyed: a number for each, and a picture.

    python bench/conditions.py runs/layout=data/scenes runs/superres=data/emoji [--plates docs/images]

Each argument is a run of stage two, or its model folder, and the data set that it is measured on: held-out pictures
of it say what is asked for. Figures of several runs lie in one file; a condition measured again replaces its own.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.evaluation.condition_following import Finding, Trial, measure
from carrara.generation.model import load_model
from carrara.generation.sample import settings_for
from carrara.metrics.features import load_features
from carrara.terminal import clock
from carrara.training.devices import Placement

LARGEST = 300_000  # bytes of a plate


def trial(run: Path, data: Path, given: argparse.Namespace, placement: Placement) -> Trial:
    """The model on its device with what it is measured on; without guidance where nothing was left out in training."""
    folder = run / "model" if (run / "model").is_dir() else run
    model = load_model(folder)
    for part in (model.network, model.conditions, model.autoencoder.module):
        placement.place(part)
    never_left_out = all(condition.dropout == 0 for condition in model.config.conditions.values())
    guidance = 1.0 if given.guidance is None and never_left_out else given.guidance
    settings = settings_for(model, {"seed": given.seed, "steps": given.steps, "guidance": guidance})
    features = load_features(given.weights, side=given.side).to(placement.device)
    return Trial(
        model,
        Dataset.open(data),
        features,
        settings,
        given.pictures,
        given.references,
        given.lessons,
        given.batch,
        placement.autocast,
    )


def shown(finding: Finding) -> None:
    """The figures as a table: what was measured in rows, the measures in columns."""
    measures = list(dict.fromkeys(name for row in finding.figures.values() for name in row))
    width = max(map(len, finding.figures))
    print(f"{finding.condition:{width}}  " + "  ".join(f"{name:>10}" for name in measures))
    for subject, row in finding.figures.items():
        cells = ((f"{row[name]:.3f}" if name in row else "", max(10, len(name))) for name in measures)
        print(f"{subject:{width}}  " + "  ".join(f"{cell:>{wide}}" for cell, wide in cells))
    print("  " + ", ".join(f"{name} {value:.3g}" for name, value in finding.details.items()))


def keep(finding: Finding, about: dict[str, Any], out: Path) -> None:
    """Adds the figures to those in the file, which is replaced as a whole."""
    known = json.loads(out.read_text()) if out.is_file() else {}
    figures = {
        subject: {name: round(value, 4) if math.isfinite(value) else None for name, value in row.items()}
        for subject, row in {**finding.figures, "details": finding.details}.items()
    }
    known[finding.condition] = {**about, **figures}
    write(json.dumps(known, indent=1, ensure_ascii=False).encode() + b"\n", out)


def draw(finding: Finding, out: Path) -> None:
    """The plate, with 256 colours where it would be too large."""
    for image in (finding.plate, finding.plate.quantize(256)):
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        if file.tell() <= LARGEST:
            break
    write(file.getvalue(), out)


def write(data: bytes, out: Path) -> None:
    """Whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_bytes(data)
    part.replace(out)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("pairs", nargs="+", metavar="RUN=DATA")
    arguments.add_argument("--pictures", type=int, default=256, help="made and compared with, at most")
    arguments.add_argument("--references", type=int, default=2000, help="real pictures that teach the judges")
    arguments.add_argument("--lessons", type=int, default=400, help="steps of the judge that reads maps")
    arguments.add_argument("--guidance", type=float, help="1 is off; the default is that of `carrara sample`")
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--side", type=int, default=224, help="pixels that features are taken at")
    arguments.add_argument("--weights", type=Path, help="of EfficientNet-Lite0, where not installed")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--out", type=Path, default=Path("bench/results/conditions.json"))
    arguments.add_argument("--plates", type=Path, help="a folder for one picture a condition")
    given = arguments.parse_args()
    placement = Placement.choose(given.device)
    for pair in given.pairs:
        run, _, data = pair.partition("=")
        if not data:
            arguments.error(f"expected RUN=DATA, not {pair!r}")
        start = time.monotonic()
        one = trial(Path(run), Path(data), given, placement)
        for finding in measure(one):
            about = {
                "device": str(placement),
                "data": Path(data).name,
                "settings": one.settings.model_dump(exclude_none=True),
                "pictures": given.pictures,
                "references": given.references,
                "protocol": one.features.protocol,
                "trained": one.model.passport.get("seen"),
            }
            shown(finding)
            keep(finding, about, given.out)
            if given.plates:
                draw(finding, given.plates / f"condition-{finding.condition}.png")
        print(f"{run}: {clock(time.monotonic() - start)}\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"conditions.py: {error}")
