"""A folder of pictures, a caption beside each, and all that is said of them in ``metadata.jsonl``."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from carrara.exporting.exporting import Picture, suffix_of
from carrara.files import replacing
from carrara.importing.file_listing import DATASETS_FILE

FOLDER_ROWS = 1000
_TABLE = "metadata.jsonl"
_LINES = "*.lines"  # what it will hold of each folder


def write(pictures: Iterator[Picture], columns: tuple[str, ...], folder: Path, number: int) -> Iterator[int]:
    """``000000/000000000.png`` and so on, a thousand a folder; the text beside is for programs that read no table."""
    inside = folder / f"{number:06d}"
    inside.mkdir()
    with open(folder / f"{inside.name}.lines", "w", encoding="utf-8") as table:
        for done, picture in enumerate(itertools.islice(pictures, FOLDER_ROWS), 1):
            stem = f"{picture.number:09d}"
            (inside / f"{stem}.{picture.suffix}").write_bytes(picture.image)
            for kind, data in picture.beside.items():
                (inside / f"{stem}.{kind}.{suffix_of(data)}").write_bytes(data)
            if caption := picture.caption():
                (inside / f"{stem}.txt").write_bytes(caption.encode())
            line = {"file_name": f"{inside.name}/{stem}.{picture.suffix}", **picture.document()}
            table.write(json.dumps(line, ensure_ascii=False) + "\n")
            yield done


def finish(folder: Path, columns: tuple[str, ...], digest: str) -> None:
    """One table of all; their lines go when it is whole. `datasets` is told which files are the pictures: as many texts
    as pictures it would take for a set of texts."""
    files = (entry.name for inside in folder.iterdir() if inside.is_dir() for entry in os.scandir(inside))
    suffixes = sorted({name.rpartition(".")[2] for name in files} - {"txt"})
    paths = [_TABLE, *(f"*/*.{suffix}" for suffix in suffixes)]
    split = {"split": "train", "path": paths}  # the one it has for all; the column says which is held out
    configs = {"configs": [{"config_name": "default", "data_files": [split]}]}
    (folder / DATASETS_FILE).write_text(json.dumps(configs, indent=2), encoding="utf-8")  # as YAML goes, too
    if not (folder / _TABLE).exists():
        with replacing(folder / _TABLE) as table:
            for lines in sorted(folder.glob(_LINES)):
                with open(lines, "rb") as some:
                    shutil.copyfileobj(some, table)
    for lines in folder.glob(_LINES):
        lines.unlink()
