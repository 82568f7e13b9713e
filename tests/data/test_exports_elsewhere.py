"""Each export opened by the program that it is for, and compared picture by picture, with its words and its split."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from carrara.dataset.dataset import Dataset
from carrara.exporting.exporting import export_pictures
from carrara.importing.importing import import_pictures

from .conftest import png

Rows = list[tuple[bytes, str | None, str]]  # pixels, caption, split

LAYOUTS = {
    "each with a text": lambda k: ("png", True),  # so many texts as pictures
    "some without": lambda k: ("png", k % 2 == 0),
    "of several formats": lambda k: (("png", "bmp", "gif")[k % 3], True),
    "without texts": lambda k: ("png", False),
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    (source := tmp_path / "source").mkdir()
    lines = []
    for k in range(6):
        suffix, captioned = request.param(k)
        Image.open(io.BytesIO(png(k))).save(source / f"{k}.{suffix}")
        if captioned:
            (source / f"{k}.txt").write_text(f"picture „{k}“")
        lines.append({"file_name": f"{k}.{suffix}", "split": "test" if k in (1, 4) else "train"})
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (source / "5.map.png").write_bytes(png(9, (12, 10), "L"))
    list(import_pictures(source, tmp_path / "data", languages="keep"))
    return Dataset.open(tmp_path / "data")


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Hugging Face's library, which asks nobody and keeps what it makes here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = pytest.importorskip("datasets")
    found.disable_progress_bars()
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def pixels(picture: Image.Image) -> bytes:
    return picture.convert("RGB").tobytes()


def expected(dataset: Dataset) -> Rows:
    values = dataset.arrow(["image", "caption", "split"]).to_pylist() if "caption" in dataset.columns else []
    return [(pixels(Image.open(io.BytesIO(v["image"]))), v["caption"], v["split"]) for v in values]


def rows(table: Any) -> Rows:
    return [(pixels(row["image"]), row.get("text"), row["split"]) for row in table]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_load_dataset(form: str, dataset: Dataset, datasets: Any, tmp_path: Path) -> None:
    list(export_pictures(dataset, tmp_path / "out", form))
    found = datasets.load_dataset(str(tmp_path / "out"))
    assert list(found) == ["train"]
    assert rows(found["train"]) == expected(dataset)
    list(import_pictures(tmp_path / "out", tmp_path / "again"))
    assert Dataset.open(tmp_path / "again").column("split") == dataset.column("split")
    assert (tmp_path / "again" / "rejected.jsonl").read_text() == ""


@pytest.mark.filterwarnings("ignore")
def test_load_from_disk(dataset: Dataset, datasets: Any, tmp_path: Path) -> None:
    list(export_pictures(dataset, tmp_path / "out", "hf"))
    assert rows(datasets.load_from_disk(str(tmp_path / "out"))) == expected(dataset)


@pytest.mark.filterwarnings("ignore")
def test_webdataset(dataset: Dataset, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    list(export_pictures(dataset, tmp_path / "out", "webdataset"))
    (tar,) = (tmp_path / "out").glob("*.tar")
    found = []
    for sample in wds.WebDataset(str(tar), shardshuffle=False):
        (image,) = (sample[suffix] for suffix in ("png", "bmp", "gif") if suffix in sample)
        text = sample["txt"].decode() if "txt" in sample else None
        found.append((pixels(Image.open(io.BytesIO(image))), text, json.loads(sample["json"])["split"]))
    assert found == expected(dataset)
