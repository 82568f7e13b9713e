"""By words: full text over every caption column, ranked by BM25 (Robertson et al. 1995).

Words are those of Unicode's segmentation (ICU), so Chinese and Japanese need no spaces; case and accents do not count,
endings do. Rows that came after an index was made are found as well, only more slowly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from carrara.data.rows import MORE_CAPTIONS, UNSTATED
from carrara.data.search.asking import Rows, Scores, ask
from carrara.data.search.contract import Ranked
from carrara.data.search.indexing import Build, build, covered, is_stale, make_index

if TYPE_CHECKING:
    from carrara.data.table import Dataset

_SETTINGS = {
    "base_tokenizer": "icu",
    "lower_case": True,
    "ascii_folding": True,
    "stem": False,
    "remove_stop_words": False,
    "with_position": False,
}
_LONGEST = 40  # letters of a word of which those spelled nearly so are looked for


def _columns(dataset: Dataset) -> dict[str, str]:
    """The columns with captions, also further ones, and what to call them."""
    named = {
        column: "the caption" if language == UNSTATED else language
        for language, column in dataset.captions.items()
    }
    return named | ({MORE_CAPTIONS: "a further caption"} if MORE_CAPTIONS in dataset.columns else {})


def unindexed(dataset: Dataset) -> list[str]:
    """The caption columns whose index is to be made or brought up to date."""
    there, total = covered(dataset), len(dataset)
    return [c for c in _columns(dataset) if is_stale(there.get(c), total)]


def index_words(dataset: Dataset, build: Build = build) -> list[str]:
    """Makes or freshens the index of every caption column; returns the columns for which it did something."""
    return [c for c in unindexed(dataset) if make_index(dataset, c, "INVERTED", build, **_SETTINGS)]


def indexed(dataset: Dataset) -> bool:
    """Whether every caption column has an index, maybe not a fresh one."""
    return _columns(dataset).keys() <= covered(dataset).keys()


def by_words(dataset: Dataset, text: str, *, where: str | None, limit: int) -> Ranked:
    """Captions with all of the words first, then those with some; where no word is known, those spelled nearly so."""
    parts = _every_column(dataset, text, where, limit, every=True)
    if len(parts) < limit:
        parts = _merged(parts, _every_column(dataset, text, where, limit, every=False))
    if not parts and (short := " ".join(word for word in text.split() if len(word) <= _LONGEST)):
        parts = _every_column(dataset, short, where, limit, every=False, nearly=True)
    best = list(parts.items())[:limit]
    return Ranked(
        "words",
        np.array([row for row, _ in best], np.int64),
        np.array([score for _, (score, _) in best], np.float64),
        [words for _, (_, words) in best],
    )


_Parts = dict[int, tuple[float, str]]  # row: its score and the reason, best first


def _merged(first: _Parts, second: _Parts) -> _Parts:
    return first | {row: found for row, found in second.items() if row not in first}


def _every_column(
    dataset: Dataset, text: str, where: str | None, limit: int, *, every: bool, nearly: bool = False
) -> _Parts:
    """Each row by its best caption."""
    found: _Parts = {}
    kind = "nearly these words" if nearly else "all words" if every else "some words"
    for column, called in _columns(dataset).items():
        rows, scores = _ask(dataset, text, column, where, limit, every=every, nearly=nearly)
        words = f"{kind} in {called}"
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            if score > found.get(row, (0.0, ""))[0]:
                found[row] = (score, words)
    return dict(sorted(found.items(), key=lambda item: (-item[1][0], item[0])))


def _ask(
    dataset: Dataset, text: str, column: str, where: str | None, limit: int, *, every: bool, nearly: bool
) -> tuple[Rows, Scores]:
    from lance.query import FullTextOperator, MatchQuery

    operator = FullTextOperator.AND if every else FullTextOperator.OR
    query = MatchQuery(text, column, operator=operator, fuzziness=1 if nearly else 0)
    return ask(dataset, "_score", where=where, limit=limit, full_text_query=query)
