"""Pictures with all that a page may show of them, and servers for them."""

import csv
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient
from torch import Tensor

from carrara.dataset.dataset import Dataset
from carrara.dataset.fingerprints import derive_glances
from carrara.embedders.embed_dataset import embed
from carrara.embedders.embedders import Embedder, unit
from carrara.importing.importing import import_pictures
from carrara.search.vector_columns import VectorColumn
from carrara.serving.app import browse_app
from conftest import run_out, write_pictures

HOSTILE = "<img src=x onerror=\"document.title='taken'\"> & 100% 'of' it"


def hues(images: Tensor) -> npt.NDArray[np.float32]:
    """What is not white of each channel, and a little of where."""
    dark = 1 - images.float() / 255
    return unit(torch.cat([dark.mean((2, 3)), 0.1 * dark.mean(1).flatten(1)], 1).numpy())


SEES = Embedder("sees", {"code": 1}, 67, pictures=hues, size=8)


def embedder_of(dataset: Dataset, column: VectorColumn) -> Embedder:
    return SEES


def write_source(root: Path) -> Path:
    """Twenty-four shapes with captions in two languages; some with labels, flags, addresses, boxes and maps."""
    write_pictures(root)
    with open(root / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "label", "flags", "url", "licence"])
        for place, picture in enumerate(sorted(root.glob("*.png"))):
            label = HOSTILE if place == 0 else ["disc", "", "it's 50%_"][place % 3]
            flags = ["", "rare sketch", "sketch"][place % 3]
            url = "https://example.org/a.png" if place == 0 else "javascript:alert(1)" if place == 1 else ""
            table.writerow([picture.name, label, flags, url, "CC0-1.0" if place < 20 else ""])
    entry = {"label": HOSTILE, "box": [0.1, 0.2, 0.5, 0.25]}
    (root / "red-disc-0.boxes.json").write_text(json.dumps([entry]))
    numbers = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20) % 3)
    numbers.save(root / "red-disc-0.map.png")
    (root / "red-disc-0.ar.txt").write_text("قرص أحمر\n", encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("browsed") / "shapes")


@pytest.fixture(scope="session")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Imported, with features and glances. Tests do not change it."""
    path = tmp_path_factory.mktemp("browsed") / "shapes-data"
    run_out(import_pictures(str(source), path, held_out=0.2))
    dataset = Dataset.open(path)
    run_out(embed(dataset, SEES, "image"))
    run_out(derive_glances(dataset))
    return dataset


def asker(app: FastAPI) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1:8000")


@pytest.fixture(scope="session")
def client(data: Dataset) -> Iterator[TestClient]:
    with asker(browse_app(data.path, embedder_of=embedder_of)) as client:
        yield client


@pytest.fixture(scope="session")
def served(data: Dataset) -> Iterator[str]:
    """The address at which a browser finds it."""
    app = browse_app(data.path, embedder_of=embedder_of)
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", access_log=False, lifespan="off", ws="none")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
