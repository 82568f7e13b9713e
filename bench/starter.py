"""Makes the starter of a finished run: its model with weights in 16 bits, and how many prompts it obeys.

    python bench/starter.py RUN DATA [--out src/carrara/starter]

docs/starter.md has the commands that trained it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from carrara.dataset.dataset import Dataset
from carrara.generation.model import load_model
from carrara.generation.sample import Settings
from carrara.model_folder import read_weights, write_folder, write_weights
from carrara.training.fastest import fastest_sampling
from quickstart import obeyed

LANGUAGES = ("en", "de", "zh", "fr")
ATTRIBUTION = "Twemoji graphics, copyright Twitter, Inc and other contributors, CC-BY 4.0"


def halve(model: Path, out: Path, measured: dict[str, float]) -> None:
    """Writes ``out``: everything of the model, floats as float16, what was measured in its passport."""

    def fill(part: Path) -> None:
        shutil.copytree(model, part, dirs_exist_ok=True)
        for file in part.rglob("*.safetensors"):
            weights = read_weights(file)
            write_weights(file, {k: v.half() if v.dtype == torch.float32 else v for k, v in weights.items()})
        passport = json.loads((part / "passport.json").read_text())
        passport |= {"measured": measured, "attribution": ATTRIBUTION}
        (part / "passport.json").write_text(json.dumps(passport, indent=2, ensure_ascii=False) + "\n")

    write_folder(out, fill)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("run", type=Path)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--out", type=Path, default=Path("src/carrara/starter"))
    given = arguments.parse_args()
    halve(given.run / "model", given.out, {})
    model = fastest_sampling(load_model(given.out), [{}] * 16, Settings())
    share, by_language = obeyed(model, Dataset.open(given.data), Settings().guidance, LANGUAGES, prompts=192)
    found = {"obeyed": round(share, 3)} | {f"obeyed in {k}": round(v, 3) for k, v in by_language.items()}
    halve(given.run / "model", given.out, found)
    size = sum(file.stat().st_size for file in given.out.rglob("*") if file.is_file())
    print(f"{given.out}: {size / 1e6:.2f} MB, {found}")


if __name__ == "__main__":
    main()
