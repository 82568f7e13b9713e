"""Fingerprints of all pictures of a data set, kept as a derived column."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from carrara.dataset.derived import Derivation, derive, derived
from carrara.dataset.loader import Reading
from carrara.images.fingerprint import look, numbers_of, unpack

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset
    from carrara.dataset.derived import Derive, Progress
    from carrara.images.fingerprint import Glances
    from carrara.images.tiff import Span


_NAME = "glance"
_KEY = {"code": 2}  # raise it when the same picture would get another glance

_AT_ONCE = 256
_BATCH = 4096


def derive_glances(dataset: Dataset, *, by: Derive = derive) -> Generator[Progress, None, None]:
    """Derives the glances of the pictures that have none yet; the last report names their column."""
    return by(dataset, derivation(dataset))


def derivation(dataset: Dataset) -> Derivation:
    """What `derive_glances` derives."""
    looked = partial(_look_at_all, span=dataset.span("image"))
    return Derivation(_NAME, _KEY, looked, _AT_ONCE, Reading(("image", "mode")), title="perceptual hashes")


def glance_column(dataset: Dataset) -> str | None:
    """The column with every picture's glance; None where some have none yet."""
    return derived(dataset, _NAME, _KEY)


def glances(dataset: Dataset, column: str) -> Iterator[Glances]:
    """All glances in the order of the rows, some thousand at a time."""
    for start in range(0, len(dataset), _BATCH):
        yield glances_at(dataset, column, np.arange(start, min(start + _BATCH, len(dataset))))


def glances_at(dataset: Dataset, column: str, rows: npt.NDArray[np.int64]) -> Glances:
    """The glances of some rows, in the order asked."""
    return unpack(numbers_of(dataset.take_arrow(rows, [column])[column].combine_chunks()))


def _look_at_all(columns: Mapping[str, Any], span: Span | None = None) -> npt.NDArray[np.float32]:
    both = zip(columns["image"], columns["mode"], strict=True)
    return np.stack([look(data, span, mode) for data, mode in both])
