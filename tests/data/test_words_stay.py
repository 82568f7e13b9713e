"""Whose words a source may take away: its own. What is lost is counted, and one command brings it back."""

import json
import tomllib
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
import tomli_w

from carrara.dataset.columns import caption_column, caption_language
from carrara.dataset.commits import update
from carrara.dataset.dataset import Dataset
from carrara.dataset.versions import restore
from carrara.dataset.word_sources import Owners
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from carrara.importing.record import look_at
from carrara.importing.row import Row
from carrara.importing.summary import Summary

from .conftest import png


def take_in(source: Path, data: Path, **options: Any) -> Summary:
    *_, last = import_pictures(source, data, **options)
    assert last.summary is not None
    return last.summary


def says(data: Path, *columns: str) -> list[tuple[Any, ...]]:
    dataset = Dataset.open(data)
    return list(zip(*(dataset.column(name) for name in columns), strict=True))


def folder_of(place: Path, texts: dict[str, str], pictures: int = 2) -> Path:
    place.mkdir(exist_ok=True)
    for k in range(pictures):
        (place / f"{k}.png").write_bytes(png(k, (40, 36)))
    for name, text in texts.items():
        (place / name).write_text(text)
    return place


LINES = {
    "captions": ({"text": "a cap", "caption_de": "eine Kappe"}, ("caption", "caption_de")),
    "further captions": ({"captions": ["a cap", "a hat"]}, ("caption", "captions_more")),
    "label": ({"label": "cap"}, ("label",)),
    "group and split": ({"group": "g", "split": "test"}, ("group", "split")),
    "licence and url": ({"licence": "MIT", "url": "http://x.test/1"}, ("licence", "url")),
    "flags": ({"flags": "good old"}, ("flags",)),
    "boxes": ({"boxes": [{"label": "x", "box": [0.1, 0.1, 0.5, 0.5]}]}, ("boxes",)),
    "who made them": ({"caption_en": "a cap", "captioned_by": "en:blip"}, ("caption_en", "captioned_by")),
}


@pytest.mark.parametrize(("said", "columns"), LINES.values(), ids=LINES)
def test_a_source_without_words_takes_none_away(
    said: dict[str, Any], columns: tuple[str, ...], tmp_path: Path
) -> None:
    """A copy of the folder at another place; at the same place the words are taken away, and counted."""
    data = tmp_path / "data"
    first, backup = folder_of(tmp_path / "a", {}), folder_of(tmp_path / "b", {})
    table = first / "metadata.jsonl"
    table.write_text("".join(json.dumps({"file_name": f"{k}.png", **said}) + "\n" for k in range(2)))
    (first / "0.map.png").write_bytes(png(9, (40, 36), "L"))
    take_in(first, data, languages="keep")
    before = says(data, *columns, "map_id")
    silent = take_in(backup, data, languages="keep")
    assert (silent.added, silent.updated, silent.lost) == (0, 0, 0)
    assert says(data, *columns, "map_id") == before
    version = Dataset.open(data).version
    table.unlink()
    (first / "0.map.png").unlink()
    emptied = take_in(first, data, languages="keep")
    assert (emptied.updated, emptied.lost) == (2, 2 if "caption" in columns[0] else 0)
    assert says(data, "map_id") == [(None,), (None,)]
    assert all(new != old for new, old in zip(says(data, *columns), before, strict=True))
    if "split" not in columns:
        assert restore(Dataset.open(data, version=version)).rows == 2
        assert says(data, *columns, "map_id") == before


def test_each_source_takes_back_what_it_said_itself(tmp_path: Path) -> None:
    """And what another changed is looked at again, where the source itself is as it was."""
    data = tmp_path / "data"
    first = folder_of(tmp_path / "a", {"0.txt": "a red cap", "1.txt": "a blue cap"})
    other = folder_of(tmp_path / "b", {"0.de.txt": "eine Kappe"})
    take_in(first, data)
    assert (add := take_in(other, data)).updated == 1
    assert add.lost == 0
    again = take_in(first, data)
    assert (again.unchanged, again.updated) == (False, 0)  # looked at, since the other changed its rows
    assert take_in(first, data).unchanged
    assert says(data, "caption", "caption_de") == [("a red cap", "eine Kappe"), ("a blue cap", None)]
    (other / "0.de.txt").unlink()
    taken = take_in(other, data)
    assert taken.lost == 1
    assert "1 lost their caption" in taken.lines()[0]
    assert f"`carrara data restore {data}@{taken.before}`" in taken.lines()[1]
    (other / "0.txt").write_text("a green cap")  # says otherwise, and is then the one that said it
    take_in(other, data)
    (other / "0.txt").unlink()
    assert take_in(other, data).lost == 1
    assert says(data, "caption") == [(None,), ("a blue cap",)]
    back = take_in(first, data)
    assert (back.unchanged, back.updated) == (False, 1)
    assert says(data, "caption") == [("a red cap",), ("a blue cap",)]


def test_words_lost_before_sources_were_told_apart_come_back(tmp_path: Path) -> None:
    """A table of before: no column of who brought a row, and a first source that believes it has nothing to do."""
    data = tmp_path / "data"
    first = folder_of(tmp_path / "a", {"0.txt": "a red cap", "1.txt": "a blue cap"})
    take_in(first, data)
    take_in(folder_of(tmp_path / "b", {}), data)
    table = lance.dataset(data / "pictures.lance")
    update(table, {"caption": dict.fromkeys(Dataset.open(data).column("id"))})
    lance.dataset(data / "pictures.lance").drop_columns(["origin"])
    about = tomllib.loads((data / "dataset.toml").read_text())
    for source in about["sources"]:
        for name in ("order", "changed", "shares"):
            del source[name]
    (data / "dataset.toml").write_text(tomli_w.dumps(about))
    assert says(data, "caption") == [(None,), (None,)]
    assert take_in(first, data).updated == 2
    assert says(data, "caption") == [("a red cap",), ("a blue cap",)]
    (first / "0.txt").unlink()  # who said it was not known then, but is since
    assert take_in(first, data).lost == 1


def test_several_captions_of_one_picture_are_all_kept(tmp_path: Path) -> None:
    source, data = folder_of(tmp_path / "a", {"0.txt": "one", "1.txt": "other"}), tmp_path / "data"
    for name, text in (("x", "two"), ("y", "three"), ("z", "two")):
        (source / f"{name}.png").write_bytes(png(0, (40, 36)))
        (source / f"{name}.txt").write_text(text)
    (source / "z.de.txt").write_text("eins")
    expected = [("one", "eins", '["two", "three"]'), ("other", None, None)]
    take_in(source, data)
    assert says(data, "caption", "caption_de", "captions_more") == expected
    (source / "2.txt").write_text("nothing")
    assert take_in(source, data).updated == 0
    assert says(data, "caption", "caption_de", "captions_more") == expected


def test_the_old_row_of_an_edited_picture_is_told(tmp_path: Path) -> None:
    source, data = folder_of(tmp_path / "a", {"0.txt": "a cap"}, 3), tmp_path / "data"
    other = folder_of(tmp_path / "b", {}, 3)  # of its own: nobody edits these
    take_in(source, data)
    take_in(other, data)
    (source / "0.png").write_bytes(png(50, (40, 36)))
    (source / "2.png").rename(source / "renamed.png")
    (source / "2.png").write_bytes(
        png(51, (40, 36))
    )  # another picture under the name of one that is still there
    edited = take_in(source, data)
    assert (edited.added, edited.replaced) == (2, 1)
    assert "flag 'replaced'" in "".join(edited.lines())
    assert says(data, "source", "caption", "flags") == [
        ("0.png", "a cap", "replaced"),
        ("1.png", None, None),
        ("2.png", None, None),
        ("0.png", "a cap", None),
        ("2.png", None, None),
    ]
    assert take_in(source, data).unchanged
    (source / "0.png").write_bytes(png(0, (40, 36)))  # and back
    assert take_in(source, data).replaced == 1
    assert [flags for (flags,) in says(data, "flags")] == [None, None, None, "replaced", None]


CODES = ["İki", "it\u0130", "\u017fr", "DE", "zh-TW", "zh_tw", "e", "de-", "map-é", "ﬁ"]


@pytest.mark.parametrize("code", CODES)
def test_a_language_code_is_ascii(code: str, tmp_path: Path) -> None:
    """Whatever a file or a column is called, the data set opens; what is no code is no caption of its picture."""
    good = code in ("DE", "zh-TW", "zh_tw")
    source, data = folder_of(tmp_path / "a", {"0.txt": "one"}), tmp_path / "data"
    (source / f"0.{code}.txt").write_text("zwei")
    (source / "metadata.csv").write_text(f"file_name,caption_{code}\n1.png,drei\n")
    take_in(source, data)
    dataset = Dataset.open(data)
    spoken = set(dataset.captions) - {"und"}
    assert spoken == ({code.lower().replace("_", "-")} if good else set())
    assert ("zwei" in str(says(data, *dataset.captions.values()))) == good
    row = Row("x.png", lambda: png(1), captions={code: "text", "und": "plain"})
    looked = look_at(row)
    assert not hasattr(looked, "reason")
    assert bool(looked.left_out) != good
    if not good:
        with pytest.raises(ValueError, match="no language code"):
            caption_column(code)


def test_a_data_set_with_a_column_of_no_language_opens(tmp_path: Path) -> None:
    """As an earlier version made it: the column stays, and is no caption."""
    data = tmp_path / "data"
    source = folder_of(tmp_path / "a", {"0.txt": "one"})
    take_in(source, data)
    table = lance.dataset(data / "pictures.lance")
    table.add_columns([pa.field("caption_i̇ki", pa.string())])
    update(
        lance.dataset(data / "pictures.lance"), {"caption_i̇ki": {Dataset.open(data).column("id")[0]: "iki"}}
    )
    dataset = Dataset.open(data)
    assert dataset.captions == {"und": "caption"}
    assert dataset.column("caption_i̇ki") == ["iki", None]
    assert dataset.hash
    (source / "1.txt").write_text("two")
    assert take_in(source, data).updated == 1
    assert says(data, "caption", "caption_i̇ki") == [("one", "iki"), ("two", None)]


@pytest.mark.parametrize(
    "column", ["caption", "caption_de", "caption_zh_tw", "caption_İt", "captions_more", "caption_"]
)
def test_columns_of_captions(column: str) -> None:
    language = caption_language(column)
    assert (language is not None) == (column in ("caption", "caption_de", "caption_zh_tw"))
    assert language is None or caption_column(language) == column


def test_restoring(tmp_path: Path) -> None:
    source, data = folder_of(tmp_path / "a", {"0.txt": "one", "1.txt": "two"}, 3), tmp_path / "data"
    take_in(source, data)
    version = Dataset.open(data).version
    (source / "0.txt").unlink()
    (source / "1.txt").write_text("other")
    take_in(source, data)
    (source / "new.png").write_bytes(png(7))
    take_in(source, data)
    with pytest.raises(UserError, match=r"Expected .*data@NUMBER"):
        restore(Dataset.open(data))
    done = restore(Dataset.open(data, version=version))
    assert (done.rows, done.left) == (1, 1)
    assert [text for (text,) in says(data, "caption")] == ["one", "other", None, None]
    assert restore(Dataset.open(data, version=version), changed=True).rows == 1
    assert [text for (text,) in says(data, "caption")] == ["one", "two", None, None]
    (source / "0.de.txt").write_text("eins")
    take_in(source, data)  # which leaves what was set by hand
    assert says(data, "caption", "caption_de")[:2] == [("one", "eins"), ("two", None)]


def test_owners() -> None:
    a, b = "0" * 15 + "a", "0" * 15 + "b"
    owners = Owners(a)
    assert owners.are_all(a)
    owners["caption"] = b
    assert (owners["caption"], owners["label"], str(owners)) == (b, a, f"{a} caption={b}")
    assert str(Owners(str(owners))) == str(owners)
    owners["caption"] = a
    assert owners.are_all(a)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"mode": "\ud800"}, "its mode is"),
        ({"width": 2**31}, "its width is 2147483648"),
        ({"height": None}, "its height is None"),
        ({"caption_De": "x"}, "there is no column 'caption_De'"),
        ({"caption_i̇ki": "x"}, "there is no column 'caption_i̇ki'"),
        ({"label": 3}, "its label is 3"),
        ({"map": "x"}, "its map is 'x'"),
    ],
    ids=str,
)
def test_what_the_table_cannot_take_is_one_rejected_row(
    wrong: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything of it is written; all others come in."""
    source, data = folder_of(tmp_path / "a", {"0.txt": "one"}), tmp_path / "data"

    def looked(item: Any) -> Any:
        found = look_at(item)
        if item.source == "1.png":
            found.record.update(wrong)
        return found

    monkeypatch.setattr("carrara.importing.record.look_at", looked)
    assert take_in(source, data).added == 1
    (line,) = (data / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"].startswith(f"the table cannot take it: {reason}")
    assert says(data, "source", "caption") == [("0.png", "one")]


# Captions that a sentence makes at the import


def classes(place: Path) -> Path:
    for k, name in enumerate(("hat/0.png", "hat/1.png", "shoe/0.png", "2.png")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(png(k, (40, 36)))
    (place / "hat" / "1.de.txt").write_text("ein alter Hut")
    return place


@pytest.mark.parametrize(
    ("options", "language", "expected"),
    [
        ({"caption": "a photo of a {label}"}, "en", "a photo of a hat"),
        ({"caption": "Foto: {label}, {width} breit", "languages": "de"}, "de", "Foto: hat, 40 breit"),
        ({"caption": "{source}", "languages": "keep"}, "en", "hat/0.png"),
    ],
)
def test_a_sentence_speaks_of_pictures_without_captions(
    options: dict[str, str], language: str, expected: str, tmp_path: Path
) -> None:
    source, data = classes(tmp_path / "in"), tmp_path / "data"
    take_in(source, data, **options)
    found = {
        row[0]: row[1:] for row in says(data, "source", f"caption_{language}", "caption_de", "captioned_by")
    }
    assert found["hat/0.png"][::2] == (expected, f"{language}:columns")
    assert found["hat/1.png"][1:] == ("ein alter Hut", None)
    assert (found["2.png"][0] is None) == ("{label}" in options["caption"])
    # The same source later, without the option: nothing is to do, and what is new gets its caption too.
    assert take_in(source, data, languages=options.get("languages", "detect")).unchanged
    (source / "shoe" / "9.png").write_bytes(png(9, (40, 36)))
    summary = take_in(source, data)
    assert (summary.added, summary.lost) == (1, 0)
    assert says(data, f"caption_{language}")[-1] != (None,)
    assert take_in(source, data, caption="").lost > 0


def test_a_sentence_takes_the_place_of_nobodys_words(tmp_path: Path) -> None:
    data = tmp_path / "data"
    take_in(folder_of(tmp_path / "words", {"0.txt": "a red cap"}), data, languages="en")
    again = folder_of(tmp_path / "bare", {}, pictures=3)
    (again / "copy.png").write_bytes(png(0, (40, 36)))  # of 0.png
    take_in(again, data, caption="file {source}")
    assert says(data, "source", "caption_en", "captioned_by") == [
        ("0.png", "a red cap", None),
        ("1.png", "file 1.png", "en:columns"),
        ("2.png", "file 2.png", "en:columns"),
    ]
    assert "captions_more" not in Dataset.open(data).columns


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("a {lable}", "no column 'lable' for the sentence; did you mean 'label'"),
        ("a photo", "names no column in braces"),
        ("a {", "cannot be read"),
        ("a {label!r}", "a column's name alone"),
    ],
)
def test_a_sentence_that_is_none_stops_before_anything(sentence: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        take_in(classes(tmp_path / "in"), tmp_path / "data", caption=sentence)
    assert not (tmp_path / "data").exists()
