"""Full text in several languages and scripts, with rows that no index holds yet."""

from collections.abc import Callable
from pathlib import Path

import pytest

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from carrara.search.by_words import by_spelling, by_words, index_words, indexed
from carrara.search.indexes import covers
from carrara.search.query import Query
from carrara.search.search import search
from conftest import run_out

CAPTIONS = {  # file: language: caption
    "apple": {
        "en": "a red apple",
        "de": "ein roter Apfel",
        "zh": "红苹果",
        "ar": "تفاحة حمراء",
        "ja": "赤いリンゴ",
    },
    "star": {"en": "a red star", "de": "ein grüner Stern", "zh": "红色的星星", "ar": "نجمة أحمر"},
    "dog": {"en": "A running DOG", "de": "ein laufender Hund", "zh": "跑步的狗"},
}


@pytest.fixture
def data(tmp_path: Path, make_png: Callable[..., bytes]) -> Dataset:
    folder = tmp_path / "source"
    folder.mkdir()
    for number, (name, captions) in enumerate(CAPTIONS.items()):
        (folder / f"{name}.png").write_bytes(make_png(number))
        for language, text in captions.items():
            (folder / f"{name}.{language}.txt").write_text(text, encoding="utf-8")
    run_out(import_pictures(str(folder), tmp_path / "data", held_out=0))
    return Dataset.open(tmp_path / "data")


def names(dataset: Dataset, text: str, where: str | None = None) -> list[str]:
    found = by_words(dataset, text, where=where, limit=10)
    assert len(set(found.rows.tolist())) == len(found.rows) == len(found.words)
    return [Path(source).stem for source in dataset.take(found.rows, ["source"])["source"]]


def test_words_of_any_script_are_found_whatever_their_case_and_accents(data: Dataset) -> None:
    assert not indexed(data)
    assert sorted(index_words(data)) == sorted([*data.captions.values(), "label"])
    assert indexed(data)
    assert index_words(data) == []  # nothing to do again
    for text, wanted in {
        "dog": ["dog"],
        "grün grüner": ["star"],
        "gruner": ["star"],
        "苹果": ["apple"],
        "星星": ["star"],
        "狗": ["dog"],
        "リンゴ": ["apple"],
        "حمراء": ["apple"],
        "red apple": ["apple", "star"],  # all of the words first, then some of them
        "xylophone": [],
    }.items():
        assert names(data, text) == wanted, text
    assert names(data, "red", where="source LIKE '%star%'") == ["star"]
    with pytest.raises(UserError, match="the condition names a column 'nothing'"):
        names(data, "red", where="nothing = 3")
    reasons = by_words(data, "red apple", where=None, limit=10).words
    assert reasons == ["all words in en", "some words in en"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("aple", ["apple"]),
        ("Aple", ["apple"]),
        ("APLE", ["apple"]),
        ("grünner", ["star"]),
        ("GRÜNNER", ["star"]),
        ("gr\N{LATIN SMALL LETTER U}\N{COMBINING DIAERESIS}nner", ["star"]),  # decomposed
        ("aplpe", ["apple"]),  # two letters changed places
        ("Apffel", ["apple"]),
        ("dgo", []),  # short: two edits would make any word of it
        ("x" * 300, []),
        ("", []),
    ],
)
def test_similar_spellings(data: Dataset, text: str, wanted: list[str]) -> None:
    index_words(data)
    assert names(data, text) == []
    found = by_spelling(data, text, where=None, limit=10)
    assert [Path(s).stem for s in data.take(found.rows, ["source"])["source"]] == wanted
    assert found.certain == 0


def test_labels_are_words_too(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    for number, label in enumerate(["longsleeve", "hat", "hat"]):
        (tmp_path / "source" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / label / f"{number}.png").write_bytes(make_png(number))
    run_out(import_pictures(str(tmp_path / "source"), tmp_path / "data", held_out=0))
    dataset = Dataset.open(tmp_path / "data")
    assert not dataset.captions
    found = search(dataset, Query(words="Longsleeve"), lambda column: pytest.fail(column))
    assert [hit.told["label"] for hit in found.hits] == ["longsleeve"]
    assert found.hits[0].reasons[0].words == "all words in the label"
    assert len(search(dataset, Query(words="hat"), lambda column: pytest.fail(column)).hits) == 2


def test_rows_that_came_after_the_index_are_found_and_taken_into_it(
    data: Dataset, tmp_path: Path, make_png: Callable[..., bytes]
) -> None:
    index_words(data)
    (tmp_path / "source" / "pear.png").write_bytes(make_png(9))
    (tmp_path / "source" / "pear.en.txt").write_text("a green pear", encoding="utf-8")
    (tmp_path / "source" / "apple.de.txt").write_text("ein saftiger Apfel", encoding="utf-8")
    run_out(import_pictures(str(tmp_path / "source"), tmp_path / "data", held_out=0))
    data.refresh()
    assert (covers(data, "caption_en") or 0) < 4
    assert names(data, "pear") == ["pear"]
    assert names(data, "saftiger") == ["apple"]
    assert names(data, "roter") == []  # the words that it had before are gone
    assert "caption_en" in index_words(data)
    assert covers(data, "caption_en") == 4
    assert names(data, "green") == ["pear"]
