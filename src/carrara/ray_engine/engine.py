"""Where a command's work is done: by this process, or by workers on Ray (`--engine ray`)."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from carrara.errors import UserError, nearest

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.dataset.derived import Derivation, Derive
    from carrara.dataset.latents import Variant
    from carrara.ray_engine.importing import RayEngine
    from carrara.search.indexes import Build


ENGINES = ("local", "ray")


class Hands:
    """This process. As a context, they stay where they are until its end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is to be let go."""

    def importing(self) -> RayEngine | None:
        """Who looks at the pictures of an import, if not this process."""
        return None

    def latents(self, autoencoder: Path, variant: Variant) -> Derive:
        """Who encodes pictures by the autoencoder there."""
        return _here()

    def vectors(self, embedder: str, of: str) -> Derive:
        """Who embeds pictures or captions."""
        return _here()

    def glances(self) -> Derive:
        """Who looks for the perceptual hashes."""
        return _here()

    def indexes(self) -> Build:
        """Who builds indexes."""
        from carrara.search.indexes import build

        return build


class Team(Hands):
    """Workers on Ray. Each opens the models by their paths, which are to be the same on every machine."""

    def __init__(self, workers: int | None) -> None:
        self.workers = workers
        self._open = ExitStack()

    def __enter__(self) -> Self:
        from carrara.ray_engine.session import keeping

        self._open.enter_context(keeping())
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def importing(self) -> RayEngine | None:
        from carrara.ray_engine.importing import RayEngine

        return RayEngine(self.workers)

    def latents(self, autoencoder: Path, variant: Variant) -> Derive:
        from carrara.ray_engine.deriving import on_ray

        return on_ray(partial(_latents, autoencoder=autoencoder.absolute(), variant=variant), self.workers)

    def vectors(self, embedder: str, of: str) -> Derive:
        from carrara.ray_engine.deriving import on_ray

        given = str(Path(embedder).absolute()) if Path(embedder).is_dir() else embedder
        return on_ray(partial(_vectors, embedder=given, of=of), self.workers)

    def glances(self) -> Derive:
        from carrara.ray_engine.deriving import on_ray

        return on_ray(_glances, self.workers)

    def indexes(self) -> Build:
        from carrara.ray_engine.session import build_on_ray

        return partial(build_on_ray, self.workers)


HERE = Hands()


def hands(engine: str, workers: int | None) -> Hands:
    """Those that the options name. UserError where there is no such engine, or Ray is not installed."""
    if engine not in ENGINES:
        raise UserError(f"no engine is called {engine!r}{nearest(engine, ENGINES)}")
    if engine == "local":
        if workers is not None:
            raise UserError("--workers is for --engine ray; this process uses every processor by itself")
        return HERE
    from carrara.ray_engine.session import check_installed

    check_installed()
    return Team(workers)


def _here() -> Derive:
    from carrara.dataset.derived import derive

    return derive


def _latents(dataset: Dataset, *, autoencoder: Path, variant: Variant) -> list[Derivation]:
    """What a worker does for latents, on the device that it has."""
    from carrara.dataset.latents import derivation
    from carrara.interop.models import open_autoencoder
    from carrara.training.devices import Placement

    placement = Placement.choose()
    opened = open_autoencoder(autoencoder)
    placement.place(opened.module)
    return [derivation(opened, placement.device, variant=variant, autocast=placement.autocast)]


def _vectors(dataset: Dataset, *, embedder: str, of: str) -> list[Derivation]:
    from carrara.embedders.embed_dataset import derivations
    from carrara.embedders.embedders import open_embedder

    return derivations(open_embedder(embedder), of)


def _glances(dataset: Dataset) -> list[Derivation]:
    from carrara.dataset.fingerprints import derivation

    return [derivation(dataset)]
