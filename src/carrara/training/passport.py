"""The passport of a model: what it was made of, by which version, how long, and under which licences."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from carrara import __version__
from carrara.data import ranges

if TYPE_CHECKING:
    from carrara.autoencoders.stored import StoredAutoencoder
    from carrara.data.table import Dataset
    from carrara.training.loop import TrainingState


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
