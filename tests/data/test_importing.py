"""A folder becomes a table with its words, labels and splits; bad files are listed, never fatal."""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from carrara.dataset import writer
from carrara.dataset.dataset import Dataset
from carrara.dataset.store import newest
from carrara.errors import BadPicture, UserError
from carrara.importing.formats.folder import open_regular
from carrara.importing.importing import Progress, import_pictures, importers

MakePng = Callable[..., bytes]


def run(source: Path | str, destination: Path, **options: Any) -> Progress:
    *_, last = import_pictures(source, destination, **options)
    assert last.summary is not None
    return last


def rejected(destination: Path) -> dict[str, str]:
    lines = (destination / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["file"]: entry["reason"] for entry in map(json.loads, lines)}


def everything(destination: Path) -> dict[str, list[Any]]:
    dataset = Dataset.open(destination)
    values: dict[str, list[Any]] = dataset.arrow(dataset.columns).to_pydict()
    return values


def test_a_captioned_folder(folder: Path, tmp_path: Path) -> None:
    reports = list(import_pictures(folder, tmp_path / "data"))
    assert [r.done for r in reports] == sorted(r.done for r in reports)
    assert all(r.total == 30 for r in reports)
    assert all(r.summary is None for r in reports[:-1])
    summary = reports[-1].summary
    assert summary is not None
    assert (summary.added, summary.pictures, summary.rejected, summary.unchanged) == (30, 30, 0, False)
    assert "30 pictures added" in summary.lines()[0]
    dataset = Dataset.open(tmp_path / "data")
    assert len(dataset) == 30
    assert dataset.column("source") == [f"x{k}.png" for k in range(30)]  # x2 before x10
    assert dataset.column("caption") == [f"picture number {k}" for k in range(30)]
    assert dataset.captions == {"und": "caption"}
    row = dataset.take([7], ["image", "width", "height", "mode", "label", "id", "group"])
    assert row["image"] == [(folder / "x7.png").read_bytes()]
    assert (row["width"], row["height"], row["mode"], row["label"]) == ([12], [10], ["RGB"], [None])
    assert row["id"] == row["group"]
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "dataset.toml",
        "pictures.lance",
        "rejected.jsonl",
    ]


def test_an_unchanged_source_is_done_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, tmp_path / "data")
    version = Dataset.open(tmp_path / "data").version

    def never(_: object) -> None:
        raise AssertionError("a picture was looked at")

    monkeypatch.setattr("carrara.importing.record.look_at", never)
    reports = list(import_pictures(folder, tmp_path / "data"))
    assert len(reports) == 1
    assert reports[0].summary is not None
    assert reports[0].summary.unchanged
    assert "unchanged" in reports[0].summary.lines()[0]
    assert Dataset.open(tmp_path / "data").version == version


def test_languages_labels_and_texts_beside_pictures(tmp_path: Path, make_png: MakePng) -> None:
    root = tmp_path / "s"
    (root / "cats" / "small").mkdir(parents=True)
    (root / "a.png").write_bytes(make_png(1))
    (root / "a.txt").write_text("  one\nmore \n")
    (root / "a.de.txt").write_text("eins", encoding="utf-8-sig")
    (root / "a.zh-TW.txt").write_text("一")
    (root / "b.c.png").write_bytes(make_png(2))
    (root / "b.c.txt").write_text("dotted")
    (root / "cats" / "e.jpg").write_bytes(make_png(3))  # a PNG by its bytes: they decide
    (root / "cats" / "e.jpg.txt").write_text("cafe\u0301")
    (root / "cats" / "small" / "f.png").write_bytes(make_png(4))
    (root / "cats" / "small" / "f.txt").write_text(" \n")
    run(root, tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.captions == {"und": "caption", "de": "caption_de", "zh-tw": "caption_zh_tw"}
    by_name = dict(zip(dataset.column("source"), dataset.column("caption"), strict=True))
    assert by_name == {
        "a.png": "one\nmore",
        "b.c.png": "dotted",
        "cats/e.jpg": "caf\u00e9",
        "cats/small/f.png": None,
    }
    assert dataset.column("label") == [None, None, "cats", "small"]
    assert dataset.column("caption_zh_tw") == ["一", None, None, None]
    assert dataset.labels == ["cats", "small"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_tables(kind: str, tmp_path: Path, make_png: MakePng) -> None:
    root = tmp_path / "s"
    (root / "in").mkdir(parents=True)
    for k in range(4):
        (root / "in" / f"{k}.png").write_bytes(make_png(k))
    (root / "in" / "0.txt").write_text("beside")
    (root / "in" / "2.txt").write_text("only beside")
    rows = [
        {
            "file_name": "in/0.png",
            "text": "table",
            "caption_de": "Tisch, rund",
            "label": "L",
            "split": "test",
        },
        {"file_name": "./in/1.png", "text": "", "caption_de": "", "label": "", "split": "train"},
        {"file_name": "in/9.png", "text": "gone", "caption_de": "", "label": "", "split": ""},
        {"file_name": "../s/in/3.png", "text": "climbs", "caption_de": "", "label": "", "split": ""},
    ]
    if kind == "csv":
        import csv

        with open(root / "metadata.csv", "w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), root / "metadata.parquet")
    else:
        (root / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    last = run(root, tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.column("caption") == ["table", None, "only beside", None]
    assert dataset.column("caption_de") == ["Tisch, rund", None, None, None]
    assert dataset.column("label") == ["L", "in", "in", "in"]
    assert dataset.column("split")[:2] == ["held_out", "train"]
    assert last.rejected == 2
    assert sorted(rejected(tmp_path / "data").values()) == [
        "names '../s/in/3.png', which is not among the pictures",
        "names 'in/9.png', which is not among the pictures",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.png"\n',
            r"no row of .* can be read \(metadata.jsonl line 1: not a",
        ),
        ("metadata.jsonl", "[1]\n", r"no row of .* \(metadata.jsonl line 1: not a JSON object: expected"),
        (
            "metadata.csv",
            'file_name,text\n"a.png,x\n',
            r"no row of .* \(metadata.csv line 2: not readable: unexpected end",
        ),
        (
            "metadata.csv",
            "picture,text\na.png,x\n",
            r"metadata.csv names no pictures; expected a column 'file_name'",
        ),
        ("metadata.csv", "file,text\nb.png,x\nc.png,y\n", r"none of the 2 rows of .* names a picture"),
        ("metadata.parquet", "PAR1 and nothing more", r"metadata.parquet is not a readable table"),
    ],
)
def test_bad_metadata_stops_before_anything_is_written(
    name: str, text: str, message: str, tmp_path: Path, make_png: MakePng
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.png").write_bytes(make_png(1))
    (tmp_path / "s" / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path / "s", tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_bad_row_of_a_table_is_one_bad_row(tmp_path: Path, make_png: MakePng) -> None:
    root = tmp_path / "s"
    (root / "below").mkdir(parents=True)
    for k in range(5):
        (root / f"{k}.png").write_bytes(make_png(k))
    (root / "below" / "a.png").write_bytes(make_png(7))
    (root / "2.txt").write_text("beside")
    lines = (
        b'{"file_name": "0.png", "text": "zero"}',
        b'{"file_name": "1.png", "text": ',
        b'{"file_name": "2.png", "text": "two", "split": "tset"}',
        b'{"text": "of what?"}',
        b'{"file_name": "3.png", "text": "\xff"}',
        b'{"file_name": "below/a.png", "text": "above", "label": "seen"}',
        b'{"file_name": "4.png", "text": "four"}',
        b'{"file_name": "4.png", "text": "again"}',
    )
    (root / "metadata.jsonl").write_bytes(b"\n".join(lines))
    (root / "below" / "metadata.csv").write_text("file,text\na.png,below\n")
    last = run(root, tmp_path / "data")
    assert last.summary is not None
    assert last.summary.added == 6
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.column("caption") == ["zero", None, "beside", None, "four", "below"]
    assert dataset.column("label") == [None] * 5 + ["seen"]  # a table deeper down goes before one above
    assert dataset.column("captions_more") == [None] * 4 + ['["again"]', '["above"]']
    why = rejected(tmp_path / "data")
    assert list(why) == [f"metadata.jsonl line {k}" for k in (2, 4, 5, 3)]
    told = ("not a JSON object", "names no picture", "not UTF-8", "has split 'tset'")
    for reason, part in zip(why.values(), told, strict=True):
        assert part in reason


def test_a_parquet_table_of_other_types(tmp_path: Path, make_png: MakePng) -> None:
    """Categories, and whole numbers that holes made floats; a table without names of files is no metadata."""
    root = tmp_path / "s"
    root.mkdir()
    for k in range(3):
        (root / f"{k}.png").write_bytes(make_png(k))
    table = {
        "file_name": pa.array(["0.png", "1.png", "2.png"]).dictionary_encode(),
        "caption": pa.array(["red", "red", None]).dictionary_encode(),
        "label": pa.array([3.0, None, float("nan")]),
        "group": pa.array([7, 7, 8]),
        "caption_fr": pa.array([b"rouge", b"rouge", None]),
        "pixels": pa.array([b"a", b"b", b"c"]),
    }
    pq.write_table(pa.table(table), root / "metadata.parquet")
    run(root, tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.column("caption") == ["red", "red", None]
    assert dataset.column("caption_fr") == ["rouge", "rouge", None]
    assert dataset.column("label") == ["3", None, None]
    assert dataset.column("group") == ["7", "7", "8"]
    pq.write_table(pa.table({"picture": ["0.png"]}), root / "metadata.parquet")
    with pytest.raises(UserError, match="names no pictures; expected a column 'file_name' or 'file'"):
        run(root, tmp_path / "data")


def test_hostile_files_are_listed_and_never_stop_an_import(folder: Path, tmp_path: Path) -> None:
    good = (folder / "x3.png").read_bytes()
    files = {
        "empty.png": b"",
        "cut.png": good[:-60],
        "text.png": b"no picture at all",
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "bomb.gif": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x01\0\0;",
        "notes.pdf": b"%PDF",
        ".hidden.png": good,
        "line\nbreak.png": b"x",
        "stray.txt": b"nothing beside me",
        "latin.txt": b"\xff\xfe\xfa",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "latin.png").write_bytes(good + b"tail")  # other bytes, the same pixels
    Image.new("RGB", (3, 3), "blue").save(folder / "nosuffix", "PNG")
    Image.new("RGB", (3, 3), "red").save(folder / "🍎 apfel.png")
    (folder / "loop").symlink_to(folder)
    (folder / "chase1.png").symlink_to(folder / "chase2.png")
    (folder / "chase2.png").symlink_to(folder / "chase1.png")
    (folder / "nowhere.png").symlink_to(tmp_path / "nothing")
    (folder / "sub").mkdir()
    (folder / "sub" / "back").symlink_to("..")
    os.mkfifo(folder / "pipe.png")
    raw = os.fsencode(folder) + b"/bytes\xff.png"
    with open(raw, "wb") as file:
        file.write(b"broken")
    last = run(folder, tmp_path / "data")
    why = rejected(tmp_path / "data")
    assert last.summary is not None
    assert last.summary.added == 30 + 3  # latin.png, nosuffix, 🍎
    assert last.summary.rejected == len(why) == last.rejected
    assert set(why) == {
        *(set(files) | {"loop", "chase1.png", "chase2.png", "nowhere.png", "sub/back", "pipe.png"}),
        "bytes\\xff.png",
    }
    expected = {
        "empty.png": "empty",
        "cut.png": "damaged",
        "text.png": "not a picture",
        "bomb.gif": "pixels",
        "notes.pdf": r"not a picture (.pdf)",
        ".hidden.png": "hidden",
        "stray.txt": "without its picture (expected 'stray.png')",
        "latin.txt": "not UTF-8",
        "loop": "already looked into",
        "chase1.png": "cannot be read",
        "pipe.png": "not a regular file",
    }
    for name, reason in expected.items():
        assert reason in why[name]
    assert "listed in rejected.jsonl" in "".join(last.summary.lines())


def test_a_pipe_without_a_writer_does_not_stop_the_reader(tmp_path: Path) -> None:
    """It may have become one after the folder was listed."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadPicture, match="not a regular file"):
        open_regular(str(tmp_path / "pipe.png"))


def test_the_same_picture_under_two_names(folder: Path, tmp_path: Path) -> None:
    (folder / "y.png").write_bytes((folder / "x3.png").read_bytes())
    (folder / "y.txt").write_text("three again")
    last = run(folder, tmp_path / "data")
    assert last.summary is not None
    assert (last.summary.added, last.summary.duplicates, last.summary.rejected) == (30, 1, 0)
    entry = json.loads((tmp_path / "data" / "rejected.jsonl").read_text())
    assert entry["reason"] == "the same picture as x3.png"
    assert entry["caption"] == "three again"  # nothing is lost


def test_captions_of_a_copy_go_to_the_picture_in_languages_that_it_lacks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    (folder / "a copy of x3.png").write_bytes(
        (folder / "x3.png").read_bytes()
    )  # the first by name, and says nothing
    (folder / "x3.de.txt").write_text("drei")
    (folder / "x5.de.txt").write_text("fünf")
    (folder / "y.png").write_bytes((folder / "x5.png").read_bytes())
    (folder / "y.de.txt").write_text("eine andere Fünf")
    (folder / "y.fr.txt").write_text("cinq")
    monkeypatch.setattr(writer, "BATCH_ROWS", 4)

    def said() -> dict[str, list[str | None]]:
        table = Dataset.open(data).table.to_table(columns=["source", "caption", "caption_de", "caption_fr"])
        return {r["source"]: [r["caption"], r["caption_de"], r["caption_fr"]] for r in table.to_pylist()}

    run(folder, data)
    assert said()["a copy of x3.png"][1] == "drei"
    assert said()["a copy of x3.png"][0] is not None
    assert said()["x5.png"][1:] == ["fünf", "cinq"]  # its own in German stays
    before = said()
    (folder / "z.txt").write_text("of no picture: the source is another one now")
    run(folder, data)
    assert said() == before


def test_pictures_of_the_table_under_other_names_are_named_together(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening the table for each costs a millisecond on a disk, and several round trips over a network."""
    run(folder, tmp_path / "data")
    opened: list[object] = []
    open_newest = newest
    monkeypatch.setattr(writer, "newest", lambda store: opened.append(store) or open_newest(store))
    counts = []
    for few in (1, 30):
        other = tmp_path / str(few)
        other.mkdir()
        for k in range(few):
            (other / f"{few}-y{29 - k}.png").write_bytes((folder / f"x{29 - k}.png").read_bytes())
        opened.clear()
        last = run(other, tmp_path / "data")
        assert last.summary is not None
        assert last.summary.duplicates == few
        counts.append(len(opened))
    assert counts[0] == counts[1]
    names = rejected(tmp_path / "data")
    assert all(names[f"30-y{k}.png"] == f"the same picture as x{k}.png" for k in range(30))


def test_the_second_row_of_a_file_never_speaks_for_it(
    tmp_path: Path, make_png: MakePng, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the first import nor in a later one, nor where that was stopped between the two rows."""
    root, data = tmp_path / "s", tmp_path / "data"
    root.mkdir()
    for k, name in enumerate("abcd"):
        (root / f"{name}.png").write_bytes(make_png(k))
    table = root / "list.csv"
    table.write_text("path,caption\na.png,one\nb.png,first\na.png,two\n")
    assert (run(table, data).kept, Dataset.open(data).column("caption")) == (2, ["one", "first"])
    table.write_text("path,caption\na.png,one\nc.png,third\nb.png,corrected\nd.png,fourth\na.png,two\n")
    monkeypatch.setattr(writer, "BATCH_ROWS", 1)
    with monkeypatch.context() as stopped:
        stopped.setattr(writer.Writer, "commit", never_mind)
        with pytest.raises(UserError, match="had to stop"):
            run(table, data)
    run(table, data)
    dataset = Dataset.open(data)
    assert dataset.column("caption") == ["one", "corrected", "third", "fourth"]
    assert rejected(data) == {"a.png": "the same picture as a.png"}


def never_mind(_: object) -> None:
    raise OSError("the disk is full")


def test_a_grown_and_corrected_folder(folder: Path, tmp_path: Path, make_png: MakePng) -> None:
    """New pictures come at the end, new words in place; rows keep their numbers and their split."""
    run(folder, tmp_path / "data")
    before = everything(tmp_path / "data")
    (folder / "a.png").write_bytes(make_png(100))
    (folder / "a.de.txt").write_text("neu")
    (folder / "x4.txt").write_text("corrected")
    (folder / "x5.txt").unlink()
    (folder / "x6.ja.txt").write_text("六")
    last = run(folder, tmp_path / "data")
    assert last.summary is not None
    assert (last.summary.added, last.summary.updated, last.summary.pictures) == (1, 3, 31)
    after = everything(tmp_path / "data")
    for name in ("id", "image", "split", "group", "source"):
        assert after[name][:30] == before[name], name
    assert after["source"][30] == "a.png"
    assert after["caption_de"] == [None] * 30 + ["neu"]
    assert after["caption_ja"] == [None] * 6 + ["六"] + [None] * 24
    words = [*before["caption"], None]
    words[4], words[5] = "corrected", None
    assert after["caption"] == words
    # And once more there is nothing to do.
    again = run(folder, tmp_path / "data").summary
    assert again is not None
    assert again.unchanged


def test_two_sources_in_one_data_set(folder: Path, tmp_path: Path, make_png: MakePng) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "z.png").write_bytes(make_png(500))
    (other / "same.png").write_bytes((folder / "x1.png").read_bytes())
    (other / "bad.png").write_bytes(b"")
    (folder / "bad.png").write_bytes(b"")
    run(folder, tmp_path / "data")
    run(other, tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    assert len(dataset) == 31
    lines = [json.loads(x) for x in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    assert [(Path(x["from"]).name, x["file"]) for x in lines] == [
        ("source", "bad.png"),
        ("other", "bad.png"),
        ("other", "same.png"),
    ]
    for source in (folder, other):
        summary = run(source, tmp_path / "data").summary
        assert summary is not None
        assert summary.unchanged


def test_the_split_belongs_to_the_group_and_to_nothing_else(tmp_path: Path, make_png: MakePng) -> None:
    """Order and company do not matter; rows of a group stay together; small sets still hold one out."""
    root = tmp_path / "s"
    root.mkdir()
    lines = []
    for k in range(120):
        (root / f"{k}.png").write_bytes(make_png(k))
        lines.append({"file_name": f"{k}.png", "group": f"g{k // 3}"})
    (root / "metadata.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    run(root, tmp_path / "data", held_out=0.2)
    dataset = Dataset.open(tmp_path / "data")
    split_of: dict[str, set[str]] = {}
    for group, split in zip(dataset.column("group"), dataset.column("split"), strict=True):
        split_of.setdefault(group, set()).add(split)
    assert all(len(splits) == 1 for splits in split_of.values())
    share = sum(s == {"held_out"} for s in split_of.values()) / len(split_of)
    assert 0.05 < share < 0.4
    # The same groups, other pictures, the other way round.
    turned = tmp_path / "t"
    turned.mkdir()
    for k in range(120):
        (turned / f"{k}.png").write_bytes(make_png(1000 + k))
    reverse = [{"file_name": f"{k}.png", "group": f"g{(119 - k) // 3}"} for k in range(120)]
    (turned / "metadata.jsonl").write_text("".join(json.dumps(x) + "\n" for x in reverse))
    run(turned, tmp_path / "other", held_out=0.2)
    other = Dataset.open(tmp_path / "other")
    assert {(g, s) for g, s in zip(other.column("group"), other.column("split"), strict=True)} == {
        (g, *s) for g, s in split_of.items()
    }


@pytest.mark.parametrize(("pictures", "held_out", "expected"), [(19, 1e-9, 0), (20, 1e-9, 1), (30, 0.0, 0)])
def test_a_set_of_twenty_holds_at_least_one_out(
    pictures: int, held_out: float, expected: int, folder: Path, tmp_path: Path
) -> None:
    for k in range(pictures, 30):
        (folder / f"x{k}.png").unlink()
        (folder / f"x{k}.txt").unlink()
    summary = run(folder, tmp_path / "data", held_out=held_out).summary
    assert summary is not None
    assert summary.held_out == expected
    assert len(Dataset.open(tmp_path / "data").indices("held_out")) == expected


def test_without_captions_it_says_so(tmp_path: Path, make_png: MakePng) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.png").write_bytes(make_png(1))
    (tmp_path / "s" / "README.txt").write_text("about the collection")
    summary = run(tmp_path / "s", tmp_path / "data").summary
    assert summary is not None
    assert summary.captions == {}
    assert summary.lines()[-1] == "no captions: a model trained on it will be unconditional"


def test_batches_of_any_size_give_the_same_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "x20.fr.txt").write_text("vingt")  # a language that only a later batch meets
    run(folder, tmp_path / "one")
    monkeypatch.setattr(writer, "BATCH_ROWS", 4)
    run(folder, tmp_path / "two")
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    one, two = Dataset.open(tmp_path / "one"), Dataset.open(tmp_path / "two")
    assert len(two.table.get_fragments()) > len(one.table.get_fragments()) == 1
    assert (one.fingerprint(), one.hash) == (two.fingerprint(), two.hash)


def _empty(at: Path) -> Path:
    at.mkdir()
    return at


def _only(at: Path, name: str, data: bytes) -> Path:
    at.mkdir()
    (at / name).write_bytes(data)
    return at


LATIN = '{"url": "http://a.test/1", "caption": "Käse"}\n'.encode("latin-1")
MARKLESS = "url,caption\nhttp://a.test/1,Käse\n".encode("utf-16-le")


def _captions_elsewhere(at: Path, data: bytes) -> Path:
    (at / "pictures").mkdir(parents=True)
    (at / "texts").mkdir()
    for k in range(2):
        (at / "pictures" / f"{k}.png").write_bytes(data + bytes([k]))
        (at / "texts" / f"{k}.txt").write_text("lost")
    return at


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at, png: at / "missing", r"there is no source .*missing'; expected a folder"),
        (lambda at, png: _empty(at / "e"), r"no pictures found in .*e \(looked for .png, .jpg"),
        (lambda at, png: _only(at / "t", "a.md", b"words"), r"no pictures found in .*t "),
        (
            lambda at, png: _only(at / "b", "a.png", b"words"),
            r"no picture in .*b could be read .*a.png: not a",
        ),
        (lambda at, png: _only(at / "f", "a.png", png) / "a.png", r"a.png is a file; expected a folder"),
        (lambda at, png: _only(at / "l", "a.jsonl", LATIN) / "a.jsonl", r"a.jsonl is not UTF-8; save it"),
        (lambda at, png: _only(at / "m", "a.csv", MARKLESS) / "a.csv", r"a.csv is not UTF-8; save it"),
        (lambda at, png: _captions_elsewhere(at / "c", png), r"none of the 2 captions in .* has its picture"),
    ],
)
def test_sources_that_cannot_be_used(
    make: Callable[[Path, bytes], Path], message: str, tmp_path: Path, make_png: MakePng
) -> None:
    source = make(tmp_path, make_png(1))
    with pytest.raises(UserError, match=message) as caught:
        run(source, tmp_path / "new" / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_destinations_and_options_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sourec").mkdir()
    (tmp_path / "sourec" / "file").touch()
    with pytest.raises(UserError, match=r"sourec holds other things \(file …\)"):
        run(folder, tmp_path / "sourec")
    with pytest.raises(UserError, match="is a file; expected a folder for the data set"):
        run(folder, folder / "x1.png")
    with pytest.raises(UserError, match="unknown key 'heldout'; did you mean 'held_out'"):
        run(folder, tmp_path / "data", heldout=0.1)
    with pytest.raises(UserError, match="'held_out'"):
        run(folder, tmp_path / "data", held_out=1.5)
    with pytest.raises(UserError, match=r"did you mean .*source'"):
        run(tmp_path / "sourcee", tmp_path / "data")
    assert not (tmp_path / "data").exists()
    run(folder, tmp_path / "data")
    with pytest.raises(UserError, match="is a Carrara data set already"):
        run(tmp_path / "data", tmp_path / "second")


def test_a_data_set_inside_its_own_source(folder: Path) -> None:
    run(folder, folder / "data")
    (folder / "x1.txt").write_text("again")
    last = run(folder, folder / "data")
    assert last.summary is not None
    assert (last.summary.updated, last.summary.pictures) == (1, 30)
    assert rejected(folder / "data") == {"data": "a Carrara data set, not looked into"}


def test_the_same_import_twice_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second waits, says so, and has nothing to do."""
    monkeypatch.setattr("carrara.dataset.store.PATIENCE", 0)
    run(folder, tmp_path / "data")
    (folder / "x1.txt").write_text("again")
    first = import_pictures(folder, tmp_path / "data")
    next(first)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(run, folder, tmp_path / "data")
        while "waiting: another process is importing the same" not in capsys.readouterr().out:
            time.sleep(0.01)
        *_, last = first
    assert last.summary is not None
    assert (last.summary.updated, last.summary.unchanged) == (1, False)
    again = second.result().summary
    assert again is not None
    assert again.unchanged


def test_every_importer_keeps_the_contract() -> None:
    found = importers()
    assert {"folder", "emoji"} <= found.keys()
    for name, module in found.items():
        assert module.__doc__, name
        for function in ("matches", "survey", "rows"):
            assert callable(getattr(module, function)), (name, function)
        assert module.matches("/no/such/place") is False
