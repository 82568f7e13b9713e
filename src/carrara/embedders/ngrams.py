"""Texts by their spelling: counts of byte n-grams, hashed (Weinberger et al. 2009); no weights, no meaning."""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from carrara.embedders.embedders import Embedder, Vectors, unit
from carrara.search.vector_columns import SPELLING

NAME = SPELLING
WIDTH = 1024
CODE = 1
_LENGTHS = (3, 4, 5, 6)  # bytes: a letter of Latin is one, of Arabic two, of Chinese three


def embedder() -> Embedder:
    """Always there."""
    return Embedder(NAME, {"width": WIDTH, "code": CODE}, WIDTH, texts=texts)


def texts(words: Sequence[str]) -> Vectors:
    """``[n 1024]``; each n-gram adds its sign at its place, the more often the less."""
    found = np.zeros((len(words), WIDTH), np.float32)
    for row, text in enumerate(words):
        plain = unicodedata.normalize("NFKC", text).casefold()
        data = " ".join(["", *plain.split(), ""]).encode()
        grams = Counter(data[k : k + n] for n in _LENGTHS for k in range(len(data) - n + 1))
        for gram, count in grams.items():
            number = zlib.crc32(gram)
            found[row, number % WIDTH] += (1 if number >> 31 else -1) * (1 + np.log(count))
    return unit(found)
