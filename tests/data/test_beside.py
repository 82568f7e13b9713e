"""Pictures and boxes that lie beside pictures: what they become, what is left out, and what notices a change."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from carrara.dataset import loader
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, derive, derived
from carrara.dataset.loader import Reading, load
from carrara.errors import BadPicture, UserError
from carrara.images import boxes
from carrara.images.decode import class_ids, pixels
from carrara.importing.importing import Progress, import_pictures

MakePng = Callable[..., bytes]


def run(source: Path | str, destination: Path, **options: Any) -> tuple[Dataset, Progress]:
    *_, last = import_pictures(source, destination, **options)
    assert last.summary is not None
    return Dataset.open(destination), last


def rejected(dataset: Dataset) -> dict[str, str]:
    lines = (dataset.path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["file"]: entry["reason"] for entry in map(json.loads, lines)}


def as_png(picture: Image.Image, **save: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, **{"format": "PNG", **save})
    return file.getvalue()


def palette(numbers: Any) -> Image.Image:
    picture = Image.fromarray(np.asarray(numbers, np.uint8))
    picture.putpalette([k for n in range(256) for k in (n, 255 - n, 7 * n % 256)])
    return picture


def grey_png(numbers: Any, bits: int) -> bytes:
    """A grey PNG of 2 or 4 bits, which Pillow shows spread over 0 … 255."""
    width = numbers.shape[1]
    rows = np.unpackbits(numbers[..., None], axis=-1)[..., -bits:].reshape(len(numbers), -1)
    packed = zlib.compress(b"".join(b"\0" + np.packbits(row).tobytes() for row in rows))
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, len(numbers), bits, 0, 0, 0, 0)),
        (b"IDAT", packed),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts
    )


IDS = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (as_png(palette(IDS)), IDS),
        (as_png(Image.fromarray(IDS)), IDS),
        (as_png(Image.fromarray(IDS).convert("RGB")), IDS),  # grey that was saved as colour
        (as_png(Image.fromarray(IDS.astype(np.uint16) * 5000)), IDS.astype(np.uint16) * 5000),
        (as_png(Image.fromarray(IDS % 2 > 0)), IDS % 2),  # one bit
        (as_png(palette(IDS % 4), bits=2), IDS % 4),
        (grey_png(IDS % 4, 2), IDS % 4),
        (grey_png(IDS, 4), IDS),
        (as_png(Image.fromarray(IDS), format="WEBP", lossless=True), IDS),
    ],
)
def test_numbers_are_read_as_they_are(data: bytes, expected: Any) -> None:
    found = class_ids(data)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)
    # Four times the size by the nearest, then its middle: no number that was not there before.
    large = class_ids(data, (12, 8))
    np.testing.assert_array_equal(large, np.repeat(np.repeat(expected, 4, 0), 4, 1)[:, 4:12])
    np.testing.assert_array_equal(class_ids(data, (3, 2), crop="end"), expected[:, 2:])
    assert class_ids(data, 1).tolist() == [[expected[1, 2]]]  # the pixel under the middle


def test_what_is_no_numbers_is_refused(make_png: MakePng) -> None:
    colour = Image.open(io.BytesIO(make_png(1)))
    floats = io.BytesIO()
    Image.fromarray(np.full((3, 4), 0.5, np.float32)).save(floats, "TIFF")
    for data, reason in (
        (as_png(colour), "holds colours"),
        (as_png(Image.fromarray(IDS), format="JPEG"), "JPEG changes numbers"),
        (as_png(colour, format="MPO", save_all=True, append_images=[colour]), "JPEG changes numbers"),
        (as_png(Image.fromarray(IDS), format="WEBP"), "WebP .lossy. changes numbers"),
        (
            as_png(colour, format="WEBP", save_all=True, append_images=[colour.rotate(9)]),
            "WebP .lossy. changes",
        ),
        (as_png(Image.fromarray(IDS), format="AVIF"), "AVIF changes numbers"),
        (as_png(Image.fromarray(IDS), format="TIFF", compression="jpeg"), "JPEG changes numbers"),
        (floats.getvalue(), "not whole ones"),
        (b"GIF89a", "damaged"),
    ):
        with pytest.raises(BadPicture, match=reason):
            class_ids(data)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four pictures of 16 x 12 with maps, depth and boxes; the map of the last is at half its size."""
    root, draw = tmp_path / "source", np.random.default_rng(0)
    root.mkdir()
    for k in range(4):
        Image.fromarray(draw.integers(0, 256, (12, 16, 3), np.uint8)).save(root / f"x{k}.png")
        shape = (6, 8) if k == 3 else (12, 16)
        palette(draw.integers(0, 9, shape)).save(root / f"x{k}.map.png")
        Image.fromarray(draw.integers(0, 65536, (12, 16), np.uint16)).save(root / f"x{k}.png.depth.png")
        entry = {"label": f"thing {k}", "box": [2, 3, 8, 6]}
        (root / f"x{k}.boxes.json").write_text(json.dumps([entry]))
    return root


def test_beside_pictures_in_a_folder(source: Path, tmp_path: Path) -> None:
    dataset, last = run(source, tmp_path / "data")
    assert last.summary is not None
    assert (last.total, last.rejected, len(dataset)) == (4, 0, 4)
    assert last.summary.lines()[-1] == "beside the pictures: boxes 4, map 4, depth 4"
    assert dataset.take([1], ["map"])["map"] == [(source / "x1.map.png").read_bytes()]
    box = dataset.boxes([2])[0]
    assert box == [boxes.Box("thing 2", 0.125, 0.25, 0.5, 0.5)]
    batch = next(
        load(dataset, Reading(["image", "map", "depth", "boxes"], size=(12, 8)), batch=4, seed=0, split=None)
    )
    for place, row in enumerate(batch.rows.tolist()):
        ids = np.asarray(Image.open(source / f"x{row}.map.png"))
        ids = np.repeat(np.repeat(ids, 2, 0), 2, 1) if row == 3 else ids
        found = torch.as_tensor(batch.columns["map"])[place]
        assert found.dtype == torch.int64
        np.testing.assert_array_equal(found[0].numpy(), ids[:, 4:12])  # cut where the picture is
        depth = np.asarray(Image.open(source / f"x{row}.png.depth.png"))
        np.testing.assert_array_equal(
            torch.as_tensor(batch.columns["depth"])[place, 0].numpy(), depth[:, 4:12]
        )
    with pytest.raises(ValueError, match="the column 'map' needs a size"):
        load(dataset, Reading(["map"]), batch=1, seed=0)


def test_they_are_the_same_kept_in_memory_or_not(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.full((12, 16), 65535, np.uint16)).save(source / "x1.map.png")  # the highest number
    dataset, _ = run(source, tmp_path / "data", held_out=0)

    def read() -> list[torch.Tensor]:
        loading = load(dataset, Reading(["map", "depth", "image"], size=6), batch=3, seed=2)
        return [torch.as_tensor(c) for b in islice(loading, 4) for c in b.columns.values()]

    kept = read()
    monkeypatch.setattr(loader, "IN_MEMORY", 0)
    for ours, again in zip(kept, read(), strict=True):
        assert ours.dtype == again.dtype
        assert torch.equal(ours, again)
    assert max(int(k.max()) for k in kept if k.dtype == torch.int64) == 65535


def test_what_cannot_be_used_is_left_out_and_the_picture_kept(source: Path, tmp_path: Path) -> None:
    (source / "x0.map.png").write_bytes((source / "x0.png").read_bytes())
    Image.new("L", (16, 16)).save(source / "x1.map.png")
    (source / "x2.map.png").write_bytes(b"")
    Image.new("L", (16, 12)).save(source / "x3.map.bmp")  # a second one
    (source / "x0.boxes.json").write_text("[1]")
    (source / "x1.boxes.json").write_text('[{"label": "a", "box": [20, 0, 3, 3]}]')
    (source / "y.boxes.json").write_text("[]")
    Image.new("RGB", (5, 4)).save(source / "alone.map.png")  # of no picture: one itself
    dataset, last = run(source, tmp_path / "data")
    assert len(dataset) == 5
    assert rejected(dataset) == {
        "x0.map.png": "a map that cannot be used: holds colours (RGB); expected one number a pixel "
        "(grey, or a palette)",
        "x1.map.png": "a map that cannot be used: is 16 x 16, which has not the ratio of its picture of 16 x 12",
        "x2.map.png": "a map that cannot be used: the file is empty",
        "x3.map.png": "a second map of its picture",
        "x0.png": 'its boxes: expected a list of {"label": …, "box": [x, y, width, height]}',
        "x1.png": "its boxes: the box [20.0, 0.0, 3.0, 3.0] lies outside the picture",
        "y.boxes.json": "boxes without their picture",
    }
    assert last.rejected == 7
    there = dict(zip(dataset.column("source"), dataset.column("map_id"), strict=True))
    assert [name for name, known in there.items() if known] == ["x3.png"]
    assert [b is None for b in dataset.boxes(range(5))] == [True, True, True, False, False]
    with pytest.raises(UserError, match=r"'alone.map.png' cannot be used: it has no map"):
        dataset.beside(range(5), "map", 8)
    assert len(dataset.indices(None, "map IS NOT NULL")) == 1


def test_a_change_beside_a_picture_is_taken_and_noticed(
    source: Path, tmp_path: Path, make_png: MakePng
) -> None:
    (source / "x2.map.png").unlink()
    (source / "x3.boxes.json").unlink()
    dataset, _ = run(source, tmp_path / "data", held_out=0)

    def lengths(columns: Any) -> np.ndarray[Any, Any]:
        return np.array([[len(text or "")] for text in columns["boxes"]], np.float32)

    *_, last = derive(dataset, Derivation("length", {"v": 1}, lengths, batch=4, reading=Reading(["boxes"])))
    assert derived(dataset, "length", {"v": 1}) == last.column
    sizes = {"v": 1}
    list(
        derive(
            dataset,
            Derivation(
                "sizes",
                sizes,
                lambda c: c["width"].float()[:, None].numpy(),
                batch=4,
                reading=Reading(["width"]),
            ),
        )
    )
    before, depths = dataset.hash, dataset.column("depth_id")
    palette(np.full((12, 16), 7)).save(source / "x2.map.png")
    palette(np.full((12, 16), 5)).save(source / "x1.map.png")
    (source / "x3.boxes.json").write_text('[{"label": "new", "box": [0, 0, 0.5, 1]}]')
    (source / "x0.map.png").unlink()
    dataset, last_import = run(source, tmp_path / "data", held_out=0)
    assert last_import.summary is not None
    assert (last_import.summary.added, last_import.summary.updated) == (0, 4)
    assert dataset.hash != before
    assert dataset.column("depth_id") == depths
    bytes_now = [(source / f"x{k}.map.png").read_bytes() for k in (1, 2, 3)]
    assert dataset.column("map") == [None, *bytes_now]
    assert dataset.beside([1, 2], "map", 8).unique().tolist() == [5, 7]
    assert dataset.boxes([3]) == [[boxes.Box("new", 0, 0, 0.5, 1)]]
    # What was derived from boxes is to be derived again; what only a picture's bytes decide is not.
    assert derived(dataset, "length", {"v": 1}) is None
    assert derived(dataset, "sizes", sizes) is not None
    *_, last = derive(dataset, Derivation("length", {"v": 1}, lengths, batch=4, reading=Reading(["boxes"])))
    assert last.column is not None
    assert [n for (n,) in dataset.column(last.column)] == [len(t) for t in dataset.column("boxes")]
    assert not (dataset.path / "import.partial").exists()
    # A picture without anything beside it may follow.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(make_png(5))
    dataset, _ = run(tmp_path / "other", tmp_path / "data", held_out=0)
    assert dataset.column("map")[4:] == [None]
    assert dataset.column("map")[1:4] == bytes_now


def test_an_update_that_was_killed_is_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from carrara.dataset import commits, writer

    dataset, _ = run(source, tmp_path / "data", held_out=0)
    whole = dataset.column("map")
    for k in range(4):
        palette(np.full((12, 16), k + 1)).save(source / f"x{k}.map.png")
    update = commits.update

    class Killed(Exception):
        pass

    def until_the_map(table: Any, values: Any) -> None:
        if "map" in values:
            raise Killed
        update(table, values)

    monkeypatch.setattr(writer, "update", until_the_map)
    with pytest.raises(Killed):
        run(source, tmp_path / "data", held_out=0)
    dataset.refresh()
    assert dataset.column("map") == whole
    monkeypatch.setattr(writer, "update", update)
    monkeypatch.setattr("carrara.dataset.word_changes.TOGETHER_BYTES", 1)  # one a time
    dataset, _ = run(source, tmp_path / "data", held_out=0)
    assert dataset.column("map") == [(source / f"x{k}.map.png").read_bytes() for k in range(4)]


def test_beside_pictures_in_parquet(tmp_path: Path, make_png: MakePng) -> None:
    pictures = [make_png(k, (8, 6)) for k in range(3)]
    maps = [as_png(palette(np.full((6, 8), k))) for k in range(2)] + [None]
    objects = [
        {"bbox": [[2.0, 0.0, 4.0, 3.0], [0.0, 0.0, 8.0, 6.0]], "category": [1, 0]},
        {"bbox": [], "category": []},
        None,
    ]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        {
            "image": image,
            "map": image,
            "edges": pa.binary(),
            "objects": pa.struct(
                [("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.int64()))]
            ),
        }
    )
    features = {"objects": {"feature": {"bbox": {"length": 4}, "category": {"names": ["cat", "dog"]}}}}
    table = pa.table(
        {
            "image": [{"bytes": p, "path": None} for p in pictures],
            "map": [{"bytes": m, "path": None} for m in maps],
            "edges": [make_png(9, (4, 3), "L")] * 3,
            "objects": objects,
        },
        schema=schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
    )
    pq.write_table(table, tmp_path / "a.parquet")
    dataset, last = run(tmp_path / "a.parquet", tmp_path / "data")
    assert last.rejected == 0
    assert dataset.column("image") == pictures
    assert dataset.column("map") == maps
    assert dataset.boxes(range(3)) == [
        [boxes.Box("dog", 0.25, 0, 0.5, 0.5), boxes.Box("cat", 0, 0, 1, 1)],
        [],
        None,
    ]
    edges = dataset.beside([0], "edges", 6)
    assert torch.equal(edges[0], pixels(make_png(9, (4, 3), "L"), 6, 1))


WIDE = (200, 100)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], []),
        ([{"label": " a ", "box": [20, 10, 40, 50]}], [("a", 0.1, 0.1, 0.2, 0.5)]),
        ([{"category": "a", "bbox": [0.1, 0.1, 0.2, 0.5]}], [("a", 0.1, 0.1, 0.2, 0.5)]),
        ({"bbox": [[0, 0, 200, 50]], "categories": ["b"]}, [("b", 0, 0, 1, 0.5)]),
        ({"boxes": [{"label": 3, "box": [-20, 90, 60, 60]}]}, [("3", 0, 0.9, 0.2, 0.1)]),  # cut off
        ({"objects": {"bboxes": [[0, 0, 1, 1]], "labels": [1]}}, [("two", 0, 0, 1, 1)]),
    ],
)
def test_boxes_in_many_forms(said: Any, expected: Any) -> None:
    names = ("one", "two") if "objects" in said else ()
    text = boxes.canonical(json.dumps(said), *WIDE, names).text
    found = boxes.parse(text)
    assert found is not None
    assert [b.label for b in found] == [label for label, *_ in expected]
    for box, (_, *numbers) in zip(found, expected, strict=True):
        assert (box.left, box.top, box.width, box.height) == pytest.approx(numbers, abs=1e-6)
    assert boxes.canonical(text, *WIDE).text == text == boxes.write(found)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("{", "no JSON"),
        ("3", "expected a list of"),
        ('[{"label": "a"}]', "has none of 'box'"),
        ('[{"label": "a", "box": [1, 2, 3]}]', r"\[1, 2, 3\] is no box"),
        ('[{"label": "a", "box": [1, 2, 3, NaN]}]', "is no box"),
        ('[{"label": "a", "box": [1, 2, 0, 4]}]', "has no area"),
        ('[{"label": " ", "box": [1, 2, 3, 4]}]', "' ' is no label"),
        ('[{"label": [], "box": [1, 2, 3, 4]}]', "is no label"),
        ('{"bbox": [[1, 2, 3, 4]], "category": []}', "as many labels"),
    ],
)
def test_what_is_no_boxes(said: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        boxes.canonical(said, *WIDE)


def test_boxes_in_metadata_go_before_those_beside(source: Path, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"file_name": "x0.png", "boxes": [{"label": "told", "box": [0, 0, 4, 3]}]},
        {"file_name": "x1.png", "objects": {"bbox": [[0, 0, 16, 12]], "categories": [5]}},
        {"file_name": "x2.png", "text": "a caption"},
    ]
    (source / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dataset, _ = run(source, tmp_path / "data")
    assert [[b.label for b in found or []] for found in dataset.boxes(range(4))] == [
        ["told"],
        ["5"],
        ["thing 2"],
        ["thing 3"],
    ]
    assert dataset.boxes([0]) == [[boxes.Box("told", 0, 0, 0.25, 0.25)]]


@pytest.mark.parametrize(
    ("numbers", "spread"),
    [
        ([0, 85, 170, 255], True),
        ([0, 64, 128, 191, 255], True),
        ([0, 255], True),
        ([0, 10, 20, 30], True),
        ([0, 1, 2, 255], False),
        ([7], False),
        ([0, 3, 17, 20], False),
    ],
)
def test_numbers_that_were_spread_out_to_be_seen_are_told(
    numbers: list[int], spread: bool, tmp_path: Path
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for k, number in enumerate(numbers):  # one map has not all of them
        Image.new("RGB", (8, 8), (k, 0, 0)).save(root / f"{k}.png")
        values = np.full((8, 8), number, np.uint8)
        values[:4] = numbers[0]
        Image.fromarray(values).save(root / f"{k}.map.png")
    _, last = run(root, tmp_path / "data")
    assert last.summary is not None
    said = [line for line in last.summary.lines() if "each number is a class" in line]
    assert bool(said) == spread
    if spread:
        assert f"are {', '.join(map(str, numbers))}, and" in said[0]
        assert f"write 0 to {len(numbers) - 1} " in said[0]


def test_maps_that_look_like_photographs_are_told(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(96) * 2, np.arange(96)) % 256
    grey = {
        "gradient": smooth,
        "noise": dice.integers(0, 256, (96, 96)),
        "on white": np.where(np.add.outer(np.arange(96), np.arange(96)) > 60, 255, smooth),
    }
    classes = {
        "few": dice.integers(0, 9, (96, 96)),
        "one": np.zeros((96, 96), int),
        "regions": np.kron(dice.integers(0, 200, (12, 12)), np.ones((8, 8), int)),
    }
    for kind in ("map", "mask"):
        root = tmp_path / kind
        root.mkdir()
        for k, (name, values) in enumerate({**grey, **classes}.items()):
            Image.new("RGB", (48, 48), (k, 0, 0)).save(root / f"{name}.png")
            Image.fromarray(values.astype(np.uint8)).save(root / f"{name}.{kind}.png")
        dataset, last = run(root, tmp_path / f"{kind} data")
        assert last.summary is not None
        (said,) = (line for line in last.summary.lines() if "pictures in greys" in line)
        assert said.startswith(f"3 of 6 {kind}s that were looked at")
        assert "that of gradient.png" in said
        assert not rejected(dataset)
