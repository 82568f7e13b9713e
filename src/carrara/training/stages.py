"""The two stages as a user starts them: a recipe, a data set and a folder become a run and then a model."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from carrara.autoencoders.stored import StoredAutoencoder
from carrara.config import to_toml
from carrara.dataset.channels import check_channels
from carrara.dataset.latents import encode_missing, keep_scale
from carrara.dataset.loader import Reading, load
from carrara.embedders.embed_dataset import embed_missing
from carrara.errors import UserError
from carrara.generation.model import Model, build_network, latent_of
from carrara.progress import Progress
from carrara.tensors import mix
from carrara.training import discriminator, mirroring
from carrara.training.autoencoder_task import AutoencoderTask, with_network
from carrara.training.averaged_model import fill_best
from carrara.training.batches import Feed
from carrara.training.checkpoint import TrainingState
from carrara.training.checks import check_autoencoder, check_pictures, check_start
from carrara.training.condition_columns import (
    checked,
    cut_notes,
    derive_for,
    derived_columns,
    learned,
    reads_of,
)
from carrara.training.contrastive_task import Pairs, train_contrastive
from carrara.training.devices import Placement
from carrara.training.diffusion_task import DiffusionTask
from carrara.training.fastest import fastest_encoding
from carrara.training.loop import Report
from carrara.training.passport import passport_of, words_of
from carrara.training.plan import check_memory
from carrara.training.recipe import AutoencoderRecipe, ContrastiveRecipe, DiffusionRecipe, Pixels, TrainConfig
from carrara.training.run import Run
from carrara.training.run_changes import RECIPE, steps_made
from carrara.training.validation import HeldOutJudge, Validation

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

_DATA = "pictures or captions"


def train_autoencoder(
    recipe: AutoencoderRecipe, dataset: Dataset, folder: Path, *, start: StoredAutoencoder | None = None
) -> Generator[Progress]:
    """Stage one: reports while it trains; in the end ``folder/model`` holds the averaged weights.

    It begins from ``start``'s weights, if given (the recipe then has its network), otherwise from random ones.
    """
    recipe = with_network(recipe, start)
    check_pictures(dataset)
    made_from = {_DATA: dataset.hash} | ({"start": start.hash} if start else {})
    run = Run(folder, recipe, made_from, dataset, len(dataset.indices("train")))
    if run.finished:
        return
    placement = Placement.choose(precision=recipe.train.precision)
    if converted := check_channels(dataset, recipe.network.image_channels, recipe.bits):
        yield Progress(note=f"note: {converted}")
    with torch.device("meta"):
        check_autoencoder(recipe, recipe.network.build(), dataset, start)
    if not steps_made(folder):
        check_memory(recipe, dataset, placement)
    yield Progress(note=f"training the autoencoder on {len(dataset.indices('train'))} pictures")
    yield from _mirrored(recipe)
    torch.manual_seed(recipe.train.seed)
    module = recipe.network.build()
    if start:
        module.load_state_dict(start.module.state_dict())
    judge = HeldOutJudge(recipe, dataset, module, folder)
    opponent, own = None, {}
    if recipe.discriminator:
        network = discriminator.build(recipe.discriminator, recipe.network.image_channels)
        opponent = discriminator.Adversary(recipe.discriminator, network, judge, folder)
        own = {"discriminator": opponent.train_config(recipe.train)}
    task = AutoencoderTask(recipe, module, placement.device, judge, opponent)
    pixels = Pixels(size=recipe.size, channels=recipe.network.image_channels)
    batches = partial(_batches, dataset, list(task.columns), recipe.train, pixels, recipe.bits)
    placement = run.placement(task, batches, placement)
    state = TrainingState(task.modules, run.config, placement, own=own)

    def stored(**more: Any) -> StoredAutoencoder:
        passport = passport_of(dataset, state, start) | ({"start": start.hash} if start else {}) | more
        return StoredAutoencoder.of(module, recipe.network, recipe.size, passport, recipe.bits)

    def begun(path: Path) -> None:
        stored().save(path, {RECIPE: to_toml(recipe)})
        module.train()

    report = None
    for report in run.train(task, state, batches, begun):
        yield report
    undone = bool(state.numbers.get("over"))  # and said so at the time
    note = opponent.finish(state, judge.psnr(state)) if opponent else ""
    if note and report and not undone:
        yield replace(report, losses={}, measures={}, note=note)
    state.averages["autoencoder"].copy_to(module)
    finished = stored(**({"discriminator": note} if opponent else {}))
    run.finish(lambda path: finished.save(path, {RECIPE: to_toml(recipe)}))


def fitted(recipe: DiffusionRecipe, dataset: Dataset) -> DiffusionRecipe:
    """The recipe without the conditions for which the data has no words: then it trains unconditionally."""
    return _fitted(recipe, reads_of(recipe.model, dataset))


def _fitted(recipe: DiffusionRecipe, reads: Mapping[str, Sequence[str]]) -> DiffusionRecipe:
    kept = {name: c for name, c in recipe.model.conditions.items() if reads[name]}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"conditions": kept})})


def train_diffusion(
    recipe: DiffusionRecipe,
    dataset: Dataset,
    autoencoder: StoredAutoencoder | None,
    folder: Path,
    *,
    start: Model | None = None,
) -> Generator[Progress]:
    """Stage two, on latents (encoded first where they are missing) or, without an autoencoder, on the recipe's pixels.

    In the end the model lies in ``folder/model``. Conditions for which the data has no column are left out. With
    ``start`` (whose configuration the recipe has) training begins from its weights, and its latent scale stays.
    """
    if recipe.pixels:
        autoencoder = recipe.pixels.autoencoder()
    if autoencoder is None:
        raise UserError("a recipe without pixels needs an autoencoder")
    check_pictures(dataset)
    if start:
        check_start(recipe, start, autoencoder)
    reads = reads_of(recipe.model, dataset)
    recipe = _fitted(recipe, reads)
    if dropped := [name for name in reads if name not in recipe.model.conditions]:
        if start:
            raise UserError(
                f"the model to begin from needs {', '.join(dropped)}, for which the data has no column"
            )
        yield Progress(
            note=f"the data has no column for {', '.join(dropped)}: training without it, unconditionally"
        )
    made_from = {"autoencoder": autoencoder.hash} | ({"start": start.hash} if start else {})
    run = Run(folder, recipe, {_DATA: dataset.hash, **made_from}, dataset, len(dataset.indices("train")))
    if run.finished:
        return
    ready = yield from _prepared(recipe, dataset, autoencoder, reads, start, new=not steps_made(folder))
    yield Progress(note="training the diffusion model")
    task, autoencoder = ready.task(start), ready.autoencoder
    if recipe.validation.looks:
        task.validation = Validation(recipe.validation, task, dataset, autoencoder, folder)
    fed = partial(ready.feed.batches, list(task.columns))
    placement = run.placement(task, partial(fed, lambda: 0.0), ready.placement)
    state = TrainingState(task.modules, run.config, placement)
    words = words_of(ready.conditions, reads, dataset, start)

    def save(path: Path, **more: Any) -> None:
        passport = passport_of(dataset, state, autoencoder) | made_from | {"columns": reads, **words, **more}
        model = Model(recipe.model, task.network, ready.conditions, autoencoder, passport)
        model.save(path, {RECIPE: to_toml(recipe)})

    yield from run.train(task, state, partial(fed, lambda: state.fraction), save)
    if task.finished(state):  # by its patience, so at a time when the best has passed
        best = fill_best(folder, recipe.train, task.modules)
        about = {"length": recipe.train.ema, "source": best.source}
        run.finish(partial(save, seen=best.seen, steps=best.steps, average=about))
        yield Report.remark(state, f"the model is the best one, of {best.seen} pictures seen")
        return
    state.averages["denoiser"].copy_to(task.modules["denoiser"])
    run.finish(save)


@dataclass(frozen=True)
class _Prepared:
    """What a diffusion model is trained on: every latent encoded, every condition learned and derived."""

    recipe: DiffusionRecipe
    feed: Feed
    autoencoder: StoredAutoencoder  # with the scale of its latents
    conditions: nn.ModuleDict
    words: Mapping[str, Mapping[str, str]]
    placement: Placement

    def task(self, start: Model | None) -> DiffusionTask:
        """The objective over ``start``'s network or, its weights a function of the recipe's seed, over a new one."""
        latent = latent_of(self.autoencoder)
        torch.manual_seed(mix(self.recipe.train.seed, 1) >> 1)
        network = (
            start.network if start else build_network(self.recipe.model, self.conditions, latent.channels)
        )
        for module in (network, self.conditions):
            module.train()
        self.autoencoder.module.to(self.placement.device)
        assert self.autoencoder.scale is not None
        return DiffusionTask(
            self.recipe,
            network,
            self.conditions,
            latents=self.feed.latents(),
            scale=self.autoencoder.scale,
            words=self.words,
            device=self.placement.device,
            factor=latent.factor,
        )


def _prepared(
    recipe: DiffusionRecipe,
    dataset: Dataset,
    autoencoder: StoredAutoencoder,
    reads: Mapping[str, Sequence[str]],
    start: Model | None,
    *,
    new: bool,
) -> Generator[Progress, None, _Prepared]:
    """Checks the data, and the memory for a ``new`` run; then encodes, learns and derives what is missing."""
    parts: Mapping[str, Any] = dict(start.conditions.items()) if start else recipe.model.conditions
    for note in checked(parts, dataset, reads=reads):
        yield Progress(note=f"note: {note}")
    placement = Placement.choose(precision=recipe.train.precision)
    if new:
        check_memory(recipe, dataset, placement, autoencoder, start.conditions if start else None)
    feed = Feed(recipe, dataset, autoencoder)
    yield from _encoded(feed, autoencoder, placement, recipe.train.precision)
    if not recipe.pixels and (note := keep_scale(autoencoder, feed.measured)):
        yield Progress(note=note)
    if start:
        autoencoder, conditions = replace(feed.autoencoder, scale=start.autoencoder.scale), start.conditions
    else:
        if not recipe.pixels and (other := feed.scale_note()):
            yield Progress(note=other)
        autoencoder = feed.scaled()
        conditions = learned(recipe.model, dataset, latent_of(autoencoder), recipe.train.seed)
    conditions.to(placement.device)
    for note in cut_notes(conditions, reads, dataset):
        yield Progress(note=f"note: {note}")
    yield from derive_for(conditions, reads, dataset)
    words = derived_columns(conditions, reads, dataset)
    yield from _mirrored(recipe)
    return _Prepared(recipe, feed, autoencoder, conditions, words, placement)


def _encoded(
    feed: Feed, autoencoder: StoredAutoencoder, placement: Placement, precision: str
) -> Iterator[Progress]:
    """Latents where they are missing."""
    missing = [needed for needed in feed.needed() if feed.encoded(needed) is None]
    if missing:
        placement = fastest_encoding(autoencoder, placement, precision)
    for needed in missing:
        yield from encode_missing(
            feed.dataset,
            autoencoder,
            placement.device,
            feed.variants,
            autocast=placement.autocast,
            rows=needed.rows,
            size=needed.size,
        )


def _mirrored(recipe: AutoencoderRecipe | DiffusionRecipe) -> Iterator[Progress]:
    if note := mirroring.note(recipe):
        yield Progress(note=f"note: {note}")


def train_search_space(recipe: ContrastiveRecipe, dataset: Dataset, folder: Path) -> Generator[Progress]:
    """Towers that put texts and pictures into one space: what is missing is embedded, then they are trained.

    In the end ``folder/model`` has those that did best on one half of the held-out pairs.
    """
    pairs = Pairs(recipe, dataset)
    for embedder, of in pairs.needed():
        yield from embed_missing(dataset, embedder, of)
    languages = ", ".join(pairs.captions)
    yield Progress(note=f"training on {len(pairs.rows('train'))} pictures with captions ({languages})")
    placement = Placement.choose(precision=recipe.train.precision)
    if not steps_made(folder):
        check_memory(recipe, dataset, placement)
    yield from train_contrastive(recipe, dataset, folder, placement)


def _batches(
    dataset: Dataset, columns: list[str], config: TrainConfig, pixels: Pixels | None, bits: int, start: int
) -> Any:
    size, channels = (pixels.size, pixels.channels) if pixels else (None, 3)
    reading = Reading(columns, size, channels, bits)
    return load(dataset, reading, batch=config.batch, seed=config.seed, start=start)
