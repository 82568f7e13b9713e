"""What is black and what is white in pictures whose numbers do not say it: one range for each column of a data set.

Floats, whole numbers below zero or of more than 16 bits have no usual range: metres, counts, light. It is chosen when
such pictures are first imported, and kept beside the sources that were; it is never guessed from a picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from carrara.dataset.columns import KINDS
from carrara.errors import UserError, nearest

Span = tuple[float, float]
KEY = "ranges"
COLUMNS = ("image", *(name for name, kind in KINDS.items() if kind.values != "numbers"))
# The modes of pictures whose numbers do not say their range, as a condition on the table.
UNSTATED = " OR ".join(
    ["mode LIKE 'F%'", "mode = 'I'", "mode LIKE 'I x%'", *(f"mode LIKE '%;{bits}%'" for bits in (24, 32, 64))]
)


def parse(texts: Sequence[str]) -> dict[str, Span]:
    """Columns to (black, white) of "0..40", which is for all of `COLUMNS`, or "depth=0..40". UserError."""
    found: dict[str, Span] = {}
    for text in texts:
        column, equals, numbers = text.rpartition("=")
        column = column.strip()
        if equals and column not in COLUMNS:
            raise UserError(
                f"--range {text}: no column {column!r} has a range{nearest(column, COLUMNS)}; "
                f"expected one of {', '.join(COLUMNS)}"
            )
        low, dots, high = numbers.partition("..")
        try:
            span = float(low), float(high)
        except ValueError:
            dots = ""
        if not dots or not all(map(math.isfinite, span)) or not span[0] < span[1]:
            raise UserError(f"--range {text}: expected LOW..HIGH, such as 0..40 or depth=0..40")
        found |= dict.fromkeys([column] if equals else COLUMNS, span)
    return found


def of(about: Mapping[str, Any]) -> dict[str, Span]:
    """The ranges of a data set by what it tells of itself."""
    found = dict(about.get(KEY, {}))
    for source in about.get("sources", []):
        found |= source.get(KEY, {})
    return {column: (float(low), float(high)) for column, (low, high) in found.items()}


def words(span: Span) -> str:
    """As "0 … 40"."""
    return f"{span[0]:g} … {span[1]:g}"
