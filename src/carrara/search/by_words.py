"""By words: full text over every caption column and the labels, ranked by BM25 (Robertson et al. 1995).

Words are those of Unicode's segmentation (ICU), so Chinese and Japanese need no spaces; case and accents do not count,
endings do. Rows that came after an index was made are found as well, only more slowly.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from carrara.dataset.columns import MORE_CAPTIONS, UNSTATED
from carrara.search.indexes import Build, build, covered, is_stale, make_index
from carrara.search.query import Ranked
from carrara.search.table_scores import Rows, Scores, ask

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

_SETTINGS = {
    "base_tokenizer": "icu",
    "lower_case": True,
    "ascii_folding": True,
    "stem": False,
    "remove_stop_words": False,
    "with_position": False,
}
_LONGEST = 40  # letters of a word of which similar spellings are looked for
_TWO_EDITS = 5  # letters from which on a word may have two edits, as two letters that changed places have
_LATIN = str.maketrans({"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th"})


def _columns(dataset: Dataset) -> dict[str, str]:
    """The columns with captions, also further ones, and with labels, and what to call them."""
    named = {
        column: "the caption" if language == UNSTATED else language
        for language, column in dataset.captions.items()
    }
    others = {MORE_CAPTIONS: "a further caption", "label": "the label"}
    return named | {column: called for column, called in others.items() if column in dataset.columns}


def unindexed(dataset: Dataset) -> list[str]:
    """The columns whose index of words is to be made or brought up to date."""
    there, total = covered(dataset), len(dataset)
    return [c for c in _columns(dataset) if is_stale(there.get(c), total)]


def index_words(dataset: Dataset, build: Build = build) -> list[str]:
    """Makes or freshens the index of every caption column and of the labels; returns the columns that needed it."""
    return [c for c in unindexed(dataset) if make_index(dataset, c, "INVERTED", build, **_SETTINGS)]


def indexed(dataset: Dataset) -> bool:
    """Whether every caption column and the labels have an index, maybe not a fresh one."""
    return _columns(dataset).keys() <= covered(dataset).keys()


def by_words(dataset: Dataset, text: str, *, where: str | None, limit: int) -> Ranked:
    """Captions and labels with all of the words first, which alone are ``certain``, then those with some."""
    all_words = _every_column(dataset, text, where, limit, every=True)
    parts = all_words
    if len(parts) < limit:
        parts = _merged(parts, _every_column(dataset, text, where, limit, every=False))
    return _ranked(parts, limit, certain=len(all_words))


def by_spelling(dataset: Dataset, text: str, *, where: str | None, limit: int) -> Ranked:
    """Captions and labels with similar spellings of a word: one edit, and if nobody writes so two in long words."""
    words = [word for word in _folded(text).split() if len(word) <= _LONGEST]
    parts: _Parts = {}
    for edits, least in ((1, 1), (2, _TWO_EDITS)):
        near = " ".join(word for word in words if len(word) >= least)
        if near and not parts:
            parts = _every_column(dataset, near, where, limit, every=False, edits=edits)
    return _ranked(parts, limit)


def _folded(text: str) -> str:
    """Small letters, Latin ones without accents, as the index has them; Lance does not fold words it varies."""
    letters = []
    for letter in unicodedata.normalize("NFC", text.lower()).translate(_LATIN):
        bare = unicodedata.normalize("NFKD", letter)
        letters.append("".join(part for part in bare if part.isascii()) if bare[:1].isascii() else letter)
    return "".join(letters)


_Parts = dict[int, tuple[float, str]]  # row: its score and the reason, best first


def _ranked(parts: _Parts, limit: int, *, certain: int = 0) -> Ranked:
    best = list(parts.items())[:limit]
    return Ranked(
        "words",
        np.array([row for row, _ in best], np.int64),
        np.array([score for _, (score, _) in best], np.float64),
        [words for _, (_, words) in best],
        certain,
    )


def _merged(first: _Parts, second: _Parts) -> _Parts:
    return first | {row: found for row, found in second.items() if row not in first}


def _every_column(
    dataset: Dataset, text: str, where: str | None, limit: int, *, every: bool, edits: int = 0
) -> _Parts:
    """Each row by its best caption."""
    found: _Parts = {}
    kind = "a similar spelling" if edits else "all words" if every else "some words"
    for column, called in _columns(dataset).items():
        rows, scores = _ask(dataset, text, column, where, limit, every=every, edits=edits)
        words = f"{kind} in {called}"
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            if score > found.get(row, (0.0, ""))[0]:
                found[row] = (score, words)
    return dict(sorted(found.items(), key=lambda item: (-item[1][0], item[0])))


def _ask(
    dataset: Dataset, text: str, column: str, where: str | None, limit: int, *, every: bool, edits: int
) -> tuple[Rows, Scores]:
    from lance.query import FullTextOperator, MatchQuery

    operator = FullTextOperator.AND if every else FullTextOperator.OR
    query = MatchQuery(text, column, operator=operator, fuzziness=edits)
    return ask(dataset, "_score", where=where, limit=limit, full_text_query=query)
