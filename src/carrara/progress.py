"""Progress of long work, as its generator yields it: the caller shows it, stops it, or pays it no heed."""

from __future__ import annotations

from dataclasses import dataclass


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
