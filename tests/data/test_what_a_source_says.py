"""Each importer takes from a source what it says, to the letter; what it cannot take is listed, and nothing shifts."""

import csv
import io
import json
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.images.boxes import parse
from carrara.importing.importing import import_pictures, importers
from carrara.importing.options import Options
from carrara.importing.record import look_at
from carrara.importing.row import Rejected, Row

from .conftest import png


def rows_of(source: Path) -> tuple[dict[str, Row], dict[str, str]]:
    """The rows by their names, and the reasons of what is none."""
    module = next(
        module
        for _, module in sorted(importers().items(), key=lambda item: item[0] == "folder")
        if module.matches(str(source))
    )
    items: Sequence[Row | Rejected] = list(module.rows(str(source), Options()))
    survey = module.survey(str(source), Options())
    assert survey.total >= sum(isinstance(item, Row) for item in items)
    rows = {item.source: item for item in items if isinstance(item, Row)}
    return rows, {item.source: item.reason for item in items if isinstance(item, Rejected)}


def pictures(folder: Path, names: Sequence[str]) -> Path:
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(k))
    return folder


def tar(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# Rows with more fields than the header


@pytest.mark.parametrize(
    ("name", "delimiter"),
    [("list.tsv", "\t"), *((name, sign) for name in ("metadata.csv", "list.csv") for sign in ",;|\t")],
)
def test_a_row_with_more_fields_than_the_header_is_no_row(name: str, delimiter: str, tmp_path: Path) -> None:
    pictures(tmp_path, [f"{k}.png" for k in range(4)])
    lines = (
        "file_name,text,label",
        "0.png,a cat, asleep,cat",
        '1.png,"a dog, whole",dog',
        "2.png,a bird,bird,,",  # empty ones say nothing
        "3.png,a fish",
    )
    text = "\n".join(line.replace(",", delimiter) for line in lines)
    (tmp_path / name).write_text(text + "\n")
    rows, why = rows_of(tmp_path if name == "metadata.csv" else tmp_path / name)
    told = {k: (r.captions.get("und"), r.label) for k, r in rows.items()}
    assert told.pop("0.png", (None, None)) == (None, None)
    dog = f"a dog{delimiter} whole"
    assert told == {"1.png": (dog, "dog"), "2.png": ("a bird", "bird"), "3.png": ("a fish", None)}
    (reason,) = [reason for file, reason in why.items() if file.endswith(("line 2", ":2"))]
    assert reason.startswith("4 fields, where the header has 3")
    assert len(why) == 1


@pytest.mark.parametrize("name", ["metadata.csv", "list.csv"])
def test_fields_of_csv(name: str, tmp_path: Path) -> None:
    """A caption of a megabyte comes in, a quote that stays open is told with the lines that it takes along, and of two
    columns of one name the first is taken."""
    pictures(tmp_path, [f"{k}.png" for k in range(4)])
    long = "word " * 190_000
    text = (
        f'\nfile_name,text,text\n0.png,"{long}",x\n1.png,"two\nlines",\n2.png,"open\n3.png,gone "with" it,\n'
    )
    (tmp_path / name).write_text(text)
    rows, why = rows_of(tmp_path if name == "metadata.csv" else tmp_path / name)
    assert rows["0.png"].captions == {"und": long.strip()}
    assert rows["1.png"].captions == {"und": "two\nlines"}
    assert not rows.get("2.png", Row("", bytes)).captions
    (column, quote) = why.values()
    assert "'text' stands twice" in column
    assert "from line 6 on" in quote


# Two places that speak of one picture

OLD, NEW = {"caption": "old", "label": "L", "key": "0"}, b"new"


@pytest.mark.parametrize(
    "files",
    [
        {"a.txt": NEW, "a.json": json.dumps(OLD).encode()},
        {"a.txt": NEW, "a.png.json": json.dumps(OLD).encode()},
        {"metadata.jsonl": b'{"file_name": "a.png", "text": "new", "label": "L"}', "a.txt": b"old"},
        {"metadata.csv": b"file_name,text,label\na.png,new,L\na.png,old,L\n"},
        {"metadata.csv": b"file_name,text,caption,Label\na.png,new,old,L\n"},
        {"metadata.jsonl": b'{"file_name": "a.png", "CAPTION": "old", "text": "new", "label": "L"}'},
        {"a.json": b'{"captions": ["new", "old"], "label": "L", "text": "new"}'},
    ],
)
def test_of_two_captions_one_is_the_caption_and_the_other_is_kept(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    root = pictures(tmp_path / "folder", ["a.png"])
    for name, data in files.items():
        (root / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(root.iterdir()):
            archive.write(path, path.name)
    for source in (root, tmp_path / "a.zip"):
        rows, why = rows_of(source)
        row = rows["a.png"]
        assert (row.captions, row.more, row.label, why) == ({"und": "new"}, ("old",), "L", {})


def test_what_a_second_row_says_otherwise_is_told(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    (tmp_path / "metadata.csv").write_text("file_name,text,label\na.png,one,cat\na.png,two,dog\n")
    rows, why = rows_of(tmp_path)
    assert (rows["a.png"].label, rows["a.png"].more) == ("cat", ("two",))
    assert why == {"metadata.csv line 3": "names its picture again, with another label"}


@pytest.mark.parametrize(
    "line",
    [
        b'{"file_name": "a.png", "text": {"english": {"a": 1}}}',
        b'{"file_name": "a.png", "captions": [1, {"caption": "x"}]}',
        b'{"file_name": "a.png", "text": "one", "text": "two"}',
    ],
)
@pytest.mark.parametrize("name", ["metadata.jsonl", "a.json", "list.jsonl", "x.tar"])
def test_a_caption_that_is_no_text_is_none(name: str, line: bytes, tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png", "b.png"])
    if name == "x.tar":
        tar(tmp_path / name, [("a.png", png(0)), ("a.json", line), ("b.png", png(1)), ("b.json", b"{}")])
    else:
        (tmp_path / name).write_bytes(line if name == "a.json" else line + b'\n{"file_name": "b.png"}\n')
    rows, why = rows_of(tmp_path / name if name in ("list.jsonl", "x.tar") else tmp_path)
    assert not any(row.captions or row.more for row in rows.values())
    (reason,) = why.values()
    assert "texts is expected" in reason or "'text' stands twice" in reason


@pytest.mark.parametrize("name", ["metadata.jsonl", "a.json", "x.tar"])
def test_a_hole_that_pandas_left_says_nothing(name: str, tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    line = b'{"file_name": "a.png", "text": "a cat", "label": NaN, "licence": NaN}\n'
    if name == "x.tar":
        tar(tmp_path / name, [("a.png", png(0)), ("a.json", line)])
    else:
        (tmp_path / name).write_bytes(line)
    rows, why = rows_of(tmp_path / name if name == "x.tar" else tmp_path)
    assert [(row.captions, row.label, row.licence) for row in rows.values()] == [
        ({"und": "a cat"}, None, None)
    ]
    assert not why


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_texts_of_a_sample_go_before_its_json(suffix: str, tmp_path: Path) -> None:
    json_, both = json.dumps(OLD).encode(), json.dumps({"caption_en": "same", "label": "cat"}).encode()
    files = [
        *[("0.json", json_), ("0.png", png(1)), ("0.txt", NEW)],
        *[("1.png", png(2)), ("1.txt", b"same"), ("1.json", both), ("1.cls", b"3")],
    ]
    rows, why = rows_of(tar(tmp_path / "in" / f"a.{suffix}", files).parent)
    first, second = rows.values()
    assert (first.captions, first.more, first.label) == ({"und": "new"}, ("old",), "L")
    # A text that another place says in a language is in that; the name of a class goes before its number.
    assert (second.captions, second.more, second.label) == ({"en": "same"}, (), "cat")
    assert not why


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"blurry": False, "night": True}, ()),
        (True, ()),
        (7, ()),
        (None, ()),
        (["night", "blurry"], ("blurry", "night")),
        ("night, blurry", ("blurry", "night")),
        ("a:b 3d", ("3d", "a:b")),
        ([["night"]], ()),
    ],
)
def test_flags_are_words_and_nothing_else(flags: Any, expected: tuple[str, ...], tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    (tmp_path / "a.json").write_text(json.dumps({"flags": flags, "shapes": []}))
    assert rows_of(tmp_path)[0]["a.png"].flags == expected


# Splits and labels by names


def splits_and_labels(source: Path) -> dict[str, tuple[str | None, str | None]]:
    return {name: (row.split, row.label) for name, row in rows_of(source)[0].items()}


TRAIN, HELD = ("train", None), ("held_out", None)


@pytest.mark.parametrize(
    "expected",
    [
        {"bus/a.png": (None, "bus"), "train/a.png": (None, "train"), "plane/a.png": (None, "plane")},
        {"flask/a.png": (None, "flask"), "test/a.png": (None, "test")},
        {"train/cat/a.png": ("train", "cat"), "val/cat/a.png": ("held_out", "cat")},
        {"Train/bus/a.png": ("train", "bus"), "Train/train/a.png": ("train", "train"), "dev/a.png": HELD},
        {"train/a.png": TRAIN, "test/a.png": HELD, "extra/a.png": (None, "extra")},
        {"images/train/a.png": TRAIN, "images/val/a.png": HELD},
        {"train/a.png": TRAIN, "train.png": (None, None), "test of a photo.png": (None, None)},
        {"00000/000000000.png": (None, None), "00001/000010000.png": (None, None)},
        {"00000/000000000.png": (None, None)},
        {"01000/01007.png": (None, None), "00000/00007.png": (None, None)},
        {"cats/000/00.png": (None, "cats"), "cats/001/01.png": (None, "cats"), "dogs/000/02.png": (None, "dogs")},
        {"train/shard_0/x.png": TRAIN, "train/shard_1/x.png": TRAIN, "test/shard_0/x.png": HELD},
        {"0/1.png": (None, "0"), "1/2.png": (None, "1"), "10/3.png": (None, "10")},
        {"00000/0001.png": (None, None), "00001/0001.png": (None, None)},  # numbered anew in each
        {"001/IMG_1.png": (None, None), "001/IMG_2.png": (None, None), "002/IMG_1.png": (None, None)},
        {"images_001/a.png": (None, None), "images_002/a.png": (None, None)},
        {"train/000/1.png": TRAIN, "train/001/1.png": TRAIN, "val/000/1.png": HELD},
        {"0045/001.png": (None, "0045"), "0099/001.png": (None, "0099")},  # people's numbers
        {"00000/00000_1.png": (None, "00000"), "00001/00000_1.png": (None, "00001")},  # classes of traffic signs
        {"001/x.png": (None, "001"), "002/y.png": (None, "002")},
    ],
)  # fmt: skip
def test_folders_are_splits_classes_or_shards(
    expected: dict[str, tuple[str | None, str | None]], tmp_path: Path
) -> None:
    root = pictures(tmp_path / "in", list(expected))
    (root / "notes" / "deep").mkdir(parents=True)  # without pictures it is nobody's neighbour
    (root / "notes" / "deep" / "a.txt").write_text("nothing")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in expected:
            archive.write(root / name, name)
    assert splits_and_labels(root) == expected
    assert splits_and_labels(tmp_path / "a.zip") == expected


NAMED = [
    {"train-00000-of-00002": "train", "train-00001-of-00002": "train", "test-00000-of-00001": "held_out"},
    {"test_tubes": None, "train_station": None, "valley": None},
    {"test-tubes-000": None, "dev-boards-000": None, "cats-000": None},
    {"bus": None, "train": None},
    {"train_clean_000": "train", "val_clean_000": "held_out"},
    {"val-000": "held_out"},
    {"train2017": "train", "unlabeled2017": None, "val2017": "held_out"},
    {"train/0": "train", "valid/0": "held_out"},
    {"bus/0": None, "train/0": None},
]


@pytest.mark.parametrize("expected", NAMED)
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_files_are_of_splits_where_their_neighbours_are(
    kind: str, expected: dict[str, str | None], tmp_path: Path
) -> None:
    for k, name in enumerate(expected):
        path = tmp_path / f"{name}.{kind}"
        path.parent.mkdir(exist_ok=True)
        if kind == "tar":
            tar(path, [("0.png", png(k)), ("0.txt", name.encode())])
        else:
            pq.write_table(pa.table({"image": [png(k)], "text": [name]}), path)
    found = {row.captions["und"]: row.split for row in rows_of(tmp_path)[0].values()}
    assert found == expected


def test_sets_of_coco_and_of_datasets_too(tmp_path: Path) -> None:
    for k, name in enumerate(("train2017", "val2017", "test_tubes")):
        pictures(tmp_path / name, [f"{k}.png"])
        about = {"images": [{"id": 1, "file_name": f"{k}.png"}], "annotations": []}
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"captions_{name}.json").write_text(json.dumps(about))
    found = {name: row.split for name, row in rows_of(tmp_path)[0].items()}
    assert found == {"test_tubes/2.png": None, "train2017/0.png": "train", "val2017/1.png": "held_out"}


def test_when_all_is_held_out_the_import_says_so(tmp_path: Path) -> None:
    *_, last = import_pictures(pictures(tmp_path / "in", ["test/a.png"]), tmp_path / "data")
    assert last.summary is not None
    assert "nothing to train on" in last.summary.lines()[1]


# Boxes whose stated sides are not the picture's


def turned(orientation: int) -> bytes:
    """A picture shown as 40 x 80, with a red square of 16 at 4, 8, as a camera leaves it."""
    shown = np.full((80, 40, 3), 255, np.uint8)
    shown[8:24, 4:20] = (255, 0, 0)
    back: dict[int, Callable[[Any], Any]] = {
        1: lambda p: p,
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: np.rot90(p.transpose(1, 0, 2), 2),
        8: lambda p: np.rot90(p, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(back[orientation](shown))).save(file, "PNG", exif=exif)
    return file.getvalue()


def box_of(data: bytes) -> list[int]:
    """Where the red is, as the file has it."""
    y, x = np.nonzero(np.asarray(Image.open(io.BytesIO(data)))[..., 1] == 0)
    return [int(n) for n in (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)]


SHOWN = (0.1, 0.1, 0.4, 0.2)


@pytest.mark.parametrize(
    ("kind", "orientation", "sides", "scale", "expected"),
    [
        ("coco", 1, (40, 80), 1, SHOWN),
        ("coco", 1, (80, 160), 2, SHOWN),  # the file was shrunk later
        ("coco", 1, (80, 80), 1, None),  # … or cropped
        ("coco", 1, (80, 40), 1, None),  # nothing turns it
        ("coco", 6, (40, 80), 1, SHOWN),  # all as shown
        *[("coco", k, (80, 40), 1, SHOWN) for k in (5, 6, 7, 8)],  # all as in the file
        ("coco", 8, (160, 80), 2, SHOWN),
        ("coco", 6, (80, 80), 1, None),
        *[(kind, 1, (80, 160), 2, SHOWN) for kind in ("metadata.jsonl", "parquet", "a.json")],
        *[(kind, 6, (80, 40), 1, SHOWN) for kind in ("metadata.jsonl", "parquet", "a.json")],
        *[(kind, 1, (80, 40), 1, None) for kind in ("metadata.jsonl", "parquet", "a.json")],
    ],
)
def test_boxes_of_a_picture_of_other_sides(
    kind: str,
    orientation: int,
    sides: tuple[int, int],
    scale: int,
    expected: tuple[float, ...] | None,
    tmp_path: Path,
) -> None:
    data = turned(orientation)
    as_stored = orientation != 1 and sides[0] > sides[1]
    box = [scale * n for n in (box_of(data) if as_stored else [4, 8, 16, 16])]
    about = {"width": sides[0], "height": sides[1], "objects": {"bbox": [box], "category": ["red"]}}
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.png").write_bytes(data)
    if kind == "coco":
        said: dict[str, Any] = {
            "images": [{"id": 1, "file_name": "a.png", "width": sides[0], "height": sides[1]}]
        }
        said |= {"annotations": [{"image_id": 1, "category_id": 3, "bbox": box}]}
        (source / "instances_x.json").write_text(
            json.dumps(said | {"categories": [{"id": 3, "name": "red"}]})
        )
    elif kind == "parquet":
        (source / "a.png").unlink()
        pq.write_table(pa.Table.from_pylist([{"image": data, **about}]), source / "a.parquet")
    else:
        line = json.dumps(about | {"file_name": "a.png"})
        (source / kind).write_text(line)
    (row,) = rows_of(source)[0].values()
    looked = look_at(row)
    assert not isinstance(looked, Rejected)
    found = parse(looked.record.get("boxes"))
    reasons = [bad.reason for bad in looked.left_out]
    if expected is None:
        assert found is None
        assert len(reasons) == 1
        assert f"their picture is of {sides[0]} x {sides[1]}" in reasons[0]
    else:
        assert found is not None
        assert (found[0].left, found[0].top, found[0].width, found[0].height) == pytest.approx(expected)
        assert len(reasons) == as_stored  # said, as nobody can be sure of it


@pytest.mark.parametrize(
    ("box", "stated", "remark"),
    [
        ([4, 48, 16, 16], (80, 40), "not turned"),  # it would end at 64 of 40
        ([4, 8, 16, 16], (80, 40), "turned with it"),
        ([4, 8, 16, 16], (40, 80), ""),
    ],
)
@pytest.mark.parametrize("kind", ["coco", "a.json"])
def test_boxes_that_only_fit_the_picture_as_shown(
    kind: str, box: list[int], stated: tuple[int, int], remark: str, tmp_path: Path
) -> None:
    source = pictures(tmp_path / "in", ["a.png"])
    (source / "a.png").write_bytes(turned(6))
    width, height = stated
    boxes: dict[str, Any] = {"width": width, "height": height, "boxes": [{"box": box, "label": "red"}]}
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
        "annotations": [{"image_id": 1, "category_id": 3, "bbox": box}],
        "categories": [{"id": 3, "name": "red"}],
    }
    name = "instances_x.json" if kind == "coco" else kind
    (source / name).write_text(json.dumps(coco if kind == "coco" else boxes))
    *_, last = import_pictures(source, tmp_path / "data")
    assert last.summary is not None
    assert last.summary.rejected == 0
    assert [remark in said for said in last.summary.remarks] == [True] * bool(remark)
    ((found,),) = Dataset.open(tmp_path / "data").boxes([0])
    as_shown = (box[0] / 40, box[1] / 80, box[2] / 40, box[3] / 80)
    same = (found.left, found.top, found.width, found.height) == pytest.approx(as_shown)
    assert same == (remark != "turned with it")


# Samples whose files do not stand together, keys that stand twice


def orders() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    pics = [(f"s{k}.png", png(k)) for k in range(3)]
    texts = [(f"s{k}.json", json.dumps({"caption": f"text {k}"}).encode()) for k in range(3)]
    classes = [(f"s{k}.cls", str(k).encode()) for k in range(3)]
    yield "pictures first", pics + texts + classes
    yield "texts first", texts + classes + pics
    yield "shifted", [x for three in zip(pics, texts[1:] + texts[:1], classes, strict=True) for x in three]
    yield "sorted", sorted(pics + texts + classes)


@pytest.mark.parametrize("files", [files for _, files in orders()], ids=[name for name, _ in orders()])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("alone", [False, True])
def test_files_of_a_sample_find_each_other(
    files: list[tuple[str, bytes]], suffix: str, alone: bool, tmp_path: Path
) -> None:
    path = tar(tmp_path / "in" / f"a.{suffix}", files)
    rows, why = rows_of(path if alone else path.parent)
    found = sorted(
        (row.label, row.captions["und"], row.read() == png(k)) for k, row in enumerate(rows.values())
    )
    assert found == [(str(k), f"text {k}", True) for k in range(3)]
    assert not why


def test_a_lone_tar_of_many_pictures_before_their_words(tmp_path: Path) -> None:
    files = [(f"{k}.png", png(k)) for k in range(100)] + [(f"{k}.cls", b"c") for k in range(100)]
    rows, _ = rows_of(tar(tmp_path / "a.tar", files))
    assert [row.label for row in rows.values()] == ["c"] * 100


@pytest.mark.parametrize("apart", [False, True])
def test_a_key_that_stands_twice_keeps_its_first_files(apart: bool, tmp_path: Path) -> None:
    def sample(k: int, said: dict[str, str]) -> list[tuple[str, bytes]]:
        return [("0.png", png(k)), ("0.json", json.dumps(said).encode()), ("0.map.png", png(k, mode="L"))]

    between = [("1.png", png(5)), ("1.json", b'{"caption": "x"}')]
    first, second = sample(0, {"caption": "first", "label": "A"}), sample(1, {"caption": "second"})
    files = [*first, *between, *second] if apart else [*first, *second, *between]
    rows, why = rows_of(tar(tmp_path / "a.tar", files))
    row = rows["a.tar:0.png"]
    assert (row.read(), row.captions, row.label) == (png(0), {"und": "first"}, "A")
    assert row.beside["map"].read() == png(0, mode="L")
    assert rows["a.tar:1.png"].captions == {"und": "x"}
    assert sorted(why.values()) == [
        f"a second {kind} of its sample, not taken" for kind in (".json", "picture")
    ] or (set(why) == {"a.tar:0.png", "a.tar:0.json", "a.tar:0.map.png"})


# COCO


def test_captions_that_are_none_and_numbers_that_stand_twice(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{k}.png" for k in range(5)])
    first = {
        "images": [{"id": k, "file_name": f"{name}.png"} for k, name in ((0, 0), (0, 1), (2, 2), (3, 3))],
        "annotations": [
            {"image_id": k, "caption": caption}
            for k, caption in ((0, None), (2, "fine"), (2, "too"), (3, ["no text"]), (3, 7))
        ],
    }
    # Another document's numbers are its own: its pictures are known by their names.
    second = {
        "images": [{"id": 0, "file_name": "4.png"}, {"id": 7, "file_name": "2.png"}],
        "annotations": [{"image_id": 0, "caption": "of four"}, {"image_id": 7, "caption": "of two"}],
    }
    (tmp_path / "captions_x.json").write_text(json.dumps(first))
    (tmp_path / "instances_x.json").write_text(json.dumps(second))
    rows, why = rows_of(tmp_path)
    assert {name: (row.captions, row.more) for name, row in rows.items()} == {
        "x/0.png": ({}, ()),
        "x/2.png": ({"und": "fine"}, ("too", "of two")),
        "x/3.png": ({}, ()),
        "x/4.png": ({"und": "of four"}, ()),
    }
    assert why["captions_x.json"].startswith("1 annotations that cannot be used: a caption is")
    assert why.pop("x/1.png") == "not taken: captions_x.json lists it under the id of '0.png'"
    assert set(why) == {"captions_x.json"}


@pytest.mark.parametrize("fault", [{"bbox": [1, 2, 3]}, {"bbox": [1, 2, 0, 3]}, {"category_id": 9}])
def test_a_picture_whose_only_box_is_none_is_not_called_empty(fault: dict[str, Any], tmp_path: Path) -> None:
    pictures(tmp_path, ["0.png", "1.png"])
    about = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 8, "height": 8} for k in range(2)],
        "annotations": [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 3]} | fault],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "instances_x.json").write_text(json.dumps(about))
    rows, why = rows_of(tmp_path)
    assert (rows["x/0.png"].boxes, json.loads(rows["x/1.png"].boxes or "")) == (None, {"pixels": []})
    assert len(why) == 1


@pytest.mark.parametrize("name", [None, 7, ["a.png"], {}, "", True], ids=repr)
def test_a_picture_of_coco_without_a_name_is_listed_once(name: Any, tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    images = [{"id": 1, "file_name": name, "width": "wide"}, {"id": 2, "file_name": "a.png", "coco_url": 5}]
    said = {"images": images, "annotations": [{"image_id": k, "caption": f"of {k}"} for k in (1, 2)]}
    (tmp_path / "captions_x.json").write_text(json.dumps(said), encoding="utf-32")
    rows, why = rows_of(tmp_path)
    assert [(key, row.captions, row.url) for key, row in rows.items()] == [("x/a.png", {"und": "of 2"}, None)]
    assert why == {"x/id 1": f"its file_name is {json.dumps(name)}; expected the name of a file"}


# Texts in other code pages


TEXTS = ["ein großer Käse", "a café", "plain"]
NOT_TEXT = "not UTF-8; save it as UTF-8"


def table_in(kind: str, encoding: str, column: str) -> bytes:
    if kind == "jsonl":
        lines = [json.dumps({column: f"{k}.png", "text": t}, ensure_ascii=False) for k, t in enumerate(TEXTS)]
        return ("\n".join(lines) + "\n").encode(encoding)
    file = io.StringIO()
    table = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
    table.writerows([(column, "text"), *((f"{k}.png", text) for k, text in enumerate(TEXTS))])
    return file.getvalue().encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "utf-16-le"])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "list.csv", "list.tsv", "list.jsonl"])
def test_tables_in_other_encodings(name: str, encoding: str, tmp_path: Path) -> None:
    pictures(tmp_path, [f"{k}.png" for k in range(3)])
    beside = name.startswith("metadata")
    data = table_in(name.partition(".")[2], encoding, "file_name" if beside else "image_path")
    (tmp_path / name).write_bytes(data)
    if encoding == "utf-16-le":  # without its mark: no table at all
        with pytest.raises((UserError, StopIteration)):
            rows_of(tmp_path if beside else tmp_path / name)
        return
    rows, why = rows_of(tmp_path if beside else tmp_path / name)
    found = {source: row.captions.get("und") for source, row in rows.items() if row.captions}
    if encoding == "cp1252":
        assert found == {"2.png": "plain"}
        assert list(why.values()) == [NOT_TEXT] * 2
    else:
        assert (found, why) == ({f"{k}.png": text for k, text in enumerate(TEXTS)}, {})


@pytest.mark.parametrize(
    "name", ["a.txt", "a.json", "a.tar", "captions_x.json", "a.parquet", "metadata.parquet"]
)
def test_other_texts_in_a_code_page(name: str, tmp_path: Path) -> None:
    bad = "großer Käse".encode("cp1252")
    pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "b.txt").write_text("fine")
    if name == "a.tar":
        tar(tmp_path / name, [("a.png", png(0)), ("a.json", b'{"caption": "' + bad + b'"}'), ("a.txt", bad)])
        rows, why = rows_of(tmp_path / name)
        assert not rows["a.tar:a.png"].captions
    elif name == "captions_x.json":
        about = b'{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "%s"}]}'
        (tmp_path / name).write_bytes(about % bad)
        with pytest.raises(UserError, match=NOT_TEXT):
            rows_of(tmp_path)
        return
    elif name.endswith("parquet"):
        texts = pa.array([b"fine", bad, b"too"], pa.binary()).view(pa.string())
        names = pa.array(["a.png", "b.png", "b.png"])
        held = (
            {"image": pa.array([png(k) for k in range(3)])} if name == "a.parquet" else {"file_name": names}
        )
        pq.write_table(pa.table({**held, "text": texts}), tmp_path / name)
        rows, why = rows_of(tmp_path if name == "metadata.parquet" else tmp_path / name)
        assert sorted(row.captions["und"] for row in rows.values()) == ["fine", "too"]
    else:
        (tmp_path / name).write_bytes(b'{"text": "' + bad + b'"}' if name == "a.json" else bad)
        rows, why = rows_of(tmp_path)
        assert (rows["a.png"].captions, rows["b.png"].captions) == ({}, {"und": "fine"})
    assert why
    assert all(reason.endswith(NOT_TEXT) for reason in why.values())


# Values of Arrow that Python does not have


@pytest.mark.parametrize(
    "values",
    [
        pa.array([0, 2**50], pa.timestamp("s")),
        pa.array([1, 2**31 - 1], pa.int32()).view(pa.date32()),
        pa.array([1, 2**62], pa.duration("s")),
    ],
    ids=["times", "dates", "durations"],
)
@pytest.mark.parametrize("name", ["metadata.parquet", "list.parquet", "a.parquet", "saved"])
def test_dates_that_are_none_are_a_row_that_is_none(name: str, values: pa.Array, tmp_path: Path) -> None:
    pictures(tmp_path, ["0.png", "1.png"])
    names = pa.array(["0.png", "1.png"])
    if name in ("metadata.parquet", "list.parquet"):
        column = "file_name" if name == "metadata.parquet" else "image_path"
        pq.write_table(pa.table({column: names, "group": values, "text": names}), tmp_path / name)
        rows, why = rows_of(tmp_path if name == "metadata.parquet" else tmp_path / name)
    else:
        image = pa.StructArray.from_arrays([pa.array([png(0), png(1)]), values], ["bytes", "taken"])
        table = pa.table({"image": image, "text": names})
        if name == "saved":
            (tmp_path / "s").mkdir()
            with pa.ipc.new_stream(str(tmp_path / "s" / "a.arrow"), table.schema) as writer:
                writer.write_table(table)
            (tmp_path / "s" / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
            (tmp_path / "s" / "dataset_info.json").write_text("{}")
            rows, why = rows_of(tmp_path / "s")
        else:
            pq.write_table(table, tmp_path / name)
            rows, why = rows_of(tmp_path / name)
    said = [row.captions["und"] for row in rows.values() if row.captions]
    assert said == ["0.png"]
    (reason,) = why.values()
    assert "a value that cannot be read" in reason


# Composed and decomposed letters


WORDS = ["Müller", "café", "Übung", "plain"]


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "kind", ["csv", "jsonl", "txt", "json", "boxes.json", "map", "list", "zip", "coco", "wds"]
)
def test_letters_mean_the_same_in_either_form(kind: str, on_disk: str, tmp_path: Path) -> None:
    other = "NFD" if on_disk == "NFC" else "NFC"
    there = [unicodedata.normalize(on_disk, word) for word in WORDS]
    said = [unicodedata.normalize(other, word) for word in WORDS]
    root = pictures(tmp_path / "in", [f"{name}/{name}.png" for name in there])
    source = root
    if kind in ("csv", "list"):
        column, file = ("file_name", "metadata.csv") if kind == "csv" else ("image_path", "list.csv")
        lines = [f"{word}/{word}.png,{word}" for word in said]
        (root / file).write_text("\n".join([f"{column},text", *lines]), encoding="utf-8")
        source = root / file if kind == "list" else root
    elif kind == "jsonl":
        lines = [json.dumps({"file_name": f"{word}/{word}.png", "text": word}) for word in said]
        (root / "metadata.jsonl").write_text("\n".join(lines))
    elif kind == "coco":
        images = [{"id": k, "file_name": f"{word}/{word}.png"} for k, word in enumerate(said)]
        captions = [{"image_id": k, "caption": word} for k, word in enumerate(said)]
        (root / "captions_x.json").write_text(json.dumps({"images": images, "annotations": captions}))
    elif kind == "wds":
        files = [(f"{name}.png", png(k)) for k, name in enumerate(there)]
        files += [(f"{word}.json", json.dumps({"caption": word}).encode()) for word in said]
        source = tar(tmp_path / "tars" / "a.tar", files).parent
    elif kind == "zip":
        source = tmp_path / "a.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for k, (name, word) in enumerate(zip(there, said, strict=True)):
                archive.writestr(f"{name}/{name}.png", png(k))
                archive.writestr(f"{name}/{word}.txt", word)
    else:
        for name, word in zip(there, said, strict=True):
            data = {"json": json.dumps({"text": word}), "boxes.json": "[]"}.get(kind, word).encode()
            (root / name / (f"{word}.map.png" if kind == "map" else f"{word}.{kind}")).write_bytes(
                png(1, mode="L") if kind == "map" else data
            )
    rows, why = rows_of(source)
    assert not why
    told = {name.rpartition("/")[2].rpartition(":")[2]: row for name, row in rows.items()}
    assert sorted(told) == sorted(f"{word}.png" for word in WORDS)  # a picture's name is composed
    for word in WORDS:
        row = told[f"{word}.png"]
        if kind == "boxes.json":
            assert row.boxes == "[]"
        elif kind == "map":
            assert row.beside.keys() == {"map"}
        else:
            assert row.captions == {"und": word}


def test_conditions_and_searches_take_either_form(tmp_path: Path) -> None:
    from carrara.search.query import Query
    from carrara.search.search import search

    root = pictures(tmp_path / "in", [nfd("Käse/Übung.png"), "Brot/a.png"])
    (root / nfd("Käse") / nfd("Übung.txt")).write_text(nfd("ein großer Käse"))
    list(import_pictures(root, tmp_path / "data", languages="keep", held_out=0))
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.labels == ["Brot", "Käse"]
    for form in ("NFC", "NFD"):
        for where in ("label = 'Käse'", "source LIKE '%Übung%'", "caption = 'ein großer Käse'"):
            assert dataset.indices(None, unicodedata.normalize(form, where)).tolist() == [1], where
        query = Query(words=unicodedata.normalize(form, "Käse"), by="words")

        def none(_: Any) -> Any:
            raise AssertionError("words need no embedder")

        assert [hit.row for hit in search(dataset, query, none).hits] == [1]
    # An older data set may have a name decomposed: it is the same picture, and nothing changes.
    *_, last = import_pictures(root, tmp_path / "data", languages="keep", held_out=0, licence="MIT")
    assert last.summary is not None
    assert (last.summary.added, last.summary.duplicates) == (0, 0)
