"""What is counted agrees with what was put in; the page needs nothing from outside."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carrara.cleaning.crops import cut, lost_in_square
from carrara.cleaning.figures import Statistics
from carrara.cleaning.statistics import measure
from carrara.cli.clean import data_stats
from carrara.dataset.dataset import Dataset
from carrara.dataset.fingerprints import derive_glances
from carrara.dataset.word_changes import amend
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from data.keep.test_perceptual_hash import drawing


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Thirty pictures of three sizes in two classes, two of them alike, some with captions in two languages."""
    for k in range(30):
        folder = tmp_path / "source" / ("cats" if k % 5 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        size = [(64, 64), (128, 64), (40, 120)][k % 3]
        image = Image.new("RGB", size) if k == 7 else drawing(k if k != 9 else 6, size)
        image.save(folder / f"{k:02}.{'jpg' if k % 2 else 'png'}")
        if k < 20:
            (folder / f"{k:02}.de.txt").write_text(
                "ein Bild" if k % 2 else f"das Bild Nummer {k}, " + "lang " * k
            )
    list(import_pictures(tmp_path / "source", tmp_path / "data", held_out=0, licence="CC0"))
    return Dataset.open(tmp_path / "data")


def measured(dataset: Dataset) -> Statistics:
    measuring = measure(dataset, size=64)
    while True:
        try:
            next(measuring)
        except StopIteration as end:
            found: Statistics = end.value
            return found


def test_counts(dataset: Dataset) -> None:
    amend(
        dataset,
        {"flags": {0: "alpha tiny", 1: "tiny"}, "url": {2: "https://a.example/x", 3: "http://[broken"}},
    )
    amend(dataset, {"captioned_by": {k: "de:blip" for k in range(3)}, "split": {0: "held_out"}})
    before = dataset.version
    found = measured(dataset)
    assert dataset.version == before
    assert (found.pictures, found.decoded, found.splits) == (30, 30, {"train": 29, "held_out": 1})
    assert found.files.formats == {"PNG": 15, "JPEG": 15}
    assert found.sizes.shapes == {"wider than high": 10, "about square": 10, "higher than wide": 10}
    assert dict(found.sizes.commonest) == {"64 x 64": 10, "128 x 64": 10, "40 x 120": 10}
    assert found.licences == {"CC0": 30}
    assert found.flags == {"tiny": 2, "alpha": 1}
    assert found.hosts == {"a.example": 1, "not an address": 1}
    assert found.classes is not None
    assert (dict(found.classes.largest), found.classes.imbalance) == ({"cats": 24, "dogs": 6}, 4)
    assert 1 < found.classes.even < 2
    german = found.languages["de"]
    assert (german.captions, german.by_machine, found.uncaptioned) == (20, 3, 10)
    assert german.different == 11 / 20
    assert german.commonest == [("ein Bild", 10)]
    assert german.characters is not None
    assert german.characters.lowest == len("ein Bild")
    assert found.captioned_by == {"de:blip": 3}
    assert (found.copies.groups, found.copies.pictures, found.copies.across_splits) == (1, 1, 0)
    assert found.square.lost is not None
    assert found.square.lost.highest == pytest.approx(2 / 3, abs=1e-3)
    assert found.square.enlarged == 10  # those 40 wide
    black = int(np.flatnonzero(np.array(dataset.column("source")) == "cats/07.jpg")[0])
    assert found.extremes["darkest"][0] == (black, "light 0 of 255")
    assert found.extremes["with least in them"][0][0] == black
    advice = "\n".join(found.advice)
    for words in ("10 pictures have no caption", "ratio=2", "enlarged", "are few", "look like another one"):
        assert words in advice


def test_all_pictures_where_their_glances_are_there(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carrara.cleaning.statistics.SAMPLE", 8)
    part = measured(dataset)
    assert part.decoded == 8
    assert sum(part.files.formats.values()) == 8
    list(derive_glances(dataset))
    whole = measured(dataset)
    assert (whole.decoded, whole.copies.pictures) == (30, 1)
    assert whole.light is not None
    assert whole.light.lowest == 0
    amend(dataset, {"split": {k: "held_out" for k in range(9)}})
    then = measured(Dataset.open(dataset.path, version=whole.version - 1))  # before there were glances
    assert (then.decoded, then.copies, then.splits) == (30, whole.copies, {"train": 30})
    with pytest.raises(UserError, match="has no pictures"):
        data_stats(Path(f"{dataset.path}@1"))


def test_a_page_and_json(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    data_stats(dataset.path, size=64)
    said = capsys.readouterr().out
    assert "30 pictures, 30 train" in said
    assert "nothing is held out to measure on" in said
    page = dataset.path.parent / "data-stats.html"
    text = page.read_text()
    assert "<script" not in text
    assert "http" not in text
    assert text.count('src="data:image/png;base64,') >= 30
    data_stats(dataset.path, out=page, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["sizes"]["width"]["highest"] == 128
    assert document["languages"]["de"]["captions"] == 20
    assert document["page"] == str(page)


@pytest.mark.parametrize("size", [(1000, 3), (3, 1000), (4000, 10), (10, 4000), (2000, 1), (1, 2000)])
def test_very_long_pictures_are_shown(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name, sides in (("long", size), ("square", (30, 30))):
        Image.new("RGB", sides, "teal").save(tmp_path / "source" / f"{name}.png")
    list(import_pictures(tmp_path / "source", tmp_path / "data", held_out=0))
    data_stats(tmp_path / "data", out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Those that a square cuts most" in page
    assert page.count("BadPicture") == 0


def test_what_a_crop_leaves() -> None:
    widths, heights = np.array([100, 200, 50, 300]), np.array([100, 100, 200, 100])
    np.testing.assert_allclose(lost_in_square(widths, heights), [0, 0.5, 0.75, 2 / 3])
    found = cut(widths, heights, [(64, 64), (48, 96), (96, 48)])
    assert found.used == [1, 2, 1]
    assert found.enlarged == 0
    assert found.lost is not None
    assert found.lost.highest == 0.5  # 50 x 200 to 48 x 96
    assert cut(widths, heights, [(150, 150)]).enlarged == 4
    assert found.much == 0.5
