"""A damaged small file of a data set is told, set aside or made anew; the pictures and words that are whole stay."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from carrara.dataset.dataset import Dataset
from carrara.dataset.versions import clean, tag, tags, versions
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from carrara.search.by_words import by_words, index_words
from carrara.terminal import note

Damage = Callable[[str], str | bytes | None]


@pytest.fixture
def data(folder: Path, tmp_path: Path) -> Path:
    """Thirty pictures and one that cannot be read."""
    (folder / "bad.png").write_text("no picture")
    list(import_pictures(folder, tmp_path / "data"))
    note.cache_clear()
    return tmp_path / "data"


ABOUT: dict[str, Damage] = {
    "torn": lambda text: text[: text.index("digest = ") + 20],
    "no TOML": lambda text: "\0\0\0",
    "a bad byte": lambda text: text.replace("folder", "\udcff", 1).encode(errors="surrogateescape"),
    "no importer": lambda text: text.replace("importer = ", "imported = "),
    "no source": lambda text: text.replace("source = ", "from = "),
    "no format": lambda text: text.replace("format = 1", ""),
    "sources are one": lambda text: "format = 1\nsources = 'x'\n",
    "a source is a word": lambda text: "format = 1\nsources = ['x']\n",
    "a subset of nothing": lambda text: text.replace("[[sources]]", "[subset]\nwhy = 3\n[[sources]]"),
    "gone": lambda text: None,
}


@pytest.mark.parametrize("damage", ABOUT)
def test_what_a_data_set_says_of_its_sources(
    data: Path, folder: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    file = data / "dataset.toml"
    after = ABOUT[damage](file.read_text())
    file.unlink()
    if after is not None:
        file.write_bytes(after if isinstance(after, bytes) else after.encode())
    opened = Dataset.open(data)
    assert len(opened.column("caption")) == 30
    (folder / "x3.txt").write_text("other words")
    summary = list(import_pictures(folder, data))[-1].summary
    assert summary is not None
    assert (summary.updated, summary.pictures, summary.rejected) == (1, 30, 1)
    if damage != "a bad byte":  # which leaves a whole file, of a source of another name
        assert capsys.readouterr().err.count("dataset.toml of ") == 1
        assert (data / "dataset.toml.damaged").exists() == (damage != "gone")
        note.cache_clear()
        Dataset.open(data)
        assert capsys.readouterr().err == ""


def test_another_format_is_still_refused(data: Path) -> None:
    (data / "dataset.toml").write_text("format = 2\n")
    with pytest.raises(UserError, match="has data format 2"):
        Dataset.open(data)


@pytest.mark.parametrize("line", [b"[]", b'{"from": "x", "fi', b'{"file": 3}', b"\xff\xfe", b"\0" * 9])
def test_a_torn_line_among_the_rejected(
    data: Path, folder: Path, capsys: pytest.CaptureFixture[str], line: bytes
) -> None:
    file = data / "rejected.jsonl"
    other = json.dumps({"from": "another", "file": "y", "reason": "z"}).encode()
    file.write_bytes(line + b"\n" + other + b"\n" + file.read_bytes())
    (folder / "x3.txt").write_text("other words")
    list(import_pictures(folder, data))
    assert "1 of 3 lines in rejected.jsonl" in capsys.readouterr().err
    kept = [json.loads(text) for text in file.read_text().splitlines()]
    assert [(entry["from"], entry["file"]) for entry in kept] == [("another", "y"), (str(folder), "bad.png")]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', "\0"])
def test_a_damaged_tag(data: Path, text: str) -> None:
    tag(Dataset.open(data), "good")
    tag(Dataset.open(data), "bad")
    file = data / "pictures.lance" / "_refs" / "tags" / "bad.json"
    file.write_text(text)
    assert len(Dataset.open(f"{data}@good")) == 30
    assert tags(Dataset.open(data)).keys() == {"good"}
    assert len(versions(Dataset.open(data))) > 1
    with pytest.raises(UserError, match=r"bad\.json\.damaged was a tag, of a version that nobody knows now"):
        clean(Dataset.open(data), older_than=timedelta(0))
    tag(Dataset.open(data), "bad")
    Path(f"{file}.damaged").unlink()
    assert clean(Dataset.open(data), older_than=timedelta(0)).versions


@pytest.mark.parametrize("left", [0, 3, 40, -1])  # -1: as long as it was, and nonsense
@pytest.mark.parametrize("newest", [True, False])
def test_a_version_whose_file_was_cut(data: Path, folder: Path, left: int, newest: bool) -> None:
    before = versions(Dataset.open(data))[-1].number
    (folder / "x3.txt").write_text("other words")
    list(import_pictures(folder, data))
    files = sorted((data / "pictures.lance" / "_versions").glob("*.manifest"))  # the newest first
    bad = files[0 if newest else 1]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:left] if left >= 0 else b"\xff" * (len(whole) - 16) + whole[-16:])
    opened = Dataset.open(data)
    assert len(opened) == 30
    assert ("other words" in opened.column("caption")) == (not newest)
    assert (before in [v.number for v in versions(opened)]) == newest
    assert Path(f"{bad}.damaged").exists()
    (folder / "x4.txt").write_text("still others")
    list(import_pictures(folder, data))
    assert Dataset.open(data).column("caption").count("still others") == 1


def test_a_damaged_index_is_made_anew(data: Path) -> None:
    index_words(Dataset.open(data))
    shutil.rmtree(data / "pictures.lance" / "_indices")
    with pytest.raises(UserError, match="search again, which makes it anew"):
        by_words(Dataset.open(data), "picture", where=None, limit=3)
    index_words(Dataset.open(data))
    assert len(by_words(Dataset.open(data), "picture", where=None, limit=3).rows) == 3


def test_a_table_that_was_cut_short_is_one_line(data: Path) -> None:
    from carrara.errors import refusal

    (file,) = (data / "pictures.lance" / "data").glob("*.lance")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises((OSError, ValueError)) as failed:
        Dataset.open(data).column("label")
    assert str(refusal(failed.value)).startswith("a file of the table is damaged: ")
