"""A batch computed in parts, so that a step needs the activations of one part only."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carrara.data.loader import Loaded


def parts(batch: Loaded, count: int) -> list[Loaded]:
    """``count`` consecutive parts, as equal as they can be; a batch of fewer pictures comes one by one.

    Each picture keeps its own seed, so what is random about it does not depend on the parts.
    """
    pictures = len(batch.rows)
    count = min(count, pictures)
    if count == 1:
        return [batch]
    edges = [pictures * k // count for k in range(count + 1)]
    return [
        replace(
            batch,
            rows=batch.rows[start:end],
            seen=batch.seen + start,
            seeds=batch.seeds[start:end],
            columns={name: values[start:end] for name, values in batch.columns.items()},
        )
        for start, end in pairwise(edges)
    ]
