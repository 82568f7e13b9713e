"""A sentence with columns in braces, "a photo of a {label}", that makes captions of what else is known."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from carrara.dataset.columns import CAPTIONED_BY, LANGUAGE, UNSTATED, caption_column
from carrara.errors import UserError, nearest

BY = "columns"  # who is remembered to have made such a caption


class Sentence:
    """The sentence, and the ``columns`` that it names. ``known`` are those of ``where``; UserError where it names
    another, or none."""

    def __init__(self, text: str, known: Sequence[str], where: object, language: str = UNSTATED) -> None:
        self.text, self.language = text, language
        try:
            fields = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
        except ValueError as error:
            raise UserError(f"the sentence {text!r} cannot be read: {error}") from None
        for name, spec, how in fields:
            if name not in known:
                raise UserError(f"{where} has no column {name!r} for the sentence{nearest(str(name), known)}")
            if spec or how:
                raise UserError(f"in the sentence {text!r}, expected a column's name alone in braces")
        if not fields:
            raise UserError(f"the sentence {text!r} names no column in braces, like {{label}}")
        self.columns = list(dict.fromkeys(str(name) for name, _, _ in fields))

    def filled(self, row: Mapping[str, Any]) -> str | None:
        """The sentence with a row's values; None for a row that lacks one of them."""
        values = {name: row.get(name) for name in self.columns}
        return None if None in values.values() else self.text.format(**values)


def column_of(record: Mapping[str, Any]) -> str | None:
    """The column of the one caption in an importer's record that a sentence made at the import."""
    language, _, by = (record.get(CAPTIONED_BY) or "").partition(":")
    return caption_column(language) if by == BY and LANGUAGE.fullmatch(language) else None
