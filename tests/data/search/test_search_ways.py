"""Every way a query can take, alone and together, with embedders that tests can reckon with."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from carrara.config import parse
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import made_from
from carrara.dataset.fingerprints import derive_glances
from carrara.embedders import ngrams
from carrara.embedders.embed_dataset import embed, embedded
from carrara.embedders.embedders import Embedder, Lift, unit
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from carrara.search import search as module
from carrara.search.query import Found, Query
from carrara.search.search import search
from carrara.search.vector_columns import VectorColumn, vector_columns
from conftest import COLOURS, draw, run_out

HUES = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "black": (0.1, 0.1, 0.1)}


def hues(images: Tensor) -> npt.NDArray[np.float32]:
    """What is not white of each channel, and a little of where."""
    dark = 1 - images.float() / 255
    return unit(torch.cat([dark.mean((2, 3)), 0.1 * dark.mean(1).flatten(1)], 1).numpy())


def named(words: Sequence[str]) -> npt.NDArray[np.float32]:
    """A joint space by hand: the hue that a word names is missing from the white."""
    found = np.zeros((len(words), 3 + 64), np.float32)
    for row, text in enumerate(words):
        for name, hue in HUES.items():
            if name in text:
                found[row, :3] = 1 - np.array(hue)
    return unit(found)


SEES = Embedder("sees", {"code": 1}, 67, pictures=hues, size=8)
JOINT = Embedder("joint", {"code": 1}, 67, pictures=hues, texts=named, size=8, joint=True)
KNOWN = {"sees": SEES, "joint": JOINT, "ngrams": ngrams.embedder()}


@pytest.fixture(scope="module")
def data(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("searched") / "data"
    run_out(import_pictures(str(pictures), path, held_out=0.2))
    dataset = Dataset.open(path)
    for embedder, of in [
        (SEES, "image"),
        (JOINT, "image"),
        (KNOWN["ngrams"], "caption"),
        (KNOWN["ngrams"], "caption_de"),
    ]:
        run_out(embed(dataset, embedder, of))
    run_out(derive_glances(dataset))
    return dataset


def ask(dataset: Dataset, **asked: object) -> Found:
    return search(dataset, parse(Query, asked, where="test"), lambda column: KNOWN[column.embedder])


def sources(found: Found) -> list[str]:
    return [Path(hit.told["source"]).stem for hit in found.hits]


def test_words_meaning_and_the_joint_space_each_and_together(data: Dataset) -> None:
    words = ask(data, words="red disc", by="words", limit=2)
    assert sorted(sources(words)) == ["red-disc-0", "red-disc-1"]
    assert words.ways == ["words"]
    assert words.more
    assert words.version == data.version
    meaning = ask(data, words="schwarzer Balken", by="meaning", limit=2)
    assert sorted(sources(meaning)) == ["black-bar-0", "black-bar-1"]
    assert "means alike" in meaning.hits[0].reasons[0].words
    joint = ask(data, words="something green", by="joint", limit=6)
    assert {name.split("-")[0] for name in sources(joint)} == {"green"}
    together = ask(data, words="blue square", limit=2)
    assert together.ways == ["words", "meaning", "joint"]
    assert sorted(sources(together)) == ["blue-square-0", "blue-square-1"]
    assert [reason.way for reason in together.hits[0].reasons] == ["words", "meaning", "joint"]
    assert together.remarks == []


def test_only_what_matches_and_scores_in_order(data: Dataset) -> None:
    """Meaning and the joint space rank every picture; only all of the words, the same picture or a likeness matches."""
    everything = ask(data, words="red disc", limit=24)
    assert len(everything.hits) > 20
    scores = [hit.score for hit in everything.hits]
    assert scores == sorted(scores, reverse=True)
    matching = ask(data, words="red disc", limit=24, matching=True)
    assert sorted(sources(matching)) == ["red-disc-0", "red-disc-1"]
    assert ask(data, words="red disc", limit=1, matching=True).more
    assert ask(data, words="something to wear", limit=24, matching=True).hits == []
    ranked = [hit.score for hit in ask(data, words="something green", by="joint", limit=24).hits]
    least = (ranked[5] + ranked[6]) / 2
    joint = ask(data, words="something green", by="joint", limit=24, at_least=least)
    assert [name.split("-")[0] for name in sources(joint)] == ["green"] * 6
    both = ask(data, words="red disc", limit=24, at_least=0.99, matching=True)
    assert {"red-disc-0", "red-disc-1"} <= set(sources(both))
    row = int(data.indices(None, "source = 'red-disc-0.png'")[0])
    picture = data.take([row], ["image"])["image"][0]
    same = ask(data, picture=picture, limit=24, matching=True)
    assert same.hits[0].row == row
    assert all(hit.reasons[0].certain for hit in same.hits)
    assert 0 < len(same.hits) < 12
    assert len(ask(data, where="width > 0", limit=24, matching=True).hits) == 24


def test_similar_spellings_are_not_mixed_with_other_ways(data: Dataset) -> None:
    """Nor do scores of one way rise where the words of one column follow those of another."""
    alone = ask(data, words="Disk", by="words", limit=24)
    assert {hit.reasons[0].words for hit in alone.hits} == {"a similar spelling in the caption"}
    mixed = ask(data, words="Disk", limit=24)
    assert mixed.ways == ["words", "meaning", "joint"]
    assert not any(reason.way == "words" for hit in mixed.hits for reason in hit.reasons)
    scores = [hit.score for hit in ask(data, words="roter disc", by="words", limit=24).hits]
    assert scores == sorted(scores, reverse=True)


def test_meaning_is_asked_of_all_languages_with_one_vector(data: Dataset) -> None:
    """And each picture is found by the caption that is nearest."""
    asked = []

    def read(words: Sequence[str]) -> npt.NDArray[np.float32]:
        asked.append(list(words))
        assert KNOWN["ngrams"].texts is not None
        return KNOWN["ngrams"].texts(words)

    reader = replace(KNOWN["ngrams"], texts=read)
    found = search(data, Query(words="schwarze Scheibe", by="meaning", limit=24), lambda _: reader)
    assert asked == [["schwarze Scheibe"]]
    query = reader.texts(["schwarze Scheibe"])[0] if reader.texts else None
    columns = [c.column for c in vector_columns(data) if c.of != "image"]
    scores = np.max([np.array(data.column(name), np.float32) @ query for name in columns], 0)
    assert len(columns) == 2
    assert [hit.score for hit in found.hits] == pytest.approx(
        np.sort(scores)[::-1][: len(found.hits)], abs=1e-3
    )
    assert found.hits[0].reasons[0].words.endswith("in caption_de")


def test_pages_follow_one_another_and_conditions_hold(data: Dataset) -> None:
    first, second = (ask(data, words="red", limit=5, offset=offset) for offset in (0, 5))
    rows = [hit.row for found in (first, second) for hit in found.hits]
    assert len(set(rows)) == 10
    assert rows == [hit.row for hit in ask(data, words="red", limit=10).hits]
    held_out = ask(data, words="red", where="split = 'held_out'", limit=24)
    assert {hit.told["split"] for hit in held_out.hits} == {"held_out"}
    listed = ask(data, where="source LIKE 'blue%'", limit=4)
    assert sources(listed) == ["blue-bar-0", "blue-bar-1", "blue-disc-0", "blue-disc-1"]
    assert listed.more
    assert listed.ways == []
    assert not ask(data, where="source LIKE 'blue%'", limit=6).more


def test_pages_of_several_ways_follow_one_another(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a later page needs more candidates of each way than the first."""
    monkeypatch.setattr(module, "_DEPTH", 4)
    whole = [hit.row for hit in ask(data, words="red disc", limit=24).hits]
    assert len(set(whole)) == len(whole) > 20
    for step in (1, 3, 5):
        pages = [
            hit.row
            for offset in range(0, 24, step)
            for hit in ask(data, words="red disc", limit=step, offset=offset).hits
        ]
        assert pages == whole


def test_a_condition_does_not_change_what_is_in_the_training_set(data: Dataset, pictures: Path) -> None:
    picture = (pictures / "red-disc-0.png").read_bytes()
    found = ask(data, picture=picture, where="source LIKE 'blue%'", limit=24)
    assert found.verdict == ask(data, picture=picture).verdict
    assert found.verdict.startswith("exactly this picture is in the data set")
    assert found.verdict.endswith("red-disc-0.png")
    assert {name.split("-")[0] for name in sources(found)} == {"blue"}


@pytest.mark.parametrize(
    ("form", "verdict", "reason"),
    [
        ("bytes", "exactly this picture is in the data set, in the split", "the same bytes"),
        ("larger", "nearly this picture", "nearly the same"),
        ("mirrored", "nearly this picture", "nearly the same"),
        ("strange", "this picture is not in the data set; closest match: similarity ", "looks alike"),
    ],
)
def test_is_it_in_the_training_set(
    data: Dataset, pictures: Path, form: str, verdict: str, reason: str, make_png: Callable[..., bytes]
) -> None:
    name = "green-disc-1"
    with Image.open(pictures / f"{name}.png") as opened:
        picture = opened.copy()
    file = io.BytesIO()
    if form == "larger":
        picture.resize((90, 90), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
    elif form == "mirrored":
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(file, "PNG")
    elif form == "strange":
        file.write(make_png(3, (40, 40)))
    else:
        file.write((pictures / f"{name}.png").read_bytes())
    found = ask(data, picture=file.getvalue(), limit=5)
    assert found.verdict.startswith(verdict), found.verdict
    assert found.hits[0].reasons[0].words.startswith(reason)
    if form != "strange":
        assert sources(found)[0].startswith("green-disc")
        assert len({hit.row for hit in found.hits}) == 5


def test_strange_words_find_little_and_break_nothing(data: Dataset) -> None:
    for words in ("!!!", '"', "a" * 3000, "\x00", "(AND OR", "\u200f"):
        found = ask(data, words=words, limit=3, by="words")
        assert found.hits == []
    assert ask(data, words="!?").remarks[0] == "not searched by meaning: there is no word in '!?'"
    assert len(ask(data, words="red", where=" ", limit=3).hits) == 3


def test_more_like_a_row_leaves_the_row_out(data: Dataset) -> None:
    row = int(data.indices(None, "source = 'red-disc-0.png'")[0])
    by_number = ask(data, like=row, by="picture", limit=5)
    assert row not in [hit.row for hit in by_number.hits]
    assert sources(by_number)[0].startswith("red-")
    by_id = ask(data, like=data.take([row], ["id"])["id"][0][:12], by="picture", limit=5)
    assert [hit.row for hit in by_id.hits] == [hit.row for hit in by_number.hits]
    assert ask(data, like=row, limit=5).hits == by_number.hits
    together = ask(data, like=row, limit=5, by="hybrid")
    assert together.ways == ["meaning", "picture", "joint"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"words": "x", "by": "wrods"}, "got 'wrods'; did you mean 'words'"),
        ({"by": "words"}, "nothing to look for by words: give words, a picture or a row"),
        ({"words": "x", "by": "picture"}, "words cannot be looked for by picture"),
        ({"picture": b"x", "by": "words"}, "a picture cannot be looked for by words"),
        ({"picture": b"x", "like": 3}, "a picture and a row at once"),
        ({"like": 24}, "there is no row '24': expected a number from 0 to 23"),
        ({"like": "0000000"}, "0 pictures have an id that begins with 0000000"),
        ({"like": "x' OR 1=1"}, "there is no row"),
        ({"picture": b"GIF89a"}, "the picture to look for cannot be used"),
        ({"words": "red", "where": "colour = 3"}, "the condition names a column 'colour'"),
        (
            {"words": "red", "where": "1 = 1; DROP TABLE x"},
            "the condition '1 = 1; DROP TABLE x' cannot be read",
        ),
        ({"words": "!?", "by": "meaning"}, "there is no word in '!?'"),
        ({"limit": 0}, "expected at least 1, got 0"),
    ],
)
def test_queries_at_fault(data: Dataset, asked: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as told:
        ask(data, **asked)
    assert message in str(told.value)


def test_what_is_missing_is_said_with_the_command_that_makes_it(
    pictures: Path, tmp_path: Path, make_png: Callable[..., bytes]
) -> None:
    run_out(import_pictures(str(pictures), tmp_path / "bare", held_out=0.2))
    bare = Dataset.open(tmp_path / "bare")
    found = ask(bare, words="red")
    assert found.ways == ["words"]
    assert "carrara data encode" in found.remarks[0]
    assert "--meaning" in found.remarks[0]
    assert len(found.remarks) == 1
    assert "carrara train contrastive" in ask(bare, words="red", by="hybrid").remarks[1]
    with pytest.raises(
        UserError, match=r"the pictures' features are not stored: `carrara data encode .* --features`"
    ):
        ask(bare, like=0, by="picture")
    exact = ask(bare, picture=(pictures / "red-disc-0.png").read_bytes())
    assert exact.verdict.startswith("exactly this picture")
    assert len(exact.hits) == 1
    other = ask(bare, picture=make_png(3, (40, 40)))
    assert (other.verdict, other.hits) == ("no picture of the data set has the same bytes", [])
    run_out(derive_glances(bare))
    other = ask(bare, picture=make_png(3, (40, 40)))
    assert (other.verdict, other.hits) == ("this picture is not in the data set", [])
    assert any("the pictures' features are not stored" in remark for remark in other.remarks)

    def gone(column: VectorColumn) -> Embedder:
        raise UserError(f"{column.embedder} is gone")

    run_out(embed(bare, KNOWN["ngrams"], "caption"))
    without = search(bare, Query(words="red"), gone)
    assert without.ways == ["words"]
    assert "not searched by meaning: ngrams is gone" in without.remarks


def test_vectors_follow_their_words_and_rows(pictures: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("red-disc-0", "blue-bar-0"):
        (source / f"{name}.png").write_bytes((pictures / f"{name}.png").read_bytes())
    (source / "red-disc-0.txt").write_text("red disc")
    (source / "blue-bar-0.txt").write_text("blue bar")
    run_out(import_pictures(str(source), tmp_path / "data", held_out=0))
    data, reader = Dataset.open(tmp_path / "data"), KNOWN["ngrams"]
    run_out(embed(data, reader, "caption"))
    run_out(embed(data, SEES, "image"))
    draw("green", "square", 20, 0).save(source / "new.png")  # without a caption
    (source / "blue-bar-0.txt").write_text("navy beam")
    run_out(import_pictures(str(source), tmp_path / "data", held_out=0))
    data.refresh()
    assert embedded(data, reader, "caption") is None
    found = ask(data, words="red disc", by="meaning")
    assert sources(found) == ["red-disc-0"]  # the others wait to be embedded
    assert f"2 pictures have no vectors of ngrams yet and are not among these: encode {data.path} again" in (
        found.remarks
    )
    run_out(embed(data, reader, "caption"))
    run_out(embed(data, SEES, "image"))
    assert embedded(data, reader, "caption") is not None
    found = ask(data, words="navy beam", by="meaning", limit=1)
    assert sources(found) == ["blue-bar-0"]
    assert not any("no vectors" in remark for remark in found.remarks)
    stored = np.array(data.column(vector_columns(data)[0].column), np.float32)
    assert sorted(np.linalg.norm(stored, axis=1).round(2).tolist()) == [0, 1, 1]  # nothing said is nothing
    assert len(COLOURS) == 4


def test_vectors_that_stand_on_others_are_made_from_what_those_are(dataset: Dataset) -> None:
    """Their numbers are no words: only the captions that they come from may change under them."""
    below = KNOWN["ngrams"]
    lift = Lift(below, lambda vectors: vectors[:, :16])
    above = Embedder("above", {"code": 1}, 16, text_lift=lift, picture_lift=Lift(SEES, lambda v: v[:, :16]))
    run_out(embed(dataset, above, "caption_de"))
    run_out(embed(dataset, above, "image"))
    made = {(c.embedder, c.of): made_from(dataset.schema.field(c.column)) for c in vector_columns(dataset)}
    assert made["above", "caption_de"] == made["ngrams", "caption_de"] == {"caption_de"}
    assert made["above", "image"] == made["sees", "image"] == set()
