"""The passport of a model: what it was made of, by which version, how long, and under which licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from carrara.conditions.text import known_words
from carrara.dataset import ranges
from carrara.generation.model import WORDS
from carrara.training.condition_columns import TrainingRows
from carrara.version import __version__

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.dataset.dataset import Dataset
    from carrara.generation.model import Model
    from carrara.training.checkpoint import TrainingState


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


def words_of(
    conditions: Any, reads: Mapping[str, Sequence[str]], dataset: Dataset, start: Model | None
) -> dict[str, str]:
    """Every word of the captions trained on, with those of the model begun from.

    Nothing where they are too many, or where that model does not know its own.
    """
    columns = sorted({c for name, e in conditions.items() if e.form == "text" for c in reads[name]})
    if not columns or (start and WORDS not in start.passport):
        return {}
    captions = [text for column in columns for text in TrainingRows(dataset).values(column) if text]
    found = known_words([*captions, start.passport[WORDS]] if start else captions)
    return {} if found is None else {WORDS: found}
