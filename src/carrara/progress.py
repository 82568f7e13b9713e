"""Progress of long work, as its generator yields it: the caller shows it, stops it, or pays it no heed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Progress:
    """``fraction``, from 0 to 1, of the work called ``title`` is done ("": of the same work as before).

    ``words`` say more, parts with " · " between, the first the most important; ``note`` is a sentence that a user
    should read. ``total`` is how many ``unit`` the whole work has, where a rate is of interest.
    """

    title: str = ""
    fraction: float = 0.0
    words: str = ""
    note: str = ""
    total: int | None = None
    unit: str = "pictures"

    @classmethod
    def of(cls, done: int, total: int, words: str = "", *, unit: str = "pictures", **more: Any) -> Self:
        """``done`` of ``total`` units; ``words`` are those numbers where there are no others."""
        share = done / total if total else 1.0
        return cls(fraction=share, words=words or f"{done} of {total} {unit}", total=total, unit=unit, **more)

    @property
    def done(self) -> int:
        """Units done, of the ``total``."""
        return round(self.fraction * (self.total or 0))
