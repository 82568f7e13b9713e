"""The two stages as a user starts them: a recipe, a data set and a folder become a run and then a model."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from carrara import __version__
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.config import to_toml
from carrara.data import ranges
from carrara.data.channels import check_channels
from carrara.data.loader import load
from carrara.errors import UserError
from carrara.evaluation.pretrained import VISIBLE_CHANNELS
from carrara.generation.model import Model, build_network, latent_of
from carrara.tensors import mix
from carrara.training import adversary
from carrara.training.autoencoding import AutoencoderRecipe, AutoencoderTask, with_network
from carrara.training.averaged import fill_best
from carrara.training.conditioning import derived_columns, learned, reads_of
from carrara.training.diffusing import DiffusionRecipe, DiffusionTask, Pixels
from carrara.training.feed import Feed, multiple_of
from carrara.training.held_out import HeldOutJudge
from carrara.training.loop import Report, TrainConfig, TrainingState
from carrara.training.parallel import Placement
from carrara.training.run import RECIPE, Run
from carrara.training.validation import Validation

if TYPE_CHECKING:
    from carrara.data.table import Dataset

_DATA = "pictures or captions"


def train_autoencoder(
    recipe: AutoencoderRecipe, dataset: Dataset, folder: Path, *, start: StoredAutoencoder | None = None
) -> Generator[Report]:
    """Stage one: reports while it trains; in the end ``folder/model`` holds the averaged weights.

    It begins from ``start``'s weights, if given (the recipe then has its network), otherwise from random ones.
    """
    recipe = with_network(recipe, start)
    check_pictures(dataset)
    made_from = {_DATA: dataset.hash} | ({"start": start.hash} if start else {})
    run = Run(folder, recipe, made_from, dataset)
    if run.finished:
        return
    placement = Placement.choose(precision=recipe.train.precision)
    torch.manual_seed(recipe.train.seed)
    module = recipe.network.build()
    check_autoencoder(recipe, module, dataset, start)
    if start:
        module.load_state_dict(start.module.state_dict())
    judge = HeldOutJudge(recipe, dataset, module, folder)
    opponent, own = None, {}
    if recipe.discriminator:
        network = adversary.build(recipe.discriminator, recipe.network.image_channels)
        opponent = adversary.Adversary(recipe.discriminator, network, judge, folder)
        own = {"discriminator": opponent.train_config(recipe.train)}
    task = AutoencoderTask(recipe, module, placement.device, judge, opponent)
    pixels = Pixels(size=recipe.size, channels=recipe.network.image_channels)
    batches = partial(_batches, dataset, list(task.columns), recipe.train, pixels, recipe.bits)
    placement = run.placement(task, batches, placement, recipe.train)
    state = TrainingState(task.modules, recipe.train, placement, own=own)

    def stored(**more: Any) -> StoredAutoencoder:
        passport = passport_of(dataset, state, start) | ({"start": start.hash} if start else {}) | more
        return StoredAutoencoder.of(module, recipe.network, recipe.size, passport, recipe.bits)

    def begun(path: Path) -> None:
        stored().save(path)
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


def check_autoencoder(
    recipe: AutoencoderRecipe, module: Any, dataset: Dataset, start: StoredAutoencoder | None
) -> None:
    """UserError where this network cannot be trained on these pictures by this recipe.

    Codes that exist already may be more than the data has vectors.
    """
    check_channels(dataset, recipe.network.image_channels, recipe.bits)
    pictures = len(dataset.indices("train"))
    kind = recipe.network.kind
    if recipe.size % module.factor:
        raise UserError(f"size is {recipe.size}; this autoencoder needs a multiple of {module.factor}")
    if not list(module.parameters()):
        raise UserError(
            f"the autoencoder {kind!r} has nothing to train; for diffusion in pixels see `carrara recipe ddpm`"
        )
    if pictures < recipe.train.batch:
        raise UserError(
            f"train.batch is {recipe.train.batch}, but {dataset.path} has {pictures} pictures to train on; "
            f"take --set train.batch={pictures} or fewer"
        )
    channels = recipe.network.image_channels
    if recipe.losses.lpips and channels not in VISIBLE_CHANNELS:
        raise UserError(
            f"losses.lpips looks at 1, 3 or 4 channels, these pictures have {channels}; leave it at 0"
        )
    vectors = pictures * (recipe.size // module.factor) ** 2
    if kind == "vq" and module.codes > vectors and not start:
        raise UserError(
            f"the codebook has {module.codes} codes for {vectors} vectors in all ({pictures} pictures of "
            f"{(recipe.size // module.factor) ** 2}); take --set autoencoder.codes={max(2, vectors // 16)} or fewer"
        )


def fitted(recipe: DiffusionRecipe, dataset: Dataset) -> DiffusionRecipe:
    """The recipe without the conditions for which the data has no words: then it trains unconditionally."""
    reads = reads_of(recipe.model, dataset)
    kept = {name: c for name, c in recipe.model.conditions.items() if reads[name]}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"conditions": kept})})


def train_diffusion(
    recipe: DiffusionRecipe,
    dataset: Dataset,
    autoencoder: StoredAutoencoder | None,
    folder: Path,
    *,
    conditions: nn.ModuleDict | None = None,
    start: Model | None = None,
) -> Generator[Report]:
    """Stage two, on stored latents (``data.latents.encode``) or, without an autoencoder, on the recipe's pixels.

    In the end the model lies in ``folder/model``. ``conditions`` are those that `conditioning.learned` gave for
    the recipe's seed, where they are at hand already. With ``start`` (whose configuration the recipe has) training
    begins from its weights, and its latent scale stays.
    """
    if recipe.pixels:
        autoencoder = recipe.pixels.autoencoder()
    if autoencoder is None:
        raise UserError("a recipe without pixels needs an autoencoder")
    check_pictures(dataset)
    made_from = {_DATA: dataset.hash, "autoencoder": autoencoder.hash}
    run = Run(folder, recipe, made_from | ({"start": start.hash} if start else {}), dataset)
    if run.finished:
        return
    begun = start.hash if start else ""
    feed = feed_of(recipe, dataset, autoencoder)
    if start:
        check_start(start, autoencoder)
        autoencoder, conditions = replace(feed.autoencoder, scale=start.autoencoder.scale), start.conditions
    else:
        autoencoder = feed.scaled()
    assert autoencoder.scale is not None
    placement = Placement.choose(precision=recipe.train.precision)
    latent, reads = latent_of(autoencoder), reads_of(recipe.model, dataset)
    if conditions is None:
        conditions = learned(recipe.model, dataset, latent, recipe.train.seed)
    words = derived_columns(conditions, reads, dataset)
    torch.manual_seed(mix(recipe.train.seed, 1) >> 1)
    network = start.network if start else build_network(recipe.model, conditions, latent.channels)
    for module in (network, conditions):
        module.train()
    autoencoder.module.to(placement.device)
    task = DiffusionTask(
        recipe,
        network,
        conditions,
        latents=feed.names,
        scale=autoencoder.scale,
        words=words,
        device=placement.device,
        factor=latent.factor,
        mirrored=feed.mirrored,
        own=feed.squares(),
    )
    if recipe.validation.looks:
        task.validation = Validation(recipe.validation, task, dataset, autoencoder, folder)
    fed = partial(feed.batches, list(task.columns))
    placement = run.placement(task, partial(fed, lambda: 0.0), placement, recipe.train)
    state = TrainingState(task.modules, recipe.train, placement)
    batches = partial(fed, lambda: state.fraction)

    def save(path: Path, **more: Any) -> None:
        passport = passport_of(dataset, state, autoencoder) | {
            "autoencoder": autoencoder.hash,
            "columns": reads,
        }
        passport |= ({"start": begun} if begun else {}) | more
        model = Model(recipe.model, network, conditions, autoencoder, passport)
        model.save(path, {RECIPE: to_toml(recipe)})

    yield from run.train(task, state, batches, save)
    if task.finished(state):  # by its patience, so at a time when the best has passed
        best = fill_best(folder, recipe.train, task.modules)
        about = {"length": recipe.train.ema, "source": best.source}
        run.finish(partial(save, seen=best.seen, steps=best.steps, average=about))
        yield Report.remark(state, f"the model is the best one, of {best.seen} pictures seen")
        return
    state.averages["denoiser"].copy_to(task.modules["denoiser"])
    run.finish(save)


def check_start(start: Model, autoencoder: StoredAutoencoder) -> None:
    """UserError where a model to begin from was trained on the latents of another autoencoder."""
    if start.autoencoder.hash != autoencoder.hash:
        raise UserError(
            "the model to begin from was trained on the latents of another autoencoder; "
            "omit --autoencoder to use its own"
        )


def check_pictures(dataset: Dataset) -> None:
    """UserError where the data set has no picture to train on. Fewer than a batch repeat within one."""
    if len(dataset.indices("train")) == 0:
        raise UserError(f"{dataset.path} has no pictures to train on")


def feed_of(recipe: DiffusionRecipe, dataset: Dataset, autoencoder: StoredAutoencoder) -> Feed:
    """What a recipe is fed; UserError where a size does not fit the autoencoder and the denoiser."""
    return Feed(recipe, dataset, autoencoder, multiple_of(recipe, autoencoder))


def _batches(
    dataset: Dataset, columns: list[str], config: TrainConfig, pixels: Pixels | None, bits: int, start: int
) -> Any:
    return load(
        dataset,
        columns,
        batch=config.batch,
        seed=config.seed,
        start=start,
        size=pixels.size if pixels else None,
        channels=pixels.channels if pixels else 3,
        bits=bits,
    )


def passport_of(
    dataset: Dataset, state: TrainingState, made_from: StoredAutoencoder | None
) -> dict[str, Any]:
    """Where a model comes from; the licences of the autoencoder it stands on are among its own."""
    inherited = made_from.passport.get("licences", []) if made_from else []
    licences = sorted({licence for licence in dataset.column("licence") if licence} | set(inherited))
    return {
        "carrara": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": dataset.fingerprint(),
        "pictures": len(dataset.indices("train")),
        "licences": licences,
        "languages": sorted(dataset.captions),
        **({"ranges": spans} if (spans := ranges.of(dataset.about)) else {}),
        "seen": state.seen,
        "steps": state.step,
        "seconds": round(state.spent, 1),
    }
