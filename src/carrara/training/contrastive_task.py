"""The contrastive task: texts and pictures learn a common space from the user's own pairs: symmetric InfoNCE, or the
sigmoid loss.

Radford et al. 2021 (CLIP, figure 3); Zhai et al. 2023 (SigLIP, algorithm 1). Only two small towers learn; what they
stand on, frozen vectors of pictures and of captions, was stored once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from carrara.config import to_toml
from carrara.dataset.loader import IN_MEMORY, Fetch, Loaded, Reading, load, shape
from carrara.dataset.order import Batch, batches
from carrara.embedders.contrastive import About, StoredTowers, below, lifting
from carrara.embedders.embed_dataset import embedded
from carrara.embedders.embedders import open_embedder
from carrara.embedders.two_towers import Towers
from carrara.errors import UserError, nearest
from carrara.metrics.recall import RANKS, ranks, recall, reciprocal
from carrara.search.vector_columns import PICTURES
from carrara.tensors import sample_uniform, under
from carrara.training.averaged_model import fill_best
from carrara.training.checkpoint import TrainingState
from carrara.training.checks import check_pictures
from carrara.training.devices import Placement
from carrara.training.looks import Looks
from carrara.training.loop import Report
from carrara.training.passport import passport_of
from carrara.training.run import Run
from carrara.training.run_changes import RECIPE
from carrara.training.task import Task

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.embedders.embedders import Embedder
    from carrara.training.recipe import ContrastiveRecipe, TrainConfig


MODULE = "towers"
Rows = npt.NDArray[np.int64]
_LANGUAGE = 1  # stream of a sample's randomness
SCALE = (0.0, math.log(100.0))  # theirs: similarities are never scaled up more than a hundredfold
_KNOWN, _BEST = "contrast.known.", "contrast.best"  # in the state's numbers


class Pairs:
    """What is learned from: the column of the pictures' vectors and by language those of the captions'."""

    def __init__(self, recipe: ContrastiveRecipe, dataset: Dataset) -> None:
        """UserError where a language has no captions, or vectors are not stored for every picture yet."""
        self.dataset = dataset
        self.pictures, self.texts = open_embedder(recipe.pictures), open_embedder(recipe.texts)
        if self.pictures.pictures is None or self.texts.texts is None:
            wrong = (
                f"pictures = {recipe.pictures!r}"
                if self.pictures.pictures is None
                else f"texts = {recipe.texts!r}"
            )
            raise UserError(f"{wrong} is an embedder of the other kind")
        self.captions = captions_of(recipe, dataset)

    def needed(self) -> list[tuple[Embedder, str]]:
        """What has to be embedded first: by which embedder, of "image" or which caption column."""
        return [(self.pictures, PICTURES), *((self.texts, column) for column in self.captions.values())]

    def columns(self) -> tuple[str, dict[str, str]]:
        """The stored columns of the pictures and, by language, of the captions."""
        found = [embedded(self.dataset, embedder, of) for embedder, of in self.needed()]
        if None in found:
            raise UserError(
                f"{self.dataset.path} is not embedded with {self.needed()[found.index(None)][0].name} yet; "
                "see `carrara data encode`"
            )
        seen, *read = [str(column) for column in found]
        return seen, dict(zip(self.captions, read, strict=True))

    def rows(self, split: str) -> Rows:
        """The pictures of a split that have any of the captions."""
        some = " OR ".join(f"{column} IS NOT NULL" for column in self.captions.values())
        return self.dataset.indices(split, some)


def captions_of(recipe: ContrastiveRecipe, dataset: Dataset) -> dict[str, str]:
    """The caption columns by language that the recipe learns from. UserError where there are none."""
    check_pictures(dataset)
    there = dataset.captions
    if not there:
        raise UserError(f"{dataset.path} has no captions; a joint space needs pairs of texts and pictures")
    for language in recipe.languages:
        if language not in there:
            raise UserError(f"no picture has a caption in {language!r}{nearest(language, there)}")
    return {language: there[language] for language in recipe.languages or there}


class ContrastiveTask(Task):
    """Each picture is to be nearer to one of its captions than to those of the batch's others, and the reverse.

    Which language's caption it is follows from the sample's seed, so in time every one is learned from.
    """

    def __init__(
        self,
        recipe: ContrastiveRecipe,
        towers: Towers,
        seen: str,
        read: Mapping[str, str],
        held_out: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        """``held_out`` has the stored vectors ``[n d]`` of the pairs that choose, by column; empty where none are."""
        self.recipe, self.towers, self.seen, self.read = recipe, towers, seen, read
        self.held_out, self.device = held_out, device
        self.modules = {MODULE: towers}
        self.columns = (seen, *read.values())
        self._looks = looks_of(recipe, len(held_out.get(seen, ())))
        self._measures: dict[str, float] = {}

    def losses(self, update: str, batch: Loaded) -> Mapping[str, Tensor]:
        """The one loss; a mean over the batch's pairs."""
        texts = torch.stack([_floats(batch.columns[name]) for name in self.read.values()], 1)  # [b l d]
        there = texts.abs().amax(2) > 0  # not every picture has every language
        draw = sample_uniform([int(s) for s in batch.seeds], stream=_LANGUAGE)
        place = (draw * there.sum(1)).long()
        chosen = (there.cumsum(1) == place[:, None] + 1).int().argmax(1)
        text = texts[torch.arange(len(texts)), chosen]
        picture = _floats(batch.columns[self.seen])
        # Two pictures with the same words are no contradiction: either is right for both.
        same = _same(text).to(self.device)
        pictures, words = self.towers(picture.to(self.device), text.to(self.device))
        return {"contrastive": pair_loss(self.towers, pictures, words, same, self.recipe.loss)}

    def pending(self, state: TrainingState) -> str:
        """Whether held-out pairs are looked at now."""
        return "validating" if self.held_out and self._looks.due(state) else ""

    def between(self, state: TrainingState) -> str:
        """At even shares of the budget, and once more after the last step, held-out pairs are looked at."""
        numbers, note = state.numbers, ""
        if self.pending(state):
            with self._looks.look(state), state.averages[MODULE].put_into(self.towers):
                found = held_out_measures(self.towers, self.seen, self.read, self.held_out)
            best = numbers.get(_BEST, 0.0)
            numbers.update({_KNOWN + name: value for name, value in found.items()})
            numbers[_BEST] = max(best, found["recall_5"])
            if found["recall_5"] > best or state.fraction >= 1:
                note = f"{found['recall_5']:.1%} of held-out pairs are found among the first five"
        known = under(_KNOWN, numbers)
        self._measures = known if state.unlogged(numbers.get(f"{self._looks.name}.at", 0)) else {}
        return note

    def last(self, state: TrainingState) -> str:
        """The last look."""
        return self.between(state)

    def measures(self) -> Mapping[str, float]:
        """As last measured, until it is logged; "held_out" is 1 less the mean reciprocal rank."""
        return self._measures


def looks_of(recipe: ContrastiveRecipe, pairs: float) -> Looks:
    """When to look at so many pairs."""
    return Looks("contrast", recipe.looks, passes=pairs)


def pair_loss(
    towers: Towers, pictures: Tensor, words: Tensor, same: Tensor, kind: Literal["softmax", "sigmoid"]
) -> Tensor:
    """The mean over pairs of unit vectors ``[b d]``; in ``same`` [b b] those are true that belong together."""
    with torch.autocast(pictures.device.type, enabled=False):
        scores = towers.scale.clamp(*SCALE).exp() * pictures.float() @ words.float().T  # [b b]
        if kind == "softmax":
            return _softmax(scores, same)
        signs = same.to(scores.dtype) * 2 - 1
        return -F.logsigmoid(signs * (scores + towers.bias)).sum(1).mean()


def _softmax(scores: Tensor, same: Tensor) -> Tensor:
    """Cross-entropy both ways; of several right ones each has its share."""
    right = same.to(scores.dtype)
    by_picture = -(F.log_softmax(scores, 1) * right / right.sum(1, keepdim=True)).sum(1)
    by_text = -(F.log_softmax(scores, 0) * right / right.sum(0, keepdim=True)).sum(0)
    return (by_picture.mean() + by_text.mean()) / 2


def _same(text: Tensor) -> Tensor:
    """Which rows are equal, ``[b b]``."""
    _, kind = torch.unique(text, dim=0, return_inverse=True)
    same: Tensor = kind[:, None] == kind
    return same


def _floats(column: Any) -> Tensor:
    assert isinstance(column, Tensor)
    found: Tensor = column.float()
    return found


def held_out_measures(
    towers: Towers, seen: str, read: Mapping[str, str], vectors: Mapping[str, Tensor]
) -> dict[str, float]:
    """Mean over the languages and both directions: recall at 1, 5 and 10, and 1 less the mean reciprocal rank."""
    parts = [part for table in by_language(towers, seen, read, vectors).values() for part in table.values()]
    mean = {f"recall_{k}": float(np.mean([recall(part)[k] for part in parts])) for k in RANKS}
    return {**mean, "held_out": 1 - float(np.mean([reciprocal(part) for part in parts]))}


def by_language(
    towers: Towers, seen: str, read: Mapping[str, str], vectors: Mapping[str, Tensor]
) -> dict[str, dict[str, Rows]]:
    """Of each language the ranks from text to picture and from picture to text, among the pairs that it has."""
    pictures = lifting(towers.pictures)(vectors[seen].float().numpy())
    found = {}
    for language, column in read.items():
        given = vectors[column].float().numpy()
        there = given.any(1)
        if there.sum() < 2:
            continue
        words = lifting(towers.texts)(given[there])
        found[language] = {
            "text to picture": ranks(words, pictures[there]),
            "picture to text": ranks(pictures[there], words),
        }
    return found


def train_contrastive(
    recipe: ContrastiveRecipe, dataset: Dataset, folder: Path, placement: Placement | None = None
) -> Iterator[Report]:
    """Reports while it trains, on stored vectors (see `Pairs.needed`); in the end ``folder/model`` has the towers.

    They are those that did best on one half of the held-out pairs, or the last average where none are held out; what
    the passport tells of them was measured on the other half.
    """
    pairs = Pairs(recipe, dataset)
    seen, read = pairs.columns()
    made_from = {"pictures or captions": dataset.hash} | {
        f"vectors of {side}": f"{one.name} {json.dumps(dict(one.key), sort_keys=True)}"
        for side, one in (("pictures", pairs.pictures), ("texts", pairs.texts))
    }
    train = pairs.rows("train")
    run = Run(folder, recipe, made_from, dataset, len(train))
    if run.finished:
        return
    placement = placement or Placement.choose(precision=recipe.train.precision)
    torch.manual_seed(recipe.train.seed)
    towers = Towers(recipe.towers, pairs.pictures.width, pairs.texts.width)
    choosing, measured = halves(pairs.rows("held_out"), recipe)
    if len(train) < 2:
        raise UserError(
            f"{dataset.path} has {len(train)} captioned pictures to train on; expected two or more"
        )
    few = stored_vectors(dataset, (seen, *read.values()), train[:4096])
    towers.pictures.measure(few[seen].float())
    captions = torch.cat([few[name].float() for name in read.values()])
    towers.texts.measure(captions[captions.abs().amax(1) > 0])
    known = stored_vectors(dataset, (seen, *read.values()), choosing) if len(choosing) else {}
    task = ContrastiveTask(recipe, towers, seen, read, known, placement.device)
    towers.train()
    fed = partial(_batches, dataset, task.columns, recipe.train, train)
    placement = run.placement(task, fed, placement)
    state = TrainingState(task.modules, run.config, placement)
    about = About(towers=recipe.towers, pictures=below(pairs.pictures), texts=below(pairs.texts))

    def save(path: Path, **more: Any) -> None:
        passport = passport_of(dataset, state, None) | {"languages": sorted(pairs.captions)} | more
        StoredTowers(towers, about, passport).save(path, {RECIPE: to_toml(recipe)})

    yield from run.train(task, state, fed, save)
    told: dict[str, Any] = {}
    if known:
        best = fill_best(folder, recipe.train, task.modules)
        yield Report.remark(state, f"the model is the one that did best, after {best.seen} pairs")
        told = {"seen": best.seen, "steps": best.steps}
    else:
        state.averages[MODULE].copy_to(towers)
    towers.eval()
    if len(measured):
        others = stored_vectors(dataset, (seen, *read.values()), measured)
        told["held_out"] = _metrics(by_language(towers, seen, read, others), len(measured), len(choosing))
    run.finish(partial(save, **told))


def halves(rows: Rows, recipe: ContrastiveRecipe) -> tuple[Rows, Rows]:
    """Of the held-out pictures those that choose the best state, and those that it is measured on, as chance has it.

    At most ``recipe.pairs`` each, by the recipe's seed. Of fewer than four all choose and nothing is measured; one
    alone has nothing to be told apart from, and cannot choose.
    """
    drawn = np.random.default_rng(recipe.train.seed).permutation(rows)
    if len(drawn) < 4:
        return (np.sort(drawn) if len(drawn) > 1 else drawn[:0]), drawn[:0]
    each = min(recipe.pairs, len(drawn) // 2)
    return np.sort(drawn[:each]), np.sort(drawn[each : each + recipe.pairs])


def _metrics(found: Mapping[str, Any], pairs: int, choosing: int) -> dict[str, Any]:
    table = {
        language: {
            way: {f"recall_{k}": round(v, 4) for k, v in recall(part).items()} for way, part in ways.items()
        }
        for language, ways in found.items()
    }
    protocol = f"recall among {pairs} held-out pairs drawn at random; {choosing} others chose the best state"
    return {"protocol": protocol, "pairs": pairs, "by_language": table}


def stored_vectors(dataset: Dataset, columns: Sequence[str], rows: Any) -> dict[str, Tensor]:
    """Derived columns ``[n d]`` of some rows."""
    fetched = Fetch(dataset, Reading(columns))(Batch(rows, 0, np.empty(0, np.uint64))).columns
    return {name: value for name, value in fetched.items() if isinstance(value, Tensor)}


def _batches(
    dataset: Dataset, columns: Sequence[str], config: TrainConfig, rows: Any, start: int
) -> Generator[Loaded, None, None]:
    """Batches without end; vectors that fit into memory are read once."""
    if _row_bytes(dataset, columns) * len(rows) > IN_MEMORY:
        return load(dataset, Reading(columns), batch=config.batch, seed=config.seed, start=start, rows=rows)
    return _from_memory(stored_vectors(dataset, columns, rows), config, rows, start)


def _from_memory(
    vectors: Mapping[str, Tensor], config: TrainConfig, rows: Any, start: int
) -> Generator[Loaded, None, None]:
    """What `load` gives, of vectors ``[n d]`` of all ``rows``, which are ascending."""
    for batch in batches(rows, batch=config.batch, seed=config.seed, start=start):
        places = torch.from_numpy(np.searchsorted(rows, batch.rows))
        found = {name: value[places] for name, value in vectors.items()}
        yield Loaded(batch.rows, batch.seen, batch.seeds, found)


def _row_bytes(dataset: Dataset, columns: Sequence[str]) -> int:
    return sum(2 * math.prod(shape(dataset, name) or ()) for name in columns)
