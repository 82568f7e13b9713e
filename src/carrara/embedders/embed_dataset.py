"""Every picture and every caption embedded once: derived columns of unit vectors, and their indexes."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from carrara.dataset.channels import check_channels
from carrara.dataset.derived import Derivation, Derive, Function, Progress, derive, derived
from carrara.dataset.loader import Reading
from carrara.embedders.embedders import Embedder, Lift, keep
from carrara.errors import UserError
from carrara.search.by_vector import index_vectors
from carrara.search.indexes import Build, build
from carrara.search.vector_columns import PICTURES, SEEN, meaning, vector_columns, vector_key

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

_PICTURES_AT_ONCE, _TEXTS_AT_ONCE, _VECTORS_AT_ONCE = 64, 512, 4096


def name_and_key(embedder: Embedder, of: str) -> tuple[str, dict[str, Any]]:
    """What the derived column is called and keyed by; ``of`` is "image" or a caption column."""
    name = SEEN if of == PICTURES else meaning(of)
    return name, vector_key(embedder.name, embedder.key, of, joint=embedder.joint)


def embedded(dataset: Dataset, embedder: Embedder, of: str) -> str | None:
    """The column with the vectors of every row; None where some are missing."""
    return derived(dataset, *name_and_key(embedder, of))


def embed(
    dataset: Dataset, embedder: Embedder, of: str, *, by: Derive = derive
) -> Generator[Progress, None, None]:
    """Derives the vectors of all pictures (``of`` "image") or of a caption column, float16 [d].

    A row without that caption gets zeros. Started again it goes on, or adds what is new. UserError where the
    embedder cannot do it, or a picture cannot be seen in colour.
    """
    lift = embedder.picture_lift if of == PICTURES else embedder.text_lift
    for each in (lift.below, embedder) if lift else (embedder,):
        keep(dataset, each)
    if of == PICTURES:
        check_channels(dataset, 3)
    for wanted in derivations(embedder, of):
        yield from by(dataset, wanted)


def derivations(embedder: Embedder, of: str) -> list[Derivation]:
    """What `embed` derives, one after the other."""
    lift = embedder.picture_lift if of == PICTURES else embedder.text_lift
    if lift is not None:
        below = derivations(lift.below, of)
        return [*below, _lifted(embedder, of, lift, below[-1].column)]
    return [_pictures(embedder) if of == PICTURES else _texts(embedder, of)]


def embed_missing(
    dataset: Dataset, embedder: Embedder, of: str, *, by: Derive = derive, build: Build = build
) -> Generator[Progress]:
    """The vectors of a column where they are not there yet, and the index of them; the last report says where."""
    what = _what(of)
    if embedded(dataset, embedder, of) is None:
        yield from embed(dataset, embedder, of, by=by)
    index(dataset, embedder, of, build)
    column = embedded(dataset, embedder, of)
    yield Progress(note=f"{embedder.name}: {what} encoded, as the column {column}")


def index(dataset: Dataset, embedder: Embedder, of: str, build: Build = build) -> bool:
    """Makes or freshens the index of a column of vectors where it has enough rows for one."""
    column = embedded(dataset, embedder, of)
    return any(
        index_vectors(dataset, found, build) for found in vector_columns(dataset) if found.column == column
    )


def _what(of: str) -> str:
    return "pictures" if of == PICTURES else f"texts of {of}"


def _derivation(embedder: Embedder, of: str, function: Function, batch: int, reading: Reading) -> Derivation:
    name, key = name_and_key(embedder, of)
    return Derivation(name, key, function, batch, reading, f"{embedder.name}, {_what(of)}", "rows")


def _pictures(embedder: Embedder) -> Derivation:
    see = embedder.pictures
    if see is None or embedder.size is None:
        raise UserError(f"the embedder {embedder.name} reads texts, it cannot see pictures")

    def vectors(columns: Mapping[str, Any]) -> npt.NDArray[np.float16]:
        return see(columns["image"]).astype(np.float16)

    return _derivation(embedder, PICTURES, vectors, _PICTURES_AT_ONCE, Reading(size=embedder.size))


def _texts(embedder: Embedder, of: str) -> Derivation:
    read = embedder.texts
    if read is None:
        raise UserError(f"the embedder {embedder.name} sees pictures, it cannot read texts")

    def vectors(columns: Mapping[str, Any]) -> npt.NDArray[np.float16]:
        words = columns[of]
        there = [place for place, text in enumerate(words) if text]
        found = np.zeros((len(words), embedder.width), np.float16)
        if there:
            found[there] = read([words[place] for place in there])
        return found

    return _derivation(embedder, of, vectors, _TEXTS_AT_ONCE, Reading([of]))


def _lifted(embedder: Embedder, of: str, lift: Lift, below: str) -> Derivation:
    def vectors(columns: Mapping[str, Any]) -> npt.NDArray[np.float16]:
        given = columns[below].numpy().astype(np.float32)
        found = lift.lift(given)
        found[~given.any(1)] = 0
        return found.astype(np.float16)

    return _derivation(embedder, of, vectors, _VECTORS_AT_ONCE, Reading([below]))
