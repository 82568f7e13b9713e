"""An SQL condition on a table's columns: whole by itself, and what is wrong with it said in a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from carrara.data.rows import nfc
from carrara.errors import UserError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

_QUOTED = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`")
_WHERE_IN_LANCE = re.compile(r"(, /\S+\.rs:\d+:\d+)+$")
_UNKNOWN = re.compile(r"No field named [\"'`]?(\w+)")
_NAMEABLE = ("string", "large_string", "int32", "int64", "double", "float", "bool")


def enclosed(where: str) -> str:
    """The condition in brackets, so that nothing that is put around it changes what it means; its letters composed,
    as those of the table are.

    UserError where it is empty or its own brackets do not match.
    """
    if not where.strip():
        raise UserError("the condition is empty; expected something like \"width >= 256 AND label = 'cat'\"")
    depth = 0
    for bracket in re.findall(r"[()]", _QUOTED.sub("", where)):
        depth += 1 if bracket == "(" else -1
        if depth < 0:
            break
    if depth:
        raise UserError(f"the condition {where!r} cannot be read: its brackets do not match")
    return f"({nfc(where)})"


def fault(where: str, error: Exception, path: PurePath | str, columns: Sequence[str]) -> UserError:
    """What to say where Lance could not read ``where``: the column that there is not, or its own reason."""
    said = _WHERE_IN_LANCE.sub("", " ".join(str(error).split()))
    if named := _UNKNOWN.search(said):
        name = named[1]
        quotes = "; a text stands in single quotes" if _after_an_operator(where, name) else ""
        return UserError(
            f"the condition names a column {name!r} that {path} does not have{quotes}{nearest(name, columns)}"
        )
    reason = said.rsplit("Invalid user input: ", 1)[-1]
    if parser := re.search(r"sql parser error: (.*)\)", reason):
        reason = parser[1]
    reason = re.sub(r"found: \)( at .*)?$", "found: its end", reason)  # the bracket is ours
    return UserError(f"the condition {where!r} cannot be read: {reason[:200]}")


def nameable(schema: pa.Schema) -> list[str]:
    """The columns that a condition may name: words and numbers, not pictures and what was derived."""
    return [field.name for field in schema if str(field.type) in _NAMEABLE]


def _after_an_operator(where: str, word: str) -> bool:
    return (
        re.search(rf"(=|<|>|\blike\b|\bin\b\s*\().*?\b{re.escape(word)}\b", where, re.IGNORECASE) is not None
    )
