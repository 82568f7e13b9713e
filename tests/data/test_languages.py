"""A caption gets a language only where it is certain; one that says that nobody knows keeps none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emoji
import pytest

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.importing.caption_language import Spoken, language_of, spoken_in
from carrara.importing.formats.emoji import LANGUAGES
from carrara.importing.importing import import_pictures

SENTENCES = {
    "en": "two people walking along the beach at sunset",
    "de": "eine Katze schläft auf einem roten Sofa",
    "fr": "vieille maison en bois dans les montagnes",
    "ru": "старый деревянный дом в горах",
    "ja": "夕日の浜辺を歩く二人",
    "zh": "两个人在日落时沿着海滩散步",
    "ko": "해질녘 해변을 걷는 두 사람",
    "ar": "شخصان يمشيان على الشاطئ عند الغروب",
}


def test_no_name_gets_a_wrong_language() -> None:
    """Names of emoji in 14 languages; few of them are certain, and those are right."""
    emoji.config.load_language(list(LANGUAGES))
    every = [d for d in emoji.EMOJI_DATA.values() if d["status"] == 2 and "skin_tone" not in d["en"]]
    names = [(k, d[k].strip(":").replace("_", " ")) for d in every[::20] for k in LANGUAGES if k in d]
    found = [(wanted, found) for wanted, text in names if (found := language_of(text)) is not None]
    assert len(found) > len(names) / 10
    assert sum(wanted != found for wanted, found in found) <= len(found) / 100
    for text in (
        "IMG_2034",
        "nike air max 90",
        "John Smith",
        "Berlin",
        "cat",
        "masterpiece, 1girl, blue hair",
        "1",
        "",
    ):
        assert language_of(text) is None, text


def take_in(source: Path, destination: Path, **options: Any) -> dict[str, list[Any]]:
    list(import_pictures(source, destination, **options))
    dataset = Dataset.open(destination)
    return {name: dataset.column(name) for name in dataset.columns if name.startswith("caption")}


def test_captions_find_their_columns(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    root = tmp_path / "in"
    root.mkdir()
    texts = {**SENTENCES, "und": "pikachu 12"}
    rows: list[dict[str, Any]] = [
        {"file_name": f"{k}.png", "text": text} for k, text in enumerate(texts.values())
    ]
    rows.append({"file_name": "9.png", "text": SENTENCES["de"], "language": "und"})
    rows.append({"file_name": "10.png", "text": SENTENCES["de"], "caption_de": "anders"})
    for row in rows:
        (root / row["file_name"]).write_bytes(make_png(int(row["file_name"][:-4])))
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = take_in(root, tmp_path / "data")
    assert found["caption"] == [None] * 8 + ["pikachu 12", SENTENCES["de"], SENTENCES["de"]]
    assert found["caption_de"] == [None, SENTENCES["de"], *[None] * 8, "anders"]
    assert {f"caption_{k}" for k in SENTENCES} <= found.keys()
    kept = take_in(root, tmp_path / "kept", languages="keep")
    assert kept.keys() == {"caption", "caption_de"}
    assert kept["caption"] == [row["text"] for row in rows]
    stated = take_in(root, tmp_path / "stated", languages="PT-br")
    assert stated["caption_pt_br"] == [*texts.values(), None, SENTENCES["de"]]
    assert stated["caption"] == [None] * 9 + [
        SENTENCES["de"],
        None,
    ]  # of one, the source says that nobody knows
    with pytest.raises(UserError, match=r"languages.*expected a language code such as 'en'"):
        take_in(root, tmp_path / "none", languages="guess")


ENGLISH = [
    "a man standing on the beach with a surfboard",
    "two dogs play in the snow near a fence",
    "a group of people sitting around the table",
    "the cat is sleeping on the sofa",
    "this is a very old house with a garden",
    "somebody walks through the forest",
]
SHORT = [
    "a photo of a dress",
    "my sneakers",
    "vintage denim jacket",
    "a red cap",
    "1girl, solo, blue hair, smile",
]
OTHER = ["IMG_2231", "SKU-4432-B", "猫", "кошка", "ein rotes Kleid", "vestido rojo", "7"]


def test_short_captions_go_with_most_of_their_source() -> None:
    spoken = spoken_in([*SHORT, *OTHER, *ENGLISH])
    assert [language_of(text) for text in SHORT] == [None] * len(SHORT)
    assert [language_of(text, spoken) for text in SHORT] == ["en"] * len(SHORT)
    assert {language_of(text, spoken) for text in OTHER} <= {None, "de", "es"}
    assert language_of(SENTENCES["fr"], spoken) == "fr"
    # Where languages are mixed, or few are certain, nothing is told of the others.
    assert spoken_in([*ENGLISH, SENTENCES["de"], SENTENCES["fr"]]) == spoken_in(ENGLISH[:4]) == Spoken()


def test_an_import_decides_with_the_whole_source(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for k, text in enumerate([*SHORT, *ENGLISH]):
        (root / f"{k:02}.png").write_bytes(make_png(k))
        (root / f"{k:02}.txt").write_text(text)
    found = take_in(root, tmp_path / "data")
    assert found == {"caption": [None] * 11, "caption_en": [*SHORT, *ENGLISH]}


def test_captions_of_very_many_languages(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    """They are counted together, not a query each."""
    codes = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(make_png(0))
    (tmp_path / "in" / "metadata.jsonl").write_text(
        json.dumps({"file_name": "0.png"} | {f"caption_{code}": code for code in codes})
    )
    *_, last = import_pictures(tmp_path / "in", tmp_path / "data")
    assert last.summary is not None
    assert last.summary.captions == dict.fromkeys(codes, 1)
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.captions == {code: f"caption_{code}" for code in codes}
    assert dataset.caption_counts == {"caption": 0} | {f"caption_{code}": 1 for code in codes}
