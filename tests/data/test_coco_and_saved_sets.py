"""COCO's annotations with boxes and five captions a picture; what `datasets` saved to disk."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.importing import json_stream
from carrara.importing.formats import coco
from carrara.importing.importing import import_pictures
from carrara.importing.options import Options
from carrara.importing.summary import Summary

MakePng = Callable[..., bytes]


def take_in(source: Path, destination: Path) -> tuple[Dataset, dict[str, str], Summary]:
    *_, last = import_pictures(source, destination, languages="keep")
    assert last.summary is not None
    lines = (destination / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return Dataset.open(destination), {e["file"]: e["reason"] for e in map(json.loads, lines)}, last.summary


@pytest.fixture
def annotated(tmp_path: Path, make_png: MakePng) -> Path:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for name, first, count in (("train2017", 0, 4), ("val2017", 10, 2)):
        (root / name).mkdir()
        images: list[dict[str, Any]] = []
        for k in range(first, first + count):
            (root / name / f"{k:012d}.png").write_bytes(make_png(k))
            images.append({"id": k, "file_name": f"{k:012d}.png", "width": 12, "height": 10, "license": 1})
            images[-1]["coco_url"] = f"http://images.test/{k}"
        images.append({"id": 99, "file_name": "../../out.png", "width": 12, "height": 10})
        images.append({"id": 98, "file_name": "lost.png", "width": 12, "height": 10})
        about = {"images": images, "licenses": [{"id": 1, "name": "Attribution", "url": "http://cc.test/by"}]}
        boxes = [
            {"image_id": first, "category_id": 2, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0},
            {"image_id": first, "category_id": 1, "bbox": [6, 5, 30, 5]},
            {"image_id": first, "category_id": 1, "bbox": [3, 3, 0, 5]},
            {"image_id": 1234, "category_id": 1, "bbox": [3, 3, 1, 5]},
            {"image_id": first, "category_id": 7, "bbox": [3, 3, 1, 5]},
        ]
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "traffic light"}]
        captions = [{"image_id": first + k % 2, "id": k, "caption": f"caption {k} "} for k in range(7)]
        for kind, more in (
            ("instances", {"annotations": boxes, "categories": categories}),
            ("captions", {"annotations": captions}),
        ):
            (root / "annotations" / f"{kind}_{name}.json").write_text(json.dumps(about | more))
    (root / "annotations" / "panoptic_val2017.json").write_text("{}")
    return root


def test_coco(annotated: Path, tmp_path: Path) -> None:
    dataset, why, summary = take_in(annotated, tmp_path / "data")
    assert dataset.column("source") == [f"train2017/{k:012d}.png" for k in range(4)] + [
        f"val2017/{k:012d}.png" for k in (10, 11)
    ]
    assert dataset.column("split") == ["train"] * 4 + ["held_out"] * 2
    assert dataset.column("caption")[:3] == ["caption 0", "caption 1", None]
    assert json.loads(dataset.column("captions_more")[0]) == ["caption 2", "caption 4", "caption 6"]
    assert set(dataset.column("licence")) == {"http://cc.test/by"}
    assert dataset.column("url")[5] == "http://images.test/11"
    first, second, *_ = dataset.boxes([0, 1])
    assert first is not None
    assert [(b.label, b.left, b.top) for b in first] == [("traffic light", 0, 0), ("cat", 0.5, 0.5)]
    assert (first[0].width, first[1].width) == (pytest.approx(1 / 12, abs=1e-6), 0.5)  # cut off at the edge
    assert second == []  # the file with boxes knows it, and says that there are none
    assert "climbs out" in why["train2017/../../out.png"]
    assert "not there (looked in" in why["train2017/lost.png"]
    assert "without area" in why["val2017/000000000010.png"]
    assert sum(name.startswith("instances_") for name in why) == 2
    assert summary.rejected == 10
    assert take_in(annotated, tmp_path / "data")[2].unchanged
    one = take_in(annotated / "annotations" / "captions_val2017.json", tmp_path / "one")[0]
    assert (len(one), "boxes" in one.columns) == (2, False)


def test_coco_that_cannot_be_used(annotated: Path, tmp_path: Path) -> None:
    for name in ("train2017", "val2017"):
        (annotated / name).rename(annotated / f"{name}.away")
    with pytest.raises(
        UserError, match=r"none of the 10 pictures that .* is there; '0{12}.png' is in none of"
    ):
        take_in(annotated, tmp_path / "data")
    for text, reason in (
        ('{"images": [], "annotations": ', "is not COCO's JSON"),
        ('{"images": [{}], "annotations": []}', r"it has no 'id'"),
        ('{"annotations": []}', r"it has no 'images'"),
        ('{"images": [], "annotations": null}', "its annotations are no list"),
        ('{"images": ' + "[" * 100_000, "is not COCO's JSON"),
    ):
        (annotated / "annotations" / "captions_train2017.json").write_text(text)
        with pytest.raises(UserError, match=reason):
            take_in(annotated, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_numbers_that_mean_something_only_later(tmp_path: Path, make_png: MakePng) -> None:
    """Annotations before the pictures, categories and licences last; numbers that are words, huge, or none."""
    known_by = [1, "1", 2.0, 2**70, None, "\ud800"]
    for k in range(len(known_by)):
        (tmp_path / f"{k}.png").write_bytes(make_png(k))
    said: dict[str, Any] = {"info": [{"year": float("nan")}, "[,"]}
    said["annotations"] = [{"image_id": n, "caption": f"words {k}"} for k, n in enumerate(known_by)]
    said["annotations"] += [
        {"image_id": 2, "bbox": [0, 0, 6, 5], "category_id": "c"},
        {"image_id": 2, "bbox": [0, 0, 6, 5], "category_id": ["c"]},
        {"image_id": [2], "caption": "of no number"},
        {"image_id": 7, "caption": "of none that is listed"},
        {"caption": "of nothing"},
        3,
    ]
    said["images"] = [
        {"id": n, "file_name": f"{k}.png", "license": 4 if k else [4], "width": 12, "height": 10}
        for k, n in enumerate(known_by)
    ]
    said |= {"licenses": [{"id": 4, "name": "CC0"}], "categories": [{"id": "c", "name": "cat\ud800"}]}
    path = tmp_path / "instances_some.json"
    path.write_text("\ufeff" + json.dumps(said), encoding="utf-8")
    dataset, why, summary = take_in(path, tmp_path / "data")
    assert dataset.column("caption") == [f"words {k}" for k in range(6)]
    assert dataset.column("licence") == [None] + ["CC0"] * 5
    assert [len(boxes or ()) for boxes in dataset.boxes(range(6))] == [0, 0, 1, 0, 0, 0]
    assert (summary.rejected, why.keys()) == (5, {path.name})


def test_documents_are_read_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "a": [1, 12.5e10, -3.25e-7, '\n"]},', {"b": [[], {}]}, None, True, float("inf"), "ä☃😀"],
        "": {"c": [1]},
        "d": [],
        "e": 12345,
    }
    path = tmp_path / "a.json"
    for text in (json.dumps(said), json.dumps(said, indent=3, ensure_ascii=False), "{}", " { } "):
        path.write_text(text, encoding="utf-8")
        for piece in (1, 2, 3, 5, 1000):
            monkeypatch.setattr(json_stream, "PIECE", piece)
            found: dict[str, Any] = {}
            with open(path, encoding="utf-8") as file:
                for key, kind, value in json_stream.members(file):
                    if kind == "entry":
                        found[key].append(value)
                    else:
                        found[key] = [] if kind == "list" else value
            assert found == json.loads(text)
    for text in (
        "",
        "[1]",
        '{"a": [1,]}',
        '{"a": [1]',
        '{"a": 1} 2',
        '{"a" 1}',
        '{"a": [1 2]}',
        "{1: 2}",
        '{"a": tru',
    ):
        path.write_text(text)
        for piece in (1, 1000):
            monkeypatch.setattr(json_stream, "PIECE", piece)
            with open(path) as file, pytest.raises(ValueError, match="at letter"):
                list(json_stream.members(file))
    monkeypatch.setattr(json_stream, "MOST", 5000)
    path.write_text('{"a": ["' + "x" * 20_000)
    with open(path) as file, pytest.raises(ValueError, match="after 5000 letters of one entry"):
        list(json_stream.members(file))


def test_a_document_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "PIECE", 1 << 14)
    monkeypatch.setattr("carrara.importing.annotations._TOGETHER", 50)
    path = tmp_path / "captions_many.json"
    for count in (1, 3000):  # the first for what is imported on the way
        entries = [{"image_id": k, "caption": f"{k} " + "word " * 60} for k in range(count)]
        images = [{"id": k, "file_name": f"{k}.png", "width": 1, "height": 1} for k in range(count)]
        path.write_text(json.dumps({"images": images, "annotations": entries}))
        del entries, images
        tracemalloc.start()
        items = sum(1 for _ in coco.rows(str(path), Options()))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert items == count
    assert peak < path.stat().st_size / 3


def save(folder: Path, rows: list[dict[str, Any]], split: str | None = None) -> None:
    """As ``save_to_disk`` does: two Arrow streams, the state, the description."""
    folder.mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(about)
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (table.slice(0, 3), table.slice(3)), strict=True):
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def some(make_png: MakePng, first: int) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": make_png(first + k), "path": None}, "label": k % 2, "text": f"words {first + k}"}
        for k in range(5)
    ]


def test_a_saved_set_and_one_of_several_splits(tmp_path: Path, make_png: MakePng) -> None:
    save(tmp_path / "one", some(make_png, 0), "test")
    dataset, why, _ = take_in(tmp_path / "one", tmp_path / "data")
    assert dataset.column("label") == ["cat", "dog", "cat", "dog", "cat"]
    assert dataset.column("caption") == [f"words {k}" for k in range(5)]
    assert set(dataset.column("split")) == {"held_out"}
    assert why == {}
    save(tmp_path / "two" / "train", some(make_png, 0))
    save(tmp_path / "two" / "validation", some(make_png, 10))
    (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["validation", "train"]}')
    dataset, _, _ = take_in(tmp_path / "two", tmp_path / "both")
    assert dataset.column("split") == ["held_out"] * 5 + ["train"] * 5
    assert dataset.column("source")[3] == "validation/data-00001-of-00002.arrow:0"


def test_saved_sets_that_are_damaged(tmp_path: Path, make_png: MakePng) -> None:
    save(tmp_path / "one", some(make_png, 0))
    path = tmp_path / "one" / "data-00001-of-00002.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    dataset, why, _ = take_in(tmp_path / "one", tmp_path / "data")
    assert len(dataset) == 3
    assert "rows that cannot be read" in why["data-00001-of-00002.arrow:0"]
    path.write_bytes(b"no arrow")
    with pytest.raises(UserError, match="is not readable Arrow"):
        take_in(tmp_path / "one", tmp_path / "none")
    for state, reason in (
        ('{"_data_files": [{"filename": "../x"}]}', r"names '\.\./x', which is no file"),
        ('{"_data_files": [{"filename": "gone"}]}', "names 'gone'"),
        ('{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}', "as a selection"),
        ("{}", "names no files"),
        ("[", "cannot be read"),
    ):
        (tmp_path / "one" / "state.json").write_text(state)
        with pytest.raises(UserError, match=reason):
            take_in(tmp_path / "one", tmp_path / "none")
