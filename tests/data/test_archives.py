"""An archive comes in as the folder that it would unpack to; a WebDataset sample by sample; nothing climbs out."""

import bz2
import gzip
import io
import json
import lzma
import random
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.importing.importing import import_pictures, importers

MakePng = Callable[..., bytes]


def take_in(source: Path, destination: Path) -> tuple[dict[str, list[Any]], dict[str, str]]:
    list(import_pictures(source, destination))
    dataset = Dataset.open(destination)
    lines = (destination / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return dataset.arrow(dataset.columns).to_pydict(), {
        entry["file"]: entry["reason"] for entry in map(json.loads, lines)
    }


@pytest.fixture
def files(make_png: MakePng) -> dict[str, bytes]:
    found = {f"set/cats/x{k}.png": make_png(k) for k in range(12)}
    found |= {f"set/cats/x{k}.txt": f"cat {k}".encode() for k in range(12)}
    found["set/cats/x3.map.png"] = make_png(50, (12, 10), "L")
    found["set/cats/x3.de.txt"] = b"Katze"
    found["set/dogs/d.png"] = make_png(60)
    found["set/dogs/metadata.jsonl"] = (
        b'{"file_name": "d.png", "text": "a dog", "label": null, "flags": "good old"}\n'
    )
    found["set/notes.pdf"] = b"%PDF"
    return found


def tar(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return written.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return written.getvalue()


PACKED: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "a.zip": zipped,
    "a.tar": tar,
    "a.tar.gz": lambda f: gzip.compress(tar(f)),
    "a.tbz2": lambda f: bz2.compress(tar(f)),
    "a.tar.xz": lambda f: lzma.compress(tar(f)),
    "a.tar.zst": lambda f: pa.compress(tar(f), "zstd", asbytes=True),
}


def test_an_archive_is_the_folder_that_it_holds(files: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in files.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(data)
    wanted, why = take_in(tmp_path / "source", tmp_path / "plain")
    assert wanted["source"][1:3] == ["set/cats/x1.png", "set/cats/x2.png"]
    assert wanted["label"] == ["cats"] * 12 + [None]
    assert (wanted["caption"][-1], wanted["flags"][-1], wanted["caption_de"][3]) == (
        "a dog",
        "good old tiny",
        "Katze",
    )
    assert wanted["map"][3] == files["set/cats/x3.map.png"]
    for name, pack in PACKED.items():
        (tmp_path / name).write_bytes(pack(dict(reversed(files.items()))))
        found, reasons = take_in(tmp_path / name, tmp_path / f"{name} data")
        assert found == wanted, name
        assert reasons == why == {"set/notes.pdf": "not a picture (.pdf)"}, name


def test_what_an_archive_must_not_hold(tmp_path: Path, make_png: MakePng) -> None:
    good = make_png(1)
    names = [
        "good.png",
        "../out.png",
        "/abs.png",
        "C:/disk.png",
        "a/../../b.png",
        "inner.zip",
        ".x.png",
    ]
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, good)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("good.png", good)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "good.png")
        archive.writestr("bomb.bmp", b"\0" * (20 << 20))
        archive.writestr(zipfile.ZipInfo("packed.png"), good, zipfile.ZIP_BZIP2)
    found, why = take_in(tmp_path / "in" / "z.zip", tmp_path / "zip data")
    assert found["source"] == ["good.png"]
    reasons = {
        "../out.png": "climbs out",
        "/abs.png": "absolute",
        "C:/disk.png": "absolute",
        "a/../../b.png": "climbs out",
        "good.png": "a second entry",
        "inner.zip": "an archive in the archive",
        ".x.png": "hidden",
        "link.png": "a link",
        "bomb.bmp": "a bomb",
        "packed.png": "compressed in a way",
    }
    assert why.keys() == reasons.keys()
    assert all(part in why[name] for name, part in reasons.items())
    with tarfile.open(tmp_path / "in" / "t.tar", "w") as tape:
        for name, kind in (
            ("good.png", tarfile.REGTYPE),
            ("../out.png", tarfile.REGTYPE),
            ("soft.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
            ("disk.png", tarfile.BLKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (
                kind,
                "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "",
            )
            info.size = len(good) if kind == tarfile.REGTYPE else 0
            tape.addfile(info, io.BytesIO(good))
    found, why = take_in(tmp_path / "in" / "t.tar", tmp_path / "tar data")
    assert found["source"] == ["good.png"]
    assert why.keys() == {"../out.png", "soft.png", "hard.png", "pipe.png", "disk.png"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "tar data", "zip data"]


def test_a_cut_or_damaged_archive_gives_what_is_whole(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tar(files)
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(files["set/cats/x7.png"]) + 20])
    found, why = take_in(tmp_path / "cut.tar", tmp_path / "cut")
    assert len(found["id"]) == 7
    assert "cut off: 20 of" in why["set/cats/x7.png"]
    assert "not read any further" in why["cut.tar"]
    damaged = bytearray(whole)
    damaged[whole.index(b"set/cats/x5.png") + 150] ^= 1  # in its header
    (tmp_path / "damaged.tar").write_bytes(damaged)
    assert take_in(tmp_path / "damaged.tar", tmp_path / "damaged")[1]["damaged.tar"].endswith(
        "a header is damaged"
    )
    huge = tarfile.TarInfo("notes")
    huge.type, huge.size = tarfile.XHDTYPE, 8**11 - 1
    (tmp_path / "huge.tar").write_bytes(
        tar({"a.png": files["set/dogs/d.png"]}).rstrip(b"\0").ljust(1024, b"\0") + huge.tobuf() + b"0" * 9000
    )
    assert "very large" in take_in(tmp_path / "huge.tar", tmp_path / "huge")[1]["huge.tar"]
    for name in ("x.zip", "x.tar", "x.tar.gz", "x.tar.zst", "x.tar.xz"):
        (tmp_path / name).write_bytes(b"words and no archive")
        with pytest.raises(UserError, match=r"is not a readable (zip|tar) archive"):
            take_in(tmp_path / name, tmp_path / "none")
    monkeypatch.setattr("carrara.importing.archives.FREE", 1 << 20)
    for name in ("bomb.tar.gz", "bomb.tgz"):
        (tmp_path / name).write_bytes(
            gzip.compress(tar({"a.png": files["set/dogs/d.png"], "b.bmp": bytes(9 << 20)}))
        )
    with pytest.raises(UserError, match="a bomb"):
        take_in(tmp_path / "bomb.tar.gz", tmp_path / "none")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_nothing_in_an_archive_is_read_in_part(
    name: str, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is cut off after a whole line looks like a whole one."""
    lines = b"".join(b'{"file_name": "x%d.png", "text": "words of %0100d"}\n' % (k, k) for k in range(12))
    monkeypatch.setattr("carrara.importing.archives.MAX_BYTES", len(lines) // 2)
    inside = {name: data for name, data in files.items() if len(data) < len(lines) // 2}
    (tmp_path / name).write_bytes(PACKED[name](inside | {"set/cats/metadata.jsonl": lines}))
    with pytest.raises(
        UserError, match=rf"metadata.jsonl is not a readable table: {len(lines)} bytes; at most"
    ):
        take_in(tmp_path / name, tmp_path / "data")
    inside |= {"set/cats/large.png": make_large(len(lines)), "set/cats/x1.txt": b"cat " * len(lines)}
    (tmp_path / name).write_bytes(PACKED[name](inside))
    _, why = take_in(tmp_path / name, tmp_path / "data")
    assert "bytes; at most" in why["set/cats/large.png"]
    assert "bytes; at most" in why["set/cats/x1.txt"]


def make_large(size: int) -> bytes:
    return b"\x89PNG" + random.Random(0).randbytes(size)


def test_a_zip_whose_headers_say_another_size(tmp_path: Path, make_png: MakePng) -> None:
    for stored in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        pictures = {f"{k}.png": make_png(k) for k in range(3)}
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w", stored) as archive:
            for name, data in pictures.items():
                archive.writestr(name, data)
        data = bytearray(whole.getvalue())
        for name, other in (("1.png", -20), ("2.png", 20)):
            at = data.rindex(b"PK\1\2", 0, data.rindex(name.encode()))
            size = len(pictures[name]) + other
            data[at + 24 : at + 28] = struct.pack("<I", size)
            data[at + 16 : at + 20] = struct.pack(
                "<I", zlib.crc32(pictures[name][:size])
            )  # as one who means it would
        (tmp_path / f"{stored}.zip").write_bytes(data)
        found, why = take_in(tmp_path / f"{stored}.zip", tmp_path / f"data {stored}")
        assert found["source"] == ["0.png"]
        assert "damaged in the archive: Bad CRC" in why["1.png"]
        size = len(pictures["2.png"])
        assert f"{size} bytes, where {size + 20} are announced" in why["2.png"]


def samples(make_png: MakePng, first: int, count: int) -> dict[str, bytes]:
    found = {}
    for k in range(first, first + count):
        key = f"{k:06d}"
        words = {
            "caption": f"picture {k}",
            "url": f"http://x.test/{k}",
            "NSFW": "NSFW" if k % 2 else "UNLIKELY",
        }
        found |= {
            f"{key}.jpg": make_png(k),
            f"{key}.txt": f"picture {k}".encode(),
            f"{key}.json": json.dumps(words).encode(),
        }
    return found


def test_shards_as_img2dataset_writes_them(tmp_path: Path, make_png: MakePng) -> None:
    root = tmp_path / "shards"
    root.mkdir()
    for shard in range(2):
        (root / f"{shard:05d}.tar").write_bytes(tar(samples(make_png, 10 * shard, 3)))
        (root / f"{shard:05d}_stats.json").write_text("{}")
        pa.parquet.write_table(pa.table({"url": ["x"]}), root / f"{shard:05d}.parquet")
    found, why = take_in(root, tmp_path / "data")
    assert found["source"] == [f"{s:05d}.tar:{10 * s + k:06d}.jpg" for s in range(2) for k in range(3)]
    assert found["caption"] == [f"picture {k}" for k in (0, 1, 2, 10, 11, 12)]
    assert found["url"][1] == "http://x.test/1"
    assert found["flags"][:2] == ["tiny", "nsfw_claimed tiny"]
    assert why == {}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_lone_shard(name: str, tmp_path: Path, make_png: MakePng) -> None:
    files = {
        "in/a.png": make_png(1),
        "in/a.cls": b"7",
        "in/a.map.png": make_png(2, (12, 10), "L"),
        "in/a.boxes.json": b'[{"label": "x", "box": [0, 0, 0.5, 0.5]}]',
        "in/b.json": b'{"caption": ["one", "two"], "language": "de", "class": 3}',
        "in/b.jpg": make_png(3),
        "in/b.two.png": make_png(4),
        "in/c.json": b"{}",
        "in/d.txt": b"\xff",
        "in/d.png": b"broken",
        "in/e.npy": b"numbers",
        "in/f.txt": b"nichts",
        "in/f.de.txt": b"etwas",
        "in/f.webp": make_png(5),
    }
    (tmp_path / name).write_bytes(PACKED[name](files))
    found, why = take_in(tmp_path / name, tmp_path / "data")
    assert [s.partition(":")[2] for s in found["source"]] == ["in/a.png", "in/b.jpg", "in/f.webp"]
    assert found["label"] == ["7", "3", None]
    assert (found["caption_de"], found["caption"]) == ([None, "one", "etwas"], [None, None, "nichts"])
    assert found["captions_more"][1] == '["two"]'
    assert found["map"][0] == files["in/a.map.png"]
    assert found["boxes"][0] == '[{"label":"x","box":[0.0,0.0,0.5,0.5]}]'
    reasons = {
        f"{name}:in/b.two.png": "a second picture",
        f"{name}:in/c": "a sample without",
        f"{name}:in/d.txt": "not UTF-8",
        f"{name}:in/d.png": "not a picture",
        f"{name}:in/e": "a sample without",
        name: "entries .npy are not read",
    }
    assert why.keys() == reasons.keys()
    assert all(part in why[file] for file, part in reasons.items())


def test_which_tar_is_which(files: dict[str, bytes], tmp_path: Path, make_png: MakePng) -> None:
    (tmp_path / "shard.tar").write_bytes(tar(samples(make_png, 0, 1)))
    (tmp_path / "folder.tar").write_bytes(tar(files))
    by_name = importers()
    for name, wanted in (("shard.tar", "webdataset"), ("folder.tar", "archive")):
        assert [n for n, m in by_name.items() if m.matches(str(tmp_path / name))] == [wanted]
