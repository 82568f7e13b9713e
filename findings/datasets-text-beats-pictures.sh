#!/usr/bin/env bash
# load_dataset of a folder in which every picture has its caption beside it (1.png, 1.txt) gives the captions' lines and
# no pictures, without a word: the builder is that of the commonest suffix, and on a tie text is preferred. One picture
# more than texts, and it gives pictures without captions.
#
# datasets 5.2.0. Seen: 2 pictures and 2 texts: ['text']; 3 pictures and 2 texts: ['image']
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'datasets==5.2.0' 'pillow==13.0.0'
HF_HUB_OFFLINE=1 HF_HOME="$work/home" "$work/venv/bin/python" - "$work" <<'PY'
import sys
from pathlib import Path

from datasets import load_dataset
from PIL import Image

found = []
for pictures in (2, 3):
    folder = Path(sys.argv[1]) / str(pictures)
    folder.mkdir()
    for k in range(pictures):
        Image.new("RGB", (4, 4)).save(folder / f"{k}.png")
    for k in range(2):
        (folder / f"{k}.txt").write_text(f"caption {k}\n")
    found.append(load_dataset(str(folder), split="train").column_names)
print("2 pictures and 2 texts:", found[0], " 3 pictures and 2 texts:", found[1])
assert found == [["text"], ["image"]], found
PY
