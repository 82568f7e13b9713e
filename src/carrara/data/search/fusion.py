"""Several ways become one ranking: reciprocal rank fusion (Cormack et al. 2009), which needs no scale of scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from carrara.data.search.contract import Ranked, Reason

_K = 60  # theirs


class Fused(NamedTuple):
    """A row, its score, and how each way found it."""

    row: int
    score: float
    reasons: list[Reason]


def in_depths(rankings: Sequence[Ranked], first: int, depth: int) -> list[Fused]:
    """As `fuse`, of ``first`` places of each ranking, then of twice as many, up to ``depth``.

    What only lies deeper comes behind what was found before, so that one page follows on another; no score is above
    the one before it.
    """
    if len(rankings) == 1:
        return _falling(fuse(rankings))
    order: dict[int, Fused] = {}
    while True:
        cut = [Ranked(r.way, r.rows[:first], r.scores[:first], r.words[:first], r.certain) for r in rankings]
        for one in fuse(cut):
            order.setdefault(one.row, one)
        if first >= depth:
            return _falling(order.values())
        first *= 2


def _falling(ordered: Iterable[Fused]) -> list[Fused]:
    lowest, found = math.inf, []
    for one in ordered:
        lowest = min(lowest, one.score)
        found.append(one._replace(score=lowest))
    return found


def fuse(rankings: Sequence[Ranked]) -> list[Fused]:
    """Best first; the score is the sum of 1 / (60 + rank), of a single way that way's own."""
    found: dict[int, Fused] = {}
    for ranking in rankings:
        for place, row in enumerate(ranking.rows.tolist()):
            rank, score = place + 1, float(ranking.scores[place])
            reason = Reason(ranking.way, rank, score, ranking.words[place], place < ranking.certain)
            share = 1 / (_K + rank) if len(rankings) > 1 else score
            before = found.get(row, Fused(row, 0.0, []))
            found[row] = Fused(row, before.score + share, [*before.reasons, reason])
    if len(rankings) == 1:
        return list(found.values())  # in its own order: of words, all come before some
    return sorted(found.values(), key=lambda f: (-f.score, f.row))
