"""Small pictures that differ, and folders of them."""

import io
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image


def png(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB", **save: object) -> bytes:
    draw = random.Random(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    picture = Image.frombytes(mode, size, draw.randbytes(size[0] * size[1] * channels))
    file = io.BytesIO()
    picture.save(file, **{"format": "PNG", **save})  # type: ignore[arg-type]
    return file.getvalue()


@pytest.fixture
def make_png() -> Callable[..., bytes]:
    return png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty captioned pictures, x0.png … x29.png."""
    root = tmp_path / "source"
    root.mkdir()
    for k in range(30):
        (root / f"x{k}.png").write_bytes(png(k))
        (root / f"x{k}.txt").write_text(f"picture number {k}\n")
    return root


@pytest.fixture
def start_python() -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    """Runs a program that imports carrara in a process of its own, which a test may kill."""
    started = []

    def start(program: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-W", "error", "-c", program]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
