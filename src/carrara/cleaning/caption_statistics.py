"""What is said about the pictures: how many captions in which languages, how long, how often the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from carrara.cleaning.spread import Spread
from carrara.conditions.text import learn_tokenizer
from carrara.dataset.columns import CAPTIONED_BY, UNSTATED

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

WINDOW = 32  # tokens that recipes with captions read
_VOCABULARY = 8192
_TEXTS = 20_000  # that tokens are learned from, and repetitions counted in
_COMMON = 10
_SHOWN = 8


@dataclass(frozen=True)
class Language:
    """The captions of one language; ``tokens`` and what repeats are those of at most 20,000 of them.

    ``too_long``: the share with more than 32 tokens; ``different``: how many different texts there are a caption.
    """

    captions: int
    by_machine: int
    characters: Spread | None
    tokens: Spread | None
    too_long: float
    different: float
    commonest: list[tuple[str, int]]


class Said(NamedTuple):
    """By language; how many pictures have no caption at all; the longest captions as (row, language, characters)."""

    languages: dict[str, Language]
    uncaptioned: int
    longest: list[tuple[int, str, int]]


def said(dataset: Dataset) -> Said:
    """Counts the captions of all rows."""
    import pyarrow.compute as pc

    captioned = np.zeros(len(dataset), bool)
    found, longest = {}, []
    for language, column in dataset.captions.items():
        lengths = np.concatenate(
            [
                pc.utf8_length(part).fill_null(-1).to_numpy(zero_copy_only=False)
                for part in values(dataset, column)
            ]
        )
        captioned |= lengths >= 0
        top = np.argsort(-lengths, kind="stable")[:_SHOWN]
        longest += [(int(row), language, int(lengths[row])) for row in top if lengths[row] > 0]
        found[language] = _language(dataset, language, column, lengths)
    longest.sort(key=lambda one: (-one[2], one[0]))
    return Said(found, int((~captioned).sum()), longest[:_SHOWN])


def _language(
    dataset: Dataset, language: str, column: str, lengths: np.ndarray[tuple[int], np.dtype[np.int32]]
) -> Language:
    rows = np.flatnonzero(lengths >= 0)
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _TEXTS)).astype(np.int64))]
    texts = dataset.take(sample, [column])[column]
    tokenizer = learn_tokenizer(texts, _VOCABULARY)
    tokens = np.array([len(one.ids) for one in tokenizer.encode_batch(texts)])
    counts = Counter(texts)
    return Language(
        len(rows),
        by_machine(dataset, language),
        Spread.of(lengths[rows]),
        Spread.of(tokens),
        float((tokens > WINDOW).mean()),
        len(counts) / len(texts),
        [(text, n) for text, n in counts.most_common(_COMMON) if n > 1],
    )


def caption_columns(dataset: Dataset) -> list[str]:
    """The columns of captions, those that most readers can read first."""
    found = dataset.captions
    first = [language for language in ("en", UNSTATED) if language in found]
    return [found[language] for language in (*first, *sorted(found.keys() - set(first)))]


def by_machine(dataset: Dataset, language: str) -> int:
    """How many captions of a language a captioner made, as the column CAPTIONED_BY remembers."""
    if CAPTIONED_BY not in dataset.columns:
        return 0
    return sum(
        n
        for words, n in counted(dataset, CAPTIONED_BY).items()
        if any(word.startswith(f"{language}:") for word in words.split())
    )


def counted(dataset: Dataset, column: str) -> Counter[str]:
    """How many rows have which value; none where there is no such column."""
    import pyarrow.compute as pc

    found: Counter[str] = Counter()
    for part in values(dataset, column):
        for one in pc.value_counts(part.drop_null()).to_pylist():
            found[one["values"]] += one["counts"]
    return found


def values(dataset: Dataset, column: str) -> Iterator[Any]:
    """A column in the order of the rows, as Arrow arrays of some thousand; none where there is no such column."""
    if column in dataset.columns:
        for batch in dataset.table.to_batches(columns=[column], scan_in_order=True):
            yield batch[column]
