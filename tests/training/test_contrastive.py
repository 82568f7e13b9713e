"""A joint space learnt from pairs: what it learns, its losses, its resume to the bit, and the model that it leaves."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from carrara.config import parse
from carrara.dataset.dataset import Dataset
from carrara.dataset.loader import Loaded
from carrara.doctor import joint_space
from carrara.embedders.contrastive import load_towers
from carrara.embedders.embed_dataset import embed
from carrara.embedders.embedders import embedder_of, open_embedder
from carrara.embedders.two_towers import Towers, TowersConfig
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from carrara.metrics.recall import ranks, recall, reciprocal
from carrara.model_folder import read_passport
from carrara.search.query import Query
from carrara.search.search import search
from carrara.training import contrastive_task
from carrara.training.contrastive_task import ContrastiveTask, Pairs, train_contrastive
from carrara.training.recipe import ContrastiveRecipe
from conftest import run_out, steps


def recipe(budget: str = "60steps", **changes: object) -> ContrastiveRecipe:
    train = {
        "budget": budget,
        "batch": 16,
        "warmup": 2,
        "optimizer": "adamw",
        "lr": 3e-3,
        "precision": "fp32",
    }
    values = {"texts": "ngrams", "towers": {"hidden": 32, "width": 16}, "looks": 3, "train": train}
    return parse(ContrastiveRecipe, {**values, **changes}, where="test")


@pytest.fixture(scope="module")
def data(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Pictures and captions in two languages, embedded."""
    path = tmp_path_factory.mktemp("pairs") / "data"
    run_out(import_pictures(str(pictures), path, held_out=0.25))
    dataset = Dataset.open(path)
    for embedder, of in Pairs(recipe(), dataset).needed():
        run_out(embed(dataset, embedder, of))
    return dataset


def test_it_learns_and_finds_what_no_caption_names(data: Dataset, tmp_path: Path) -> None:
    reports = run_out(train_contrastive(recipe(), data, tmp_path / "run"))
    losses = [sum(r.losses.values()) for r in steps(reports)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    passport = read_passport(tmp_path / "run" / "model")
    assert passport["languages"] == ["de", "und"]
    table = passport["held_out"]["by_language"]
    assert table.keys() == {"de", "und"}
    assert passport["held_out"]["protocol"] == (
        "recall among 3 held-out pairs drawn at random; 2 others chose the best state"
    )
    assert any("held-out pairs" in report.note for report in reports)
    joint = open_embedder(tmp_path / "run")
    assert joint.joint
    assert joint.width == 16
    run_out(embed(data, joint, "image"))
    (tmp_path / "run").rename(tmp_path / "moved")  # the data set has a copy of its own
    found = search(data, Query(words="red", by="joint", limit=6), lambda column: embedder_of(data, column))
    assert len(found.hits) == 6
    assert sum(hit.told["source"].startswith("red") for hit in found.hits) >= 4
    assert joint.texts is not None
    again = open_embedder(tmp_path / "moved" / "model")
    assert again.key == joint.key
    assert again.texts is not None
    np.testing.assert_array_equal(again.texts(["red"]), joint.texts(["red"]))
    np.testing.assert_allclose(np.linalg.norm(joint.texts(["red", "blau"]), axis=1), 1, rtol=1e-5)


def test_who_chooses_is_not_who_measures() -> None:
    rows = np.arange(1000, 1300)
    choosing, measured = contrastive_task.halves(rows, recipe())
    assert len(choosing) == len(measured) == 150
    assert sorted([*choosing, *measured]) == rows.tolist()
    assert 1100 < choosing.mean() < 1200, "by chance, not the first"
    assert (np.diff(choosing) > 0).all()
    again = contrastive_task.halves(rows, recipe())
    assert (again[0] == choosing).all()
    few = contrastive_task.halves(rows, recipe(pairs=20))
    assert (len(few[0]), len(few[1]), len({*few[0], *few[1]})) == (20, 20, 40)
    for count, wanted in ((0, (0, 0)), (1, (0, 0)), (3, (3, 0)), (5, (2, 3))):
        assert tuple(map(len, contrastive_task.halves(rows[:count], recipe()))) == wanted


def test_a_resumed_training_is_the_same_to_the_bit(data: Dataset, tmp_path: Path) -> None:
    chosen = recipe("8steps")
    run_out(train_contrastive(chosen, data, tmp_path / "whole"))
    begun = train_contrastive(chosen, data, tmp_path / "parts")
    run_out(islice(begun, 5))
    begun.close()  # type: ignore[attr-defined]
    assert not (tmp_path / "parts" / "model" / "model.toml").exists()
    told = json.loads((tmp_path / "parts" / "run.json").read_text())
    assert told["tag"].startswith("run-")
    assert "ngrams" in told["vectors of texts"]
    torch.manual_seed(99)
    run_out(train_contrastive(chosen, data, tmp_path / "parts"))
    whole, parts = (load_towers(tmp_path / name / "model").module.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert run_out(train_contrastive(chosen, data, tmp_path / "whole")) == []


def test_batches_from_memory_are_those_from_the_table(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = Pairs(recipe(), data)
    seen, read = pairs.columns()
    rows, columns, config = pairs.rows("train"), (seen, *read.values()), recipe().train
    kept = list(islice(contrastive_task._batches(data, columns, config, rows, 16), 3))
    monkeypatch.setattr(contrastive_task, "IN_MEMORY", 0)
    loading = contrastive_task._batches(data, columns, config, rows, 16)
    for one, other in zip(kept, islice(loading, 3), strict=True):
        assert (one.rows == other.rows).all()
        assert (one.seeds == other.seeds).all()
        assert one.seen == other.seen
        assert all(torch.equal(one.columns[name], other.columns[name]) for name in columns)  # type: ignore[arg-type]
    loading.close()


def batch_of(pictures: torch.Tensor, texts: dict[str, torch.Tensor]) -> Loaded:
    count = len(pictures)
    seeds = np.arange(count, dtype=np.uint64)
    return Loaded(np.arange(count), 0, seeds, {"seen": pictures, **texts})


def task_of(loss: str, languages: int, **changes: object) -> ContrastiveTask:
    torch.manual_seed(0)
    towers = Towers(TowersConfig(hidden=8, width=4, dropout=0), 6, 5).eval()
    chosen = recipe(loss=loss, **changes)
    named = {f"l{k}": f"text{k}" for k in range(languages)}
    return ContrastiveTask(chosen, towers, "seen", named, {}, torch.device("cpu"))


def test_the_doctor_draws_by_chance_and_is_sure_of_enough_held_out_pairs_only(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out(train_contrastive(recipe("1steps"), data, tmp_path / "run"))
    patient = joint_space.JointPatient(tmp_path / "run", recipe("1steps"), data)
    monkeypatch.setattr(
        joint_space, "ranks", lambda one, other: np.full(len(one), len(one))
    )  # nothing is found
    monkeypatch.setattr(joint_space, "halves", lambda rows, recipe: (rows[:0], rows[:0]))
    asked: list[list[int]] = []

    def stored(dataset: Dataset, columns: Sequence[str], rows: np.ndarray) -> dict[str, torch.Tensor]:
        asked.append(rows.tolist())
        return contrastive_task.stored_vectors(dataset, columns, rows)

    monkeypatch.setattr(joint_space, "stored_vectors", stored)
    monkeypatch.setattr(joint_space, "_LOOKED_AT", 18)
    train = Pairs(patient.recipe, data).rows("train").tolist()
    (finding,) = joint_space._found(patient).findings
    assert (finding.name, finding.serious) == ("no_better_than_chance", False)
    assert "18 training pairs are no sure sign" in finding.words
    assert set(asked[0]) < set(train)
    assert asked[0] == sorted(asked[0]) != train[:18]
    joint_space._found(patient)
    assert asked[1] == asked[0]
    monkeypatch.setattr(joint_space, "halves", lambda rows, recipe: (rows[:0], np.array(train)))
    for enough in (False, True):
        monkeypatch.setattr(joint_space, "_FEW", 18 if enough else 19)
        (finding,) = joint_space._found(patient).findings
        assert finding.serious is enough


def test_both_losses_are_those_of_their_papers() -> None:
    pictures, texts = torch.randn(7, 6), torch.randn(7, 5)
    for loss in ("softmax", "sigmoid"):
        task = task_of(loss, 1)
        found = task.losses("towers", batch_of(pictures, {"text0": texts}))["contrastive"]
        with torch.no_grad():
            p, t = task.towers(pictures, texts)
        scores = p @ t.T * task.towers.scale.exp()
        if loss == "softmax":
            own = torch.arange(7)
            expected = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
        else:
            signs = 2 * torch.eye(7) - 1
            expected = -F.logsigmoid(signs * (scores + task.towers.bias)).sum() / 7
        torch.testing.assert_close(found, expected)
        assert found.requires_grad


def test_the_same_words_of_two_pictures_are_no_contradiction() -> None:
    pictures, texts = torch.randn(4, 6), torch.randn(4, 5)
    texts[2] = texts[0]
    pictures[2] = pictures[0]
    task = task_of("softmax", 1)
    with torch.no_grad():
        task.towers.scale.fill_(4.6)
    alone = task.losses("towers", batch_of(pictures[:2], {"text0": texts[:2]}))["contrastive"]
    twice = task.losses("towers", batch_of(pictures[[0, 1, 2, 1]], {"text0": texts[[0, 1, 2, 1]]}))[
        "contrastive"
    ]
    # Halves of the right answer each: log 2 more, and nothing for having confused them.
    torch.testing.assert_close(twice, alone + np.log(2))


def test_each_picture_is_paired_with_one_of_the_captions_that_it_has() -> None:
    task = task_of("softmax", 3)
    count = 400
    texts = {f"text{k}": torch.zeros(count, 5) for k in range(3)}
    for k in range(3):
        texts[f"text{k}"][:, k] = 1
    texts["text1"][:] = 0  # no picture has this language
    texts["text2"][:100] = 0
    drawn = []
    task.towers.texts.register_forward_hook(lambda module, given, out: drawn.append(given[0].argmax(1)))
    task.losses("towers", batch_of(torch.randn(count, 6), texts))
    kinds = drawn[0]
    assert (kinds[:100] == 0).all()
    assert set(kinds[100:].tolist()) == {0, 2}
    assert 100 < int((kinds[100:] == 2).sum()) < 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"accumulate": 2}}, "train.accumulate is not 1"),
        ({"train": {"batch": 1}}, "train.batch is 1"),
        ({"texts": "efficientnet_lite0"}, "texts = 'efficientnet_lite0' is an embedder of the other kind"),
        ({"pictures": "ngrams"}, "pictures = 'ngrams' is an embedder of the other kind"),
        ({"texts": "ngrms"}, "no embedder is called 'ngrms'; did you mean 'ngrams'?"),
        ({"languages": ["dee"]}, "no picture has a caption in 'dee'; did you mean 'de'?"),
        ({"loss": "softmx"}, "expected 'softmax' or 'sigmoid', got 'softmx'; did you mean 'softmax'"),
    ],
)
def test_recipes_at_fault(data: Dataset, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as told:
        run_out(train_contrastive(recipe(**changes), data, tmp_path / "run"))
    assert message in str(told.value)
    assert not (tmp_path / "run").exists()


def test_ranks_count_what_is_as_near() -> None:
    gallery = np.eye(4, dtype=np.float32)
    queries = np.array([[1, 0, 0, 0], [1, 0.5, 0, 0], [0, 0, 0, 0], [0, 0, 0.1, 0.2]], np.float32)
    assert ranks(queries, gallery).tolist() == [1, 2, 4, 1]
    assert recall(np.array([1, 2, 4, 1]), (1, 2)) == {1: 0.5, 2: 0.75}
    assert reciprocal(np.array([1, 2, 4, 1])) == pytest.approx((1 + 0.5 + 0.25 + 1) / 4)
