"""Texts by a pretrained encoder in a folder (e5, MiniLM, XLM-R, CLIP …): the mean of its last layer, or its vector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from carrara.conditions.frozen_encoder import EncoderFolder
from carrara.embedders.embedders import Embedder, Vectors, unit

NAME = "pretrained_text"
CODE = 1
_LONGEST = 128  # tokens of a text that are read


def opens(folder: Path) -> bool:
    """Whether a folder looks like an encoder's."""
    return (folder / "config.json").is_file() or any(folder.glob("text_encoder*/config.json"))


def embedder(folder: Path) -> Embedder:
    """UserError where the folder lacks a file, is of an unknown kind, or `transformers` is not installed."""
    encoder = EncoderFolder(folder)
    length = min(_LONGEST, encoder.longest or _LONGEST)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def texts(words: Sequence[str]) -> Vectors:
        if not words:
            return np.empty((0, encoder.pooled_width), np.float32)
        given = encoder.tokenize(words, length, full=False)
        _, pooled = encoder.run(
            given["ids"].to(device), given["mask"].to(device), layer=-1, norm=True, masked=True
        )
        return unit(pooled.cpu().numpy())

    key = {**encoder.hashes, "length": length, "code": CODE}
    return Embedder(NAME, key, encoder.pooled_width, texts=texts, where=str(folder.resolve()))
