"""Whatever a source holds, an import lists it with its reason or takes it; it neither stops nor writes elsewhere."""

import gzip
import io
import json
import os
import random
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.importing.importing import _importer, import_pictures
from carrara.importing.options import Options
from carrara.importing.record import look_at
from carrara.importing.row import Rejected

from .conftest import png

MakePng = Callable[..., bytes]


def saved(picture: Image.Image, form: str, **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **how)
    return file.getvalue()


def kinds() -> dict[str, tuple[bytes, str | None]]:
    """Pictures of every odd kind, and the flags that they get."""
    colours = Image.open(io.BytesIO(png(1, (40, 36))))
    frames = [Image.open(io.BytesIO(png(k, (40, 36)))) for k in (2, 3)]
    palette = colours.convert("P")
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "plain.png": (saved(colours, "PNG"), None),
        "small.png": (png(5), "tiny"),
        "deep.png": (saved(Image.new("I;16", (40, 36), 40_000), "PNG"), "grey"),
        "ink.jpg": (saved(colours.convert("CMYK"), "JPEG"), "cmyk"),
        "glass.png": (saved(palette, "PNG", transparency=3), "alpha"),
        "turned.jpg": (saved(colours, "JPEG", exif=turned), "rotated"),
        "film.gif": (saved(colours, "GIF", save_all=True, append_images=frames), "animated"),
        "film.webp": (saved(colours, "WEBP", save_all=True, append_images=frames), "animated"),
        "film.png": (saved(colours, "PNG", save_all=True, append_images=frames), "animated"),
        "bits.tif": (saved(colours.convert("1"), "TIFF"), "grey"),
        "wrong suffix.gif": (saved(colours, "BMP"), None),
    }


BAD = {
    "page.jpg": (b"<!doctype html><html>", "not a picture"),
    "vector.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
    "empty.webp": (b"", "empty"),
    "bomb.png": (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\2\0\0\0\x0f\xb0\xe2\x15\0\0\0\0IDAT\x35\xaf\x06\x1e",
        "pixels",
    ),
    "bomb.bmp": (b"BM" + bytes(12) + b"\x28\0\0\0\x60\xea\0\0\x60\xea\0\0\x01\0\x18\0" + bytes(24), "pixels"),
    "cut.jpg": (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "damaged"),
    "inner.zip": (b"PK\3\4", "not a picture (.zip)"),
    "photo.heic": (b"\0\0\0\x18ftypheic", "damaged"),
    "film.mp4": (b"\0\0\0\x18ftypisom", "not a picture (.mp4)"),
}
NAMES = [
    "line\nbreak.png",
    "🍎 .png",
    "‮gnp.png",
    "x" * 200 + ".png",
    " .png",
    "a'b\"c;$(d).png",
    "%s.png",
    "CON.png",
]


def test_odd_pictures_get_words_and_bad_ones_reasons(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    good = kinds()
    for name, (data, _) in {**good, **BAD}.items():
        (root / "sub" / name).write_bytes(data)
    for k, name in enumerate(NAMES):
        (root / name).write_bytes(png(100 + k, (40, 40)))
    with open(os.fsencode(root) + b"/\xff\xfe.png", "wb") as file:
        file.write(png(99, (40, 40)))
    os.mkfifo(root / "pipe.png")
    (root / "device.png").symlink_to("/dev/zero")
    (root / "loop").symlink_to(root)
    gate = socket.socket(socket.AF_UNIX)
    gate.bind(os.path.relpath(root / "gate.png"))
    gate.close()
    (root / "sub" / "plain.txt").write_bytes("wörter".encode("utf-16"))
    (root / "sub" / "small.txt").write_text("x" * (1 << 20) + "x")
    (root / "sub" / "ink.json").write_text("[" * 100_000)
    (root / "sub" / "glass.json").write_text('{"text": "\\ud83d", "flags": "a b", "split": "nowhere"}')
    list(import_pictures(root, tmp_path / "data"))
    dataset = Dataset.open(tmp_path / "data")
    by_source = dict(zip(dataset.column("source"), dataset.column("flags"), strict=True))
    assert {k.removeprefix("sub/"): v for k, v in by_source.items() if k.startswith("sub/")} == {
        name: flags for name, (_, flags) in good.items()
    }
    assert {*NAMES, "\\xff\\xfe.png"} <= by_source.keys()
    text = (tmp_path / "data" / "rejected.jsonl").read_text(encoding="utf-8")
    why = {entry["file"]: entry["reason"] for entry in map(json.loads, text.split("\n")[:-1])}
    expected = {f"sub/{name}": reason for name, (_, reason) in BAD.items()} | {
        "pipe.png": "not a regular file",
        "device.png": "not a regular file",
        "gate.png": "not a regular file",
        "loop": "already looked into",
        "sub/small.txt": "more than 1048576 bytes",
        "sub/ink.json": "nested too deeply",
        "sub/glass.json": "nowhere",
    }
    assert why.keys() == expected.keys()
    assert [name for name, reason in expected.items() if reason not in why[name]] == []
    assert dataset.column("caption")[dataset.column("source").index("sub/plain.png")] == "wörter"


FILES = ("a.zip", "shard.tar", "plain.tar", "a.tar.gz", "a.tar.zst", "a.parquet", "list.csv")


def sources(root: Path) -> dict[str, Path]:
    """A small one of each kind."""
    (root / "folder").mkdir(parents=True)
    for k in range(3):
        (root / "folder" / f"{k}.png").write_bytes(png(k))
        (root / "folder" / f"{k}.json").write_text(
            json.dumps({"text": f"t {k}", "boxes": [{"label": "x", "box": [0, 0, 1, 1]}]})
        )
    files = {p.name: p.read_bytes() for p in sorted((root / "folder").iterdir())}
    with zipfile.ZipFile(root / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, "metadata.csv": b"file_name,text\n1.png,one\n"}.items():
            archive.writestr(name, data)
    for name in ("shard.tar", "plain.tar"):
        with tarfile.open(root / name, "w") as tape:
            for inside, data in files.items():
                info = tarfile.TarInfo(
                    inside if name == "shard.tar" else f"deep/{inside.replace('json', 'txt')}"
                )
                info.size = len(data)
                tape.addfile(info, io.BytesIO(data))
    (root / "a.tar.gz").write_bytes(gzip.compress((root / "plain.tar").read_bytes()))
    (root / "a.tar.zst").write_bytes(pa.compress((root / "shard.tar").read_bytes(), "zstd", asbytes=True))
    rows = [
        {"image": {"bytes": png(k), "path": "x"}, "caption": ["a", "b"], "label": k, "split": "train"}
        for k in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "a.parquet", compression="zstd")
    (root / "saved").mkdir()
    with pa.ipc.new_stream(str(root / "saved" / "d.arrow"), pa.Table.from_pylist(rows).schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows))
    (root / "saved" / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}], "_split": null}')
    (root / "saved" / "dataset_info.json").write_text("{}")
    lines = [f"folder/{k}.png,t {k},val,0.9" for k in range(3)]
    (root / "list.csv").write_text("\n".join(["image_path,text,split,pwatermark", *lines]))
    images = [{"id": k, "file_name": f"{k}.png", "width": 12, "height": 10} for k in range(3)]
    boxes = [{"image_id": k, "category_id": 1, "bbox": [1, 1, 3, 3], "caption": "c"} for k in range(3)]
    about = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}
    (root / "folder" / "instances_x.json").write_text(json.dumps(about))
    return {
        "folder": root / "folder" / "2.png",
        "coco": root / "folder" / "instances_x.json",
        "huggingface": root / "saved" / "d.arrow",
        "state": root / "saved" / "state.json",
        **{
            name: root / name
            for name in ("a.zip", "shard.tar", "plain.tar", "a.tar.gz", "a.tar.zst", "a.parquet", "list.csv")
        },
    }


def drain(source: str) -> int:
    """Looks at everything that an import would; how many pictures were good."""
    _, importer = _importer(source)
    options = Options()
    importer.survey(source, options)
    return sum(not isinstance(look_at(item), Rejected) for item in importer.rows(source, options))


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Bytes turned, cut out, doubled or set to what lengths and signs break at."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        at = draw.randrange(len(found)) if found else 0
        how = draw.randrange(6)
        if how == 0 and found:
            found[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            del found[at : at + draw.choice((1, 4, 100, 10_000))]
        elif how == 2:
            found[at:at] = found[at : at + draw.choice((1, 4, 512))]
        elif how == 3:
            found[at : at + 4] = draw.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80")
            )
        elif how == 4:
            found[at:at] = draw.choice((b"\0", b"\n", b'"', b"{", b"[[[", b"../", b"\xed\xa0\x80", b"9" * 30))
        else:
            del found[at:]
    return bytes(found)


@pytest.mark.parametrize("kind", ["folder", "coco", "huggingface", "state", *FILES])
def test_sources_with_any_bytes_changed(kind: str, tmp_path: Path) -> None:
    """A few of very many: each ends with what is whole, or with one line."""
    path = sources(tmp_path / "in")[kind]
    source = str(path.parent if kind in ("folder", "coco", "huggingface", "state") else path)
    assert drain(source) == 3
    whole, draw, before = path.read_bytes(), random.Random(kind), sorted(tmp_path.rglob("*"))
    ends = set()
    for _ in range(12):
        path.write_bytes(mutated(whole, draw))
        try:
            ends.add(drain(source))
        except UserError as error:
            ends.add(-1 - str(error).count("\n"))
    assert len(ends) > 1
    assert min(ends) >= -1  # a refusal is one line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_traps(tmp_path: Path) -> None:
    """Devices, sockets, holes, pipes for words, rows that name what is not theirs, a shard far down: all are named."""
    root, outside = tmp_path / "in", tmp_path / "outside.png"
    deep = root.joinpath(*"abcdefgh")
    for folder in (root / "words", root / "pictures.lance", deep):
        folder.mkdir(parents=True)
    outside.write_bytes(png(0, (40, 36)))
    names = [
        "a.png",
        "words/b.png",
        "words/c.png",
        "-rf.png",
        "nul\u2028.png",
        "pictures.lance/d.png",
        "[x]/e.png",
    ]
    (root / "[x]").mkdir()
    for k, name in enumerate([*names, "/".join([*"abcdefgh", "f.png"])]):
        (root / name).write_bytes(png(k + 1, (40, 36)))
    vast = b"IHDR" + struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(vast)) + b"\0\0\0\x0aIDAT"
    (root / "vast.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + vast + check + b"\0" * 14)
    (root / "hole.png").touch()
    os.truncate(root / "hole.png", 3 * 2**30)
    (root / "device.png").symlink_to("/dev/zero")
    (root / "words" / "b.txt").symlink_to("/dev/zero")
    os.mkfifo(root / "words" / "c.txt")
    (root / "dot").symlink_to(".")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(root)  # a socket's path is short
        try:
            one.bind("socket.png")
        finally:
            os.chdir(here)
    rows = [
        {"file_name": "b.png", "text": "\ud800 x"},
        {"file_name": ["b.png"]},
        {"file_name": "../a.png"},
        {"file_name": f"{outside}"},
        {"file_name": "b\0.png"},
    ]
    lines = [json.dumps(row).encode() for row in rows]
    lines += [
        b"null",
        b'{"file_name":"c.png","text":' + b"[" * 100_000,
        b'{"file_name":"c.png","a":' + b"9" * 5000,
    ]
    (root / "words" / "metadata.jsonl").write_bytes(b"\n".join(lines))
    (deep / "shard.parquet").write_bytes(b"PAR1")
    before = sorted(tmp_path.iterdir())
    *_, last = import_pictures(root, tmp_path / "data")
    assert last.summary is not None
    assert last.summary.added == 8
    assert sorted(tmp_path.iterdir()) == [tmp_path / "data", *before]
    told = (tmp_path / "data" / "rejected.jsonl").read_text().split("\n")[:-1]
    why = {entry["file"]: entry["reason"] for entry in map(json.loads, told)}
    expected = {
        "vast.png": "more than 89478485 pixels",
        "hole.png": "bytes; at most",
        "device.png": "not a regular file",
        "socket.png": "not a regular file",
        "words/b.txt": "not a regular file",
        "words/c.txt": "not a regular file",
        "dot": "already looked into",
        "a/b/c/d/e/f/g/h/shard.parquet": "not a picture (.parquet)",
        **{f"metadata.jsonl line {k}": "is not among the pictures" for k in (2, 3, 4, 5)},
        **{f"metadata.jsonl line {k}": "not a JSON object" for k in (6, 7, 8)},
    }
    assert {name: reason for name, reason in why.items() if expected.get(name, "?") not in reason} == {}
    assert why.keys() == expected.keys()
    data = Dataset.open(tmp_path / "data")
    captions = dict(zip(data.column("source"), data.column("caption"), strict=True))
    assert {name: text for name, text in captions.items() if text} == {"words/b.png": "\\ud800 x"}


def test_shards_are_found_at_any_depth(tmp_path: Path) -> None:
    deep = tmp_path / "in" / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (tmp_path / "in" / ".cache").mkdir()
    for folder, first in ((deep, 0), (deep.parent, 2), (tmp_path / "in" / ".cache", 4)):
        pq.write_table(pa.table({"image": [png(first), png(first + 1)]}), folder / "p.parquet")
    *_, last = import_pictures(tmp_path / "in", tmp_path / "data")
    assert last.summary is not None
    assert Dataset.open(tmp_path / "data").column("source") == [
        *(f"a/b/c/p.parquet:{k}" for k in (0, 1)),
        *(f"a/b/p.parquet:{k}" for k in (0, 1)),
    ]
