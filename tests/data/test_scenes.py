"""Scenes: always the same, and everything that is said about one is so."""

from pathlib import Path

import numpy as np
import pytest

from carrara.dataset.dataset import Dataset
from carrara.importing.formats.scenes import COLOURS, SIDE, THINGS, compose, paint
from carrara.importing.importing import import_pictures
from conftest import Here


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("scenes") / "data"
    *_, last = import_pictures("scenes", path, count=60)
    assert last.summary is not None
    assert (last.summary.added, last.summary.rejected) == (60, 0)
    assert last.summary.beside == {"boxes": 60, "map": 60}
    return Dataset.open(path)


def test_what_is_said_of_a_scene_is_in_it(scenes: Dataset) -> None:
    known = scenes.take(range(60), ["caption_en", "caption_de", "licence", "width", "height"])
    assert set(known["licence"]) == {"CC-BY-4.0"}
    assert set(known["width"] + known["height"]) == {SIDE}
    numbers = scenes.beside(range(60), "map", SIDE)[:, 0].numpy()
    pictures = scenes.pictures(range(60), SIDE).numpy()
    free = 0
    for row, boxes in enumerate(scenes.boxes(range(60))):
        assert boxes is not None
        english, german = known["caption_en"][row], known["caption_de"][row]
        things = [next(t for t in THINGS if t.en == box.label) for box in boxes]
        assert all(f"a {t.en}" in english and t.de in german for t in things)
        assert english.split().count("a") == len(things)
        assert set(np.unique(numbers[row])) == {0, *(THINGS.index(t) + 1 for t in things)}
        for box, thing in zip(boxes, things, strict=True):
            down, across = np.nonzero(numbers[row] == THINGS.index(thing) + 1)
            left, top = box.left * SIDE, box.top * SIDE
            right, bottom = left + box.width * SIDE, top + box.height * SIDE
            edges = np.array([across.min(), down.min(), across.max() + 1, down.max() + 1])
            assert (edges[:2] >= np.array([left, top]) - 1.5).all()
            assert (edges[2:] <= np.array([right, bottom]) + 1.5).all()
            free += bool((np.abs(edges - [left, top, right, bottom]) < 1.5).all())  # nothing in front of it
        corner = pictures[row][:, 0, 0]  # things keep away from the border
        colour = next(c for (name, _), c in COLOURS.items() if english.endswith(f" on {name}"))
        assert np.abs(corner - np.array(colour)).max() <= 1
    assert free > 0.9 * sum(len(b or []) for b in scenes.boxes(range(60)))


def test_a_scene_is_a_function_of_its_number(scenes: Dataset, tmp_path: Path) -> None:
    list(import_pictures("scenes", tmp_path / "fewer", count=7, held_out=0))
    fewer = Dataset.open(tmp_path / "fewer")
    for name in ("id", "map_id", "boxes", "caption_en"):
        assert fewer.column(name) == scenes.column(name)[:7]
    assert len(set(scenes.column("id"))) == 60
    counts = {len(compose(k).placed) for k in range(60)}
    assert counts == {1, 2, 3, 4}
    seen = {placed.thing for k in range(60) for placed in compose(k).placed}
    assert seen == set(range(len(THINGS)))
    first, again = paint(compose(3)), paint(compose(3))
    assert first[0].tobytes() == again[0].tobytes()


def test_a_count_is_for_scenes_alone(here: Here, tmp_path: Path) -> None:
    refusal = here("data", "import", "emoji", "data", "--count", 5).refusal
    assert refusal == "a count is for 'scenes'; emoji is imported whole"
    assert not (tmp_path / "data").exists()
    made = here("data", "import", "scenes", "data", "--count", 3)
    assert "beside the pictures: boxes 3, map 3" in made.out
    assert len(Dataset.open(tmp_path / "data")) == 3
