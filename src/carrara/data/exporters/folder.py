"""A folder of pictures, a caption beside each, and all that is said of them in ``metadata.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from carrara.data.exporting import Picture, suffix_of

FOLDER_ROWS = 1000


def write(pictures: Iterator[Picture], columns: tuple[str, ...], folder: Path) -> Iterator[int]:
    """``000000/000000000.png`` and so on, a thousand a folder; the text beside is for programs that read no table."""
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as table:
        for done, picture in enumerate(pictures, 1):
            inside = folder / f"{picture.number // FOLDER_ROWS:06d}"
            inside.mkdir(exist_ok=True)
            stem = f"{picture.number:09d}"
            (inside / f"{stem}.{picture.suffix}").write_bytes(picture.image)
            for kind, data in picture.beside.items():
                (inside / f"{stem}.{kind}.{suffix_of(data)}").write_bytes(data)
            if caption := picture.caption():
                (inside / f"{stem}.txt").write_bytes(caption.encode())
            line = {"file_name": f"{inside.name}/{stem}.{picture.suffix}", **picture.document()}
            table.write(json.dumps(line, ensure_ascii=False) + "\n")
            yield done
