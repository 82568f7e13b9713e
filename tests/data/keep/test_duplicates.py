"""Copies are found, told apart from look-alikes of another colour, and leave a data set only as a new one."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carrara.cleaning import duplicates
from carrara.cleaning.duplicates import (
    Likeness,
    by_features,
    by_hash,
    components,
    features_column,
    groups,
    hanging_together,
)
from carrara.cli.dedup import data_dedup
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, derive
from carrara.dataset.fingerprints import derive_glances, glance_column
from carrara.dataset.loader import Reading
from carrara.dataset.word_changes import amend
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from carrara.search.vector_columns import vector_key
from data.keep.test_perceptual_hash import drawing


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Twelve pictures, and of the first: a larger one, other bytes of the same pixels, a mirror image; two blanks."""
    source = tmp_path / "source"
    source.mkdir()
    for seed in range(12):
        drawing(seed).save(source / f"a{seed:02}.png")
    drawing(0).resize((192, 128)).save(source / "b0-large.jpg", quality=80)
    drawing(0).save(source / "b1-same.png", compress_level=1)
    drawing(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(source / "b2-mirror.png")
    for k in (0, 1):
        Image.new("RGB", (20 + k, 20), (9, 9, 200)).save(source / f"c{k}.png")
    list(import_pictures(source, tmp_path / "data", held_out=0))
    found = Dataset.open(tmp_path / "data")
    assert found.take(range(17), ["source"])["source"][0] == "a00.png"
    return found


def glanced(dataset: Dataset) -> str:
    list(derive_glances(dataset))
    column = glance_column(dataset)
    assert column is not None
    return column


def test_groups_keep_the_best_and_say_how_the_others_are_like_it(dataset: Dataset) -> None:
    column = glanced(dataset)
    first, blank = groups(dataset, by_hash(dataset, column, mirrored=True))
    assert first.kept == 12  # the largest
    assert sorted(first.rows) == [0, 12, 13, 14]
    assert [copy.row for copy in first.copies if copy.how.startswith("mirrored")] == [14]
    assert blank.rows == [16, 15]
    assert sorted(groups(dataset, by_hash(dataset, column))[0].rows) == [0, 12, 13]
    amend(dataset, {"caption": {13: "the one with words"}})
    captioned = groups(dataset, by_hash(dataset, column))[0]
    assert captioned.kept == 13
    assert {copy.row: copy.how for copy in captioned.copies}[0] == "the same pixels"


def test_a_chain_is_one_component_and_its_ends_are_no_copies(dataset: Dataset) -> None:
    ties = (np.array([1, 2]), np.array([2, 3]))  # 2 is like 1 and like 3, which are not alike
    likeness = Likeness(np.arange(17), *ties, np.array([3, 4], np.float32), np.zeros(2, bool), "hash")
    assert components(likeness).tolist() == [0, 1, 1, 1, *range(4, 17)]
    (group,) = groups(dataset, likeness)
    assert group.rows == [1, 2]
    names = hanging_together(np.arange(6), np.array([5, 4, 3, 2, 1]), np.array([4, 3, 2, 1, 0]))
    assert names.tolist() == [0] * 6


def test_by_what_a_network_sees(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no feature vectors; make them with `carrara data encode"):
        features_column(dataset)
    vectors = np.eye(17, 40, dtype=np.float32)
    vectors[4] = vectors[7] + 0.1 * vectors[4]
    key = vector_key("test", {}, "image", joint=False)
    ids = dataset.column("id")
    list(
        derive(
            dataset,
            Derivation(
                "seen",
                key,
                lambda columns: vectors[[ids.index(known) for known in columns["id"]]],
                batch=8,
                reading=Reading(("id",)),
            ),
        )
    )
    likeness = by_features(dataset, features_column(dataset), 0.95)
    (group,) = groups(dataset, likeness)
    assert group.rows == [4, 7]
    assert group.copies[0].how == "cosine 0.995"
    monkeypatch.setattr(duplicates, "EXACT", 10)  # with more, not everything is compared
    monkeypatch.setattr(duplicates, "alike", None)
    assert groups(dataset, by_features(dataset, features_column(dataset), 0.95)) == [group]


@pytest.mark.parametrize(
    ("former", "better"),
    [
        (("1.jpg", {"quality": 95}), ("2.png", {})),
        (("1.webp", {"quality": 80}), ("2.webp", {"lossless": True})),
        (("1.jpg", {"quality": 60}), ("2.jpg", {"quality": 95})),
        (("1.png", {"compress_level": 9}), ("2.bmp", {})),
    ],
)
def test_of_one_size_the_picture_that_lost_nothing_stays(
    tmp_path: Path, former: tuple[str, dict[str, int]], better: tuple[str, dict[str, int]]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, how in (former, better):
        drawing(0).save(source / name, **how)
    list(import_pictures(source, tmp_path / "data", held_out=0))
    found = Dataset.open(tmp_path / "data")
    (group,) = groups(found, by_hash(found, glanced(found)))
    assert found.take(group.rows, ["source"])["source"] == [better[0], former[0]]


def test_nothing_goes_unless_asked(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dedup(dataset.path, out=tmp_path / "copies.html")
    said = capsys.readouterr().out
    assert "3 of 17 pictures are copies of another one, in 2 groups" in said
    assert "nothing is dropped" in said
    page = (tmp_path / "copies.html").read_text()
    assert page.count("<figure") == 5
    assert "http" not in page
    data_dedup(dataset.path, mirrored=True, into=tmp_path / "new", mark=True, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert (report["copies"], report["marked"]) == (4, 4)
    assert [len(group["copies"]) for group in report["groups"]] == [3, 1]
    new = Dataset.open(tmp_path / "new")
    assert len(new) == 13
    assert "perceptual hash" in new.about["subset"]["why"]
    dataset.refresh()
    assert len(dataset) == 17
    marked = dataset.column("group")
    assert marked[0] == marked[12] == marked[13] == marked[14] != marked[1]
    assert marked[15] == marked[16]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"within": 2.5}, "a whole number of bits"),
        ({"by": "features", "within": 8.0}, "a cosine, at most 1"),
        ({"by": "features", "mirrored": True}, "--mirrored is for --by hash"),
        ({"out": Path("page.txt")}, "ends in .html"),
    ],
)
def test_what_cannot_be_is_said(dataset: Dataset, options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        data_dedup(dataset.path, **options)  # type: ignore[arg-type]
