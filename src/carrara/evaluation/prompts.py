"""What a model can know of a prompt: its languages, its scripts, its window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from carrara.generation.model import Model


def remarks(model: Model, prompt: str) -> Sequence[str]:
    """Sentences for the user: unconditional model, a script that no caption used, words beyond the window."""
    encoders = [e for e in cast(Any, model.conditions).values() if e.form == "text"]
    if not encoders:
        return ["this model was trained without captions; the prompt is not used"] if prompt else []
    return [remark for encoder in encoders for remark in encoder.remarks(prompt)]
