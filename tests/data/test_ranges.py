"""One range a data set for numbers that do not say what is black: chosen at the import, kept, never guessed."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.dataset import ranges
from carrara.dataset.dataset import Dataset
from carrara.dataset.subset import subset
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from carrara.importing.summary import Summary, kinds
from glances import all_glanced


def floats(path: Path, value: float, far: float) -> None:
    """Half of it ``value``, half ``far``."""
    numbers = np.full((32, 32), value, np.float32)
    numbers[:, 16:] = far
    Image.fromarray(numbers).save(path, "TIFF")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two pictures with their depth in metres: the first near, the second far away on its right."""
    root = tmp_path / "scenes"
    root.mkdir()
    for k, far in enumerate((0.9, 40.0)):
        Image.new("RGB", (32, 32), (k, 90, 9)).save(root / f"{k}.png")
        floats(root / f"{k}.depth.tif", 0.8, far)
    return root


def run(source: Path, destination: Path, *spans: str, **options: Any) -> tuple[Dataset, Summary]:
    *_, last = import_pictures(source, destination, range=spans, **options)
    assert last.summary is not None
    return Dataset.open(destination), last.summary


def test_one_depth_is_one_number_in_every_picture(scenes: Path, tmp_path: Path) -> None:
    dataset, summary = run(scenes, tmp_path / "d", "depth=0..40")
    found = dataset.beside([0, 1], "depth", 32).to(torch.int64)
    assert found[:, 0, 9, 9].tolist() == [round(0.8 / 40 * 65535)] * 2
    assert found[1, 0, 9, 20] == 65535
    assert any("depth 0 … 40" in line for line in summary.lines())
    copy = subset(
        subset(dataset, np.array([1]), tmp_path / "e", why="a"), np.array([0]), tmp_path / "f", why="b"
    )
    assert torch.equal(copy.beside([0], "depth", 32), dataset.beside([1], "depth", 32))
    assert dataset.hash != run(scenes, tmp_path / "g", "depth=0..50")[0].hash


def test_without_a_range_what_lies_beyond_is_left_out_and_says_what_to_do(
    scenes: Path, tmp_path: Path
) -> None:
    dataset, summary = run(scenes, tmp_path / "d")
    assert len(dataset) == 2
    (reason,) = summary.reasons
    assert "holds numbers from 0.8 to 40" in reason
    assert "--range LOW..HIGH" in reason
    assert dataset.beside([0], "depth", 32)[0, 0, 9, 9].item() == round(0.8 * 65535)
    with pytest.raises(UserError, match="a range is chosen at the first import"):
        run(scenes, tmp_path / "d", "depth=0..40")


def test_what_lies_beyond_is_one_reason_whatever_its_numbers(tmp_path: Path) -> None:
    root = tmp_path / "s"
    root.mkdir()
    for k in range(4):
        floats(root / f"{k}.tif", 0.5, 1.5 + k)
    Image.new("L", (32, 32)).save(root / "x.png")
    dataset, summary = run(root, tmp_path / "d")
    ((reason, count),) = summary.reasons.items()
    assert count == summary.rejected == 4
    assert (
        "holds numbers from 0.5 to …, out of the range: 32-bit floating-point numbers are read as 0 … 1"
        in reason
    )
    listed = (dataset.path / "rejected.jsonl").read_text()
    assert all(f"to {1.5 + k:g}, out" in listed for k in range(4))


def test_the_summary_counts_every_line_that_is_listed(tmp_path: Path) -> None:
    root = tmp_path / "s"
    root.mkdir()
    for k in range(3):
        Image.new("L", (32, 32), k % 2).save(root / f"{k}.png")  # one is a copy
        floats(root / f"{k}.tif", 0.5, 0.5 + k)  # one is in the range
        (root / f"{k}.doc").write_text("no picture")
    floats(root / "0.png.depth.tif", 5, 50)
    *reports, last = import_pictures(root, tmp_path / "d", range=("depth=0..40",))
    assert last.summary is not None
    told = " ".join(last.summary.lines())
    listed = (tmp_path / "d" / "rejected.jsonl").read_text().splitlines()
    assert (len(listed), last.rejected, reports[-1].rejected) == (7, 5, 5)
    assert "5 skipped, listed in rejected.jsonl" in told
    assert "1 was already there under another name (listed in rejected.jsonl, too)" in told
    assert "with a remark in rejected.jsonl: 1 x its numbers from 5 to 50 are clipped" in told


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (["cut off: 5 of 9 bytes", "cut off: 6 of 9 bytes"], {"cut off: … of 9 bytes": 2}),
        (["has split 'a'; say 'train'", "has split 'b'; say 'train'"], {"has split …; say 'train'": 2}),
        (["from -1e+30 to inf", "from -2.5 to 3"], {"from … to …": 2}),
        (["the server answered 404"] * 2 + ["the server answered 500"], None),
        (["of 16-bit floats", "of 32-bit floats", "not a picture (.mp3)", "not a picture (.mp4)"], None),
        (["its picture's size is 4", "its picture's size is 5"], {"its picture's size is …": 2}),
    ],
)
def test_reasons_add_up(reasons: list[str], expected: dict[str, int] | None) -> None:
    assert kinds(reasons) == (expected or dict(Counter(reasons)))


def test_later_imports_keep_the_range(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "d", "depth=0..40")
    with pytest.raises(UserError, match="reads 'depth' as 0 … 40"):
        run(scenes, tmp_path / "d", "depth=0..50")
    more = tmp_path / "more"
    more.mkdir()
    Image.new("RGB", (32, 32), "red").save(more / "x.png")
    floats(more / "x.depth.tif", 20, 80)
    dataset, summary = run(more, tmp_path / "d")
    assert dataset.beside([2], "depth", 32)[0, 0, 9, 9].item() in (32767, 32768)
    assert summary.remarks == {"its numbers from 20 to 80 are clipped to 0 … 40": 1}
    assert summary.rejected == 0
    assert run(more, tmp_path / "d")[1].unchanged


def test_pictures_of_floats(tmp_path: Path) -> None:
    root = tmp_path / "s"
    root.mkdir()
    for k, far in enumerate((90.0, 400.0)):
        floats(root / f"{k}.tif", 50, far)
    dataset, _ = run(root, tmp_path / "d", "0..500")
    assert dataset.pictures([0, 1], 32, 1)[:, 0, 9, 9].tolist() == [26, 26]
    assert dataset.column(all_glanced(dataset))[0] != dataset.column(all_glanced(dataset))[1]
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32), 0.5, np.float32)).save(file, "TIFF")
    (root / "x.tif").write_bytes(file.getvalue())
    assert any("1 pictures hold floats" in line for line in run(root, tmp_path / "e")[1].lines())


@pytest.mark.parametrize(
    "text", ["0", "0..", "b..2", "3..1", "0..inf", "nan..1", "map=0..3", "deth=0..1", "=0..1"]
)
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(UserError, match="--range"):
        ranges.parse([text])
