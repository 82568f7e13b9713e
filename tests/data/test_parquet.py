"""Parquet files come in by the columns that people really give them; what is damaged in them is skipped."""

import io
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from carrara.importing.summary import Summary

NAMES = ["plane", "car", "bird"]


def jpeg(make_png: Callable[..., bytes], seed: int) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(make_png(seed, (32, 32)))).save(file, "JPEG")
    return file.getvalue()


def take_in(source: Path, destination: Path, **options: Any) -> tuple[Dataset, Summary]:
    *_, last = import_pictures(source, destination, **options)
    assert last.summary is not None
    return Dataset.open(destination), last.summary


@pytest.fixture
def cifar(tmp_path: Path, make_png: Callable[..., bytes]) -> Path:
    """Sixty rows shaped as CIFAR-10 is handed on, in several row groups."""
    rows = [
        {
            "image": jpeg(make_png, k),
            "label": k % 3,
            "class_name": NAMES[k % 3],
            "split": "test" if k >= 50 else "train",
        }
        for k in range(60)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "cifar.parquet", row_group_size=16)
    return tmp_path / "cifar.parquet"


def test_bytes_labels_and_splits(cifar: Path, tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    dataset, summary = take_in(cifar, tmp_path / "data", licence="MIT")
    assert (summary.added, summary.held_out, summary.labels, summary.captions) == (60, 10, 3, {})
    assert dataset.column("source") == [f"cifar.parquet:{k}" for k in range(60)]
    assert dataset.column("label") == [NAMES[k % 3] for k in range(60)]
    assert dataset.column("split") == ["train"] * 50 + ["held_out"] * 10
    assert dataset.take([7], ["image"])["image"] == [jpeg(make_png, 7)]
    assert set(dataset.column("licence")) == {"MIT"}
    assert take_in(cifar, tmp_path / "data", licence="MIT")[1].unchanged


def test_a_folder_as_hugging_face_writes_it(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    """Structs of bytes and path, classes named in the metadata, splits in the files' names."""
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_text("words")
    for number, file in enumerate(
        ["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"]
    ):
        rows = [
            {
                "image": {"bytes": make_png(10 * number + k), "path": f"{k}.png"},
                "label": k % 3,
                "TEXT": f"picture {k}",
                "caption_de": f"Bild {k}",
                "width": 12,
            }
            for k in range(4)
        ]
        table = pa.Table.from_pylist(rows).replace_schema_metadata(about)
        pq.write_table(table, folder / f"{file}.parquet")
    dataset, summary = take_in(tmp_path / "hub", tmp_path / "data")
    assert summary.captions == {"und": 12, "de": 12}
    assert dataset.column("split") == ["train"] * 8 + ["held_out"] * 4
    assert dataset.column("label")[:4] == ["plane", "car", "bird", "plane"]
    assert dataset.column("caption_de")[5] == "Bild 1"
    assert dataset.column("source")[4] == "data/train-00001-of-00002.parquet:0"


def test_other_columns(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    """A column of any name where it is the only one of bytes; labels as words; numbers without names."""
    rows = [
        {"pixels": make_png(k), "label": "left" if k else None, "caption": f"c{k}", "n": 1} for k in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    dataset, _ = take_in(tmp_path / "a.parquet", tmp_path / "data")
    assert dataset.column("label") == [None, "left", "left"]
    assert dataset.column("caption") == ["c0", "c1", "c2"]
    pq.write_table(pa.table({"image": [make_png(9)], "label": [4]}), tmp_path / "b.parquet")
    assert take_in(tmp_path / "b.parquet", tmp_path / "numbers")[0].column("label") == ["4"]


def notes(destination: Path) -> dict[str, str]:
    lines = (destination / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["file"]: entry["reason"] for entry in map(json.loads, lines)}


def named(names: list[str]) -> dict[bytes, bytes]:
    """Metadata that names the numbers of a label, as Hugging Face writes it."""
    return {b"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}}).encode()}


def test_categories_and_numbers_with_holes(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    """As pandas writes them: texts as a dictionary, whole numbers as doubles."""
    columns = {
        "image": pa.array([make_png(k) for k in range(4)]),
        "caption": pa.array(["red", "blue", "red", None]).dictionary_encode(),
        "split": pa.array(["test", "train", "train", "train"]).dictionary_encode(),
        "label": pa.array([0.0, None, 2.0, float("nan")]),
        "group": pa.array([5.0, 5.0, None, 6.0]),
    }
    for names, want in ((NAMES, ["plane", None, "bird", None]), ([], ["0", None, "2", None])):
        folder = tmp_path / f"{len(names)} names"
        folder.mkdir()
        pq.write_table(pa.table(columns, metadata=named(names)), folder / "a.parquet")
        dataset, summary = take_in(folder / "a.parquet", folder / "data")
        assert pq.ParquetFile(folder / "a.parquet").schema_arrow.field("caption").type == pa.dictionary(
            pa.int32(), pa.string()
        )
        assert dataset.column("caption") == ["red", "blue", "red", None]
        assert dataset.column("label") == want
        assert [*dataset.column("group")[:2], dataset.column("group")[3]] == ["5", "5", "6"]
        assert summary.rejected == 0
    words = {"image": columns["image"], "label": pa.array(["a", "b", None, "a"]).dictionary_encode()}
    pq.write_table(pa.table(words), tmp_path / "b.parquet")
    assert take_in(tmp_path / "b.parquet", tmp_path / "words")[0].column("label") == ["a", "b", None, "a"]


def test_numbers_that_are_no_labels(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    """Hugging Face's -1 means that there is none; what has no name is told once."""
    for name, values, names, want, note in (
        ("none", [-1, 1, -1, 0], NAMES, [None, "car", None, "plane"], {}),
        ("bare", [-1, 1, -1, 0], [], [None, "1", None, "0"], {}),
        (
            "beyond",
            [0, 3, 9, 2],
            NAMES,
            ["plane", None, None, "bird"],
            {"beyond.parquet:1": "beyond its 3 names"},
        ),
        (
            "score",
            [0.5, 1.0, 0.25, None],
            [],
            [None, "1", None, None],
            {"score.parquet:0": "no whole numbers"},
        ),
    ):
        table = pa.table({"image": [make_png(k) for k in range(4)], "label": values}, metadata=named(names))
        pq.write_table(table, tmp_path / f"{name}.parquet")
        dataset, _ = take_in(tmp_path / f"{name}.parquet", tmp_path / name)
        assert dataset.column("label") == want, name
        told = notes(tmp_path / name)
        assert told.keys() == note.keys()
        assert all(note[file] in reason for file, reason in told.items())


def test_known_columns_of_other_types_are_told(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    rows = [
        {
            "image": make_png(k),
            "caption": ["one", "two"],
            "caption_de": {"a": "eins"},
            "split": 1,
            "label": {"a": 1},
            "n": [1],
            "text": None,
        }
        for k in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    dataset, summary = take_in(tmp_path / "a.parquet", tmp_path / "data")
    assert len(dataset) == 2
    assert dataset.take([0], ["caption", "captions_more"]) == {
        "caption": ["one"],
        "captions_more": ['["two"]'],
    }
    lines = (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == [
        "the column 'caption_de' is not read: it holds struct<a: string>, expected text",
        "the column 'split' is not read: it holds int64, expected text",
        "the column 'label' is not read: it holds struct<a: int64>, expected text or whole numbers",
    ]
    assert (
        "3 skipped, listed in rejected.jsonl: 1 x the column 'caption_de' is not read" in summary.lines()[1]
    )


def test_a_file_that_was_moved_is_noticed(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    source = tmp_path / "source"
    for number, name in enumerate(("train/a.parquet", "train/b.parquet")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": [make_png(2 * number), make_png(2 * number + 1)]}), source / name)
    dataset, _ = take_in(source, tmp_path / "data")
    assert dataset.column("split") == ["train"] * 4
    (source / "test").mkdir()
    (source / "train" / "a.parquet").rename(source / "test" / "a.parquet")
    _, summary = take_in(source, tmp_path / "data")
    assert not summary.unchanged
    same = "the same picture as train/a.parquet:"
    assert notes(tmp_path / "data") == {f"test/a.parquet:{k}": f"{same}{k}" for k in range(2)}


def test_rows_that_cannot_be_used_are_listed(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    rows = [
        {"image": make_png(1), "split": "train"},
        {"image": None, "split": "train"},
        {"image": b"broken", "split": "train"},
        {"image": make_png(2), "split": "sideways"},
        {"image": make_png(3), "split": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    dataset, summary = take_in(tmp_path / "a.parquet", tmp_path / "data")
    assert len(dataset) == 2
    listed = [json.loads(line) for line in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    assert {entry["file"]: entry["reason"].split(";")[0] for entry in listed} == {
        "a.parquet:1": "the row holds no bytes of a picture",
        "a.parquet:2": "not a picture",
        "a.parquet:3": "the row has split 'sideways'",
    }
    assert summary.rejected == 3


def test_a_damaged_row_group_is_skipped(cifar: Path, tmp_path: Path) -> None:
    data = bytearray(cifar.read_bytes())
    column = pq.ParquetFile(cifar).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    cifar.write_bytes(data)
    dataset, summary = take_in(cifar, tmp_path / "data")
    assert len(dataset) == 44
    assert summary.rejected == 1
    assert "cifar.parquet:16-31" in (tmp_path / "data" / "rejected.jsonl").read_text()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b"PAR1 and nothing more"), r"a\.parquet is not readable Parquet"),
        (
            lambda p: pq.write_table(pa.table({"words": ["x"], "width": [3]}), p),
            r"no column 'image' .* its columns are words \(string\), width \(int64\)",
        ),
        (
            lambda p: pq.write_table(pa.table({"before": [b"x"], "after": [b"y"]}), p),
            r"no column 'image'",
        ),
    ],
)
def test_files_that_cannot_be_used(write: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message) as caught:
        list(import_pictures(tmp_path / "a.parquet", tmp_path / "data"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_table_beside_pictures_is_no_source(folder: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"file_name": ["x1.png"]}), folder / "metadata.parquet")
    assert take_in(folder, tmp_path / "data")[1].added == 30


KILLED = """
import os, signal
from carrara.importing import importing; from carrara.dataset import writer
writer.BATCH_ROWS = 8
seen = 0
for report in importing.import_pictures({source!r}, {destination!r}):
    if report.kept >= {kept}:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_and_again(
    cifar: Path, tmp_path: Path, start_python: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    for kept in (20, 41):
        program = KILLED.format(source=str(cifar), destination=str(tmp_path / "killed"), kept=kept)
        process = start_python(program)
        assert process.wait(200) == -signal.SIGKILL
    killed, _ = take_in(cifar, tmp_path / "killed")
    undisturbed, _ = take_in(cifar, tmp_path / "undisturbed")
    assert killed.arrow(killed.columns).to_pydict() == undisturbed.arrow(undisturbed.columns).to_pydict()
