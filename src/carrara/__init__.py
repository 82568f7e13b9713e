"""Carrara: train, search, measure and serve your own latent diffusion model."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.dataset import Dataset
    from carrara.generation.model import Model
    from carrara.importing import importing
    from carrara.importing.summary import Summary
    from carrara.progress import Progress
    from carrara.recipes.catalogue import Recipe


from carrara.version import __version__ as __version__

# Before torch is there: threads that wait for each other sleep soon, so that a busy neighbour gets the core and the
# thread that is waited for is not kept off it (with the library's own setting an operation takes many times as long).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def import_pictures(
    source: str | Path, dataset: str | Path, **options: Any
) -> Generator[importing.Progress, None, Summary]:
    """Brings all pictures and captions of ``source`` into the data set at ``dataset``, made where there is none.

    ``source`` is a folder, an archive, a table, a WebDataset …; the options are those of `carrara data import`, with
    underscores. Yields how many are done and kept; the last report has the ``summary``, which is returned.
    Stopped at any moment and called again it ends in the same table. UserError, with nothing written, where either
    cannot be used.
    """
    from carrara.importing.importing import import_pictures as bring

    return (yield from bring(source, dataset, **options))


def recipe(name: str | Path, *changes: str) -> Recipe:
    """A recipe by its name (`carrara recipe` lists them) or TOML file, with changes such as "train.batch=16".

    UserError names the nearest recipe or key where there is none of that name.
    """
    from carrara.recipes.catalogue import named

    return named(str(name), list(changes))


def train_autoencoder(
    recipe: str | Path | Recipe,
    dataset: str | Path | Dataset,
    out: str | Path,
    *,
    start: str | Path | StoredAutoencoder | None = None,
) -> Generator[Progress]:
    """Stage one: trains an autoencoder into the run folder ``out``; ``out/model`` is the finished one.

    Yields a `Progress` for each piece of preparation and a `Report` (losses, pictures ``seen``, seconds ``spent``,
    ``fraction`` of the budget) after each step. Leaving the loop or closing the generator saves the run, and the same
    call goes on with it, bit for bit. ``start`` is an autoencoder whose weights it begins from. UserError, in one
    line, where recipe, data or memory do not allow it.
    """
    from carrara.interop.models import open_autoencoder
    from carrara.training import stages
    from carrara.training.recipe import AutoencoderRecipe

    first = open_autoencoder(Path(start)) if isinstance(start, str | Path) else start
    chosen = _recipe(recipe, AutoencoderRecipe, network=first.config if first else None)
    yield from stages.train_autoencoder(chosen, _dataset(dataset), Path(out), start=first)


def train_diffusion(
    recipe: str | Path | Recipe,
    dataset: str | Path | Dataset,
    autoencoder: str | Path | StoredAutoencoder | None,
    out: str | Path,
    *,
    start: str | Path | Model | None = None,
) -> Generator[Progress]:
    """Stage two: trains a diffusion model on the latents of ``autoencoder`` (None: on pixels, or that of ``start``).

    What is missing is encoded first. Reports, stopping and going on are as in `train_autoencoder`. ``start`` is a
    model whose network, conditions and weights it begins from.
    """
    from carrara.interop.models import open_autoencoder, open_model
    from carrara.training import stages
    from carrara.training.recipe import DiffusionRecipe

    first = open_model(Path(start)) if isinstance(start, str | Path) else start
    first_stage = open_autoencoder(Path(autoencoder)) if isinstance(autoencoder, str | Path) else autoencoder
    chosen = _recipe(recipe, DiffusionRecipe, model=first.config if first else None)
    if first_stage is None and first is not None:
        first_stage = first.autoencoder
    yield from stages.train_diffusion(chosen, _dataset(dataset), first_stage, Path(out), start=first)


def train_search_space(
    recipe: str | Path | Recipe, dataset: str | Path | Dataset, out: str | Path
) -> Generator[Progress]:
    """Trains two towers that put captions and pictures into one space to search in (recipe "contrastive").

    What is missing is embedded first. Reports, stopping and going on are as in `train_autoencoder`.
    """
    from carrara.training import stages
    from carrara.training.recipe import ContrastiveRecipe

    yield from stages.train_search_space(_recipe(recipe, ContrastiveRecipe), _dataset(dataset), Path(out))


def load(path: str | Path) -> Any:
    """A diffusion `Model` or a `StoredAutoencoder`, on the GPU where there is one.

    ``path`` is a model folder, the run that made it, "starter" (the model that comes with Carrara), or an autoencoder
    in the layout of diffusers. UserError, in one line, where a file is missing, damaged, or written by a newer Carrara.
    """
    from carrara.interop.models import is_diffusion, open_autoencoder, open_model
    from carrara.training.devices import Placement

    if is_diffusion(Path(path)):
        return open_model(Path(path))
    stored = open_autoencoder(Path(path))
    stored.module.to(Placement.choose().device)
    return stored


def generate(
    model: Model,
    rows: Sequence[Mapping[str, Any]],
    *,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """A picture for each row: ``uint8`` (or ``uint16`` of a 16-bit model) ``[n c H W]``.

    A row is what a data row is, columns by name: ``{"caption": "a red hat"}``, ``{"label": "cat"}``, ``{}``. The
    settings are those of `carrara sample`, by default the model's own: seed, steps, sampler ("ddim:eta=0.5"), grid,
    guidance (4, "apg:4,limit=2"), width, height. Picture k of a seed is the same whatever else is made with it.

    ``start`` is a picture to start from, ``uint8`` 0..255 or ``uint16`` 0..65535, ``[c h w]`` of any size for all rows
    or ``[n c h w]``; of it ``strength`` (above 0, at most 1, by default 0.5) is changed, 1 is from noise. ``mask``,
    ``[h w]`` or ``[n h w]`` of the same size, is not zero where a hole is to be filled (strength is then 1 by default)
    and keeps all else. UserError, in one line, where something is not so.
    """
    from carrara.errors import UserError
    from carrara.generation import sample as sampling
    from carrara.generation.editing import originals
    from carrara.generation.model import Model

    if not isinstance(model, Model):
        raise UserError(f"a {type(model).__name__} draws no pictures; expected a diffusion model")
    chosen = sampling.settings_for(model, settings)
    return sampling.generate(model, rows, chosen, given=originals(model, len(rows), start, mask))


def _recipe(given: str | Path | Recipe, kind: type, **parts: Any) -> Any:
    """The recipe, by name or as it is; UserError where it makes something else."""
    from carrara.errors import UserError
    from carrara.recipes.catalogue import named

    found = named(str(given), **parts) if isinstance(given, str | Path) else given
    if not isinstance(found, kind):
        raise UserError(f"expected a recipe of the kind {kind.__name__}, not {type(found).__name__}")
    return found


def _dataset(given: str | Path | Dataset) -> Dataset:
    from carrara.dataset.dataset import Dataset

    return Dataset.open(given) if isinstance(given, str | Path) else given
