"""What a model can know of a prompt: its languages, its scripts, its window."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from carrara.generation.model import Model


def scripts(text: str) -> set[str]:
    """The scripts of a text's letters, by the first word of their Unicode names: LATIN, CJK, ARABIC …"""
    return {unicodedata.name(c, "UNKNOWN").split()[0] for c in text if c.isalpha()}


def remarks(model: Model, prompt: str) -> Sequence[str]:
    """Sentences for the user: unconditional model, a script that no caption used, words beyond the window."""
    if not model.conditions:
        return ["this model was trained without captions; the prompt is not used"] if prompt else []
    found = []
    for encoder in cast(Any, model.conditions).values():
        if cut := encoder.cut(prompt):
            found.append(
                f"the last {cut} tokens of the prompt are beyond the model's window and are not read"
            )
        known = set[str]().union(*(scripts(token) for token in _words(encoder.tokenizer)))
        if strange := sorted(scripts(prompt) - known):
            languages = ", ".join(encoder.config.languages) or ", ".join(model.passport.get("languages", []))
            names = ", ".join(s.capitalize() for s in strange)
            found.append(
                f"no caption was written in {names} letters; the model learned: {languages or 'its captions'}"
            )
    return found


def _words(tokenizer: Any) -> list[str]:
    """What each token stands for, as text; halves of characters are left out."""
    return [w for i in range(tokenizer.get_vocab_size()) if "�" not in (w := tokenizer.decode([i]))]
