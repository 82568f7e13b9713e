"""Pictures with nothing to see, on white and in 8 bits, are copies only where all their numbers are the same."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from carrara.cleaning.duplicates import by_features, by_hash, components, groups
from carrara.cleaning.figures import Statistics
from carrara.cleaning.statistics import measure
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, derive
from carrara.dataset.loader import Reading
from carrara.importing.importing import import_pictures
from carrara.search.vector_columns import vector_key
from glances import all_glanced


def pattern(seed: int, top: int, kind: type = np.uint16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, top + 1, (4, 6)), np.ones((12, 12))).astype(kind)


def _faint(seed: int) -> Image.Image:
    return Image.fromarray(pattern(seed, 300))


def _faint_float(seed: int) -> Image.Image:
    return Image.fromarray(pattern(seed, 1).astype(np.float32) / 500)


def _white_on_nothing(seed: int) -> Image.Image:
    picture = Image.new("RGBA", (72, 48), (255, 255, 255, 0))
    picture.putalpha(Image.fromarray(pattern(seed, 1).astype(np.uint8) * 255))
    return picture


def _grey_and_alpha(seed: int) -> Image.Image:
    return _white_on_nothing(seed).convert("LA")


def _thin_lines(seed: int) -> Image.Image:
    picture = Image.new("L", (200, 200), 255)
    for k in np.random.default_rng(seed).integers(0, 200, 3):
        picture.putpixel((int(k), int(k) // 2), 0)
    return picture


def _nearly_white(seed: int) -> Image.Image:
    return Image.fromarray((255 - pattern(seed, 2)).astype(np.uint8))


KINDS = {
    "faint 16 bits": (_faint, "PNG"),
    "faint floats": (_faint_float, "TIFF"),
    "white on transparency": (_white_on_nothing, "PNG"),
    "grey and alpha": (_grey_and_alpha, "PNG"),
    "a few dots": (_thin_lines, "PNG"),
    "nearly white": (_nearly_white, "PNG"),
}


def test_different_ones_all_stay(tmp_path: Path) -> None:
    """Of each kind three, and of one of them other bytes of the same numbers and a mirror image."""
    (source := tmp_path / "source").mkdir()
    for number, (kind, (make, form)) in enumerate(KINDS.items()):
        other = {"compress_level": 1} if form == "PNG" else {"compression": "tiff_deflate"}
        for seed in range(3):
            make(10 * number + seed).save(source / f"{kind}-{seed}.{form}", form)
        one = make(10 * number + 1)
        one.save(source / f"{kind}-again.{form}", form, **other)
        one.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(source / f"{kind}-mirror.{form}", form)
    list(import_pictures(source, tmp_path / "data"))
    dataset = Dataset.open(tmp_path / "data")
    assert len(dataset) == 5 * len(KINDS)
    names = [name.split(".")[0] for name in dataset.column("source")]
    likeness = by_hash(dataset, all_glanced(dataset))
    found = groups(dataset, likeness)
    expected = sorted([f"{kind}-1", f"{kind}-again"] for kind in KINDS)
    assert sorted(sorted(names[row] for row in group.rows) for group in found) == expected
    assert {copy.how for group in found for copy in group.copies} == {"the same pixels"}
    assert len(np.unique(components(likeness))) == 4 * len(KINDS)  # so `split --by near` keeps them apart
    turned = groups(dataset, by_hash(dataset, all_glanced(dataset), mirrored=True))
    assert [len(group.rows) for group in turned] == [3] * len(KINDS)
    _features_are_no_proof(dataset, len(KINDS))
    statistics = _ended(measure(dataset))
    assert statistics.empty == len(dataset)
    assert any("look empty" in line for line in statistics.advice)


def _ended(steps: Generator[Any, None, Statistics]) -> Statistics:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _features_are_no_proof(dataset: Dataset, kinds: int) -> None:
    """A network sees the same white in all of them."""
    derived = derive(
        dataset,
        Derivation(
            "seen",
            vector_key("test", {}, "image", joint=False),
            lambda columns: np.ones((len(columns["id"]), 8), np.float32),
            batch=8,
            reading=Reading(("id",)),
        ),
    )
    *_, last = derived
    dataset.refresh()
    assert last.column is not None
    found = groups(dataset, by_features(dataset, last.column))
    assert [len(group.rows) for group in found] == [2] * kinds


def test_pages_that_are_not_shown_count(tmp_path: Path) -> None:
    """A stack is shown by its first page; three of them have the same one."""
    (source := tmp_path / "source").mkdir()
    for k in range(3):
        first, second = (Image.fromarray(pattern(seed, 250).astype(np.uint8)) for seed in (1, 2 + k))
        first.save(source / f"{k}.tiff", save_all=True, append_images=[second])
    list(import_pictures(source, tmp_path / "data"))
    dataset = Dataset.open(tmp_path / "data")
    assert set(dataset.column("mode")) == {"L x 2"}
    assert not groups(dataset, by_hash(dataset, all_glanced(dataset)))


def test_plain_colours_are_alike_in_any_size(tmp_path: Path) -> None:
    """Where one colour is all there is, two sizes of it are copies, and another depth of black is not."""
    source = tmp_path / "source"
    source.mkdir()
    for k, picture in enumerate(
        [
            Image.new("RGB", (20, 20), (0, 0, 0)),
            Image.new("L", (41, 20), 0),
            Image.fromarray(np.full((20, 20), 100, np.uint16)),
            Image.new("RGBA", (20, 20), (0, 0, 0, 255)),
            Image.new("RGBA", (20, 20), (255, 255, 255, 0)),
            Image.new("RGB", (20, 20), (255, 255, 255)),
        ]
    ):
        picture.save(source / f"{k}.png")
    list(import_pictures(source, tmp_path / "data"))
    dataset = Dataset.open(tmp_path / "data")
    (found,) = groups(dataset, by_hash(dataset, all_glanced(dataset)))
    assert sorted(found.rows) == [0, 1, 3]
