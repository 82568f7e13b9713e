"""An SQL condition on a table's columns: whole by itself, and what is wrong with it said in a line."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from carrara.errors import UserError, nearest, of_lance
from carrara.text import nfc

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

SECONDS = 60.0  # that a condition may take
_AT_A_TIME, _BATCH = 8, 1024  # files and rows that are looked at together, which bounds the memory
_DEEPEST = 16  # brackets in one another: reading them takes twice as long with each
_MOST_OPERATORS = 1000
_OPERATORS = {"and", "or", "not", "in", "between", "like", "ilike", "escape", "is", "distinct", "from"}
# None of them makes a value that is much larger than what it is given.
FUNCTIONS = (
    "abs", "round", "greatest", "least", "coalesce", "nullif", "lower", "upper", "length", "char_length",
    "octet_length", "substr", "left", "right", "btrim", "ltrim", "rtrim", "contains", "starts_with", "ends_with",
    "strpos", "contains_tokens", "array_has", "string_to_array",
)  # fmt: skip
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<text>'(?:[^']|'')*'|"[^"]*")|(?P<name>`\w+`|[^\W\d]\w*)
    |(?P<number>(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)|(?P<operator><=|>=|<>|!=|==|(?!--|/\*)[-=<>+*/%])|(?P<mark>[(),])""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_UNKNOWN = re.compile(r"No field named [\"'`]?(\w+)")
_NAMEABLE = ("string", "large_string", "int32", "int64", "double", "float", "bool")


def enclosed(where: str) -> str:
    """The condition in brackets, so that nothing that is put around it changes what it means; its letters composed,
    as those of the table are.

    It may compare, calculate, test texts (LIKE, ILIKE and some of `FUNCTIONS`), and use IN, BETWEEN, IS NULL, AND, OR
    and NOT: nothing whose time or memory grows faster than the condition and the table. UserError where it is empty,
    has anything else, or its brackets do not match.
    """
    if not where.strip():
        raise UserError("the condition is empty; expected something like \"width >= 256 AND label = 'cat'\"")
    where = nfc(where)
    tokens = _tokens(where)
    depth = deepest = 0
    before = ""  # the word or sign before, where it is a value, which cannot stand before another
    for token, after in itertools.pairwise([*tokens, _END]):
        calls = token.kind == "name" and after.word == "("
        if calls and token.word.lower() not in FUNCTIONS:
            raise _unreadable(where, f"it calls {token.word!r}{nearest(token.word.lower(), FUNCTIONS)}")
        if (before and token.kind in ("name", "text", "number")) or (
            before not in ("", _CALL) and token.word == "("
        ):
            raise _unreadable(where, f"expected an operator between {before} and {token.word}")
        before = _CALL if calls else "" if token.kind == "operator" or token.word in "(," else token.word
        depth += {"(": 1, ")": -1}.get(token.word, 0)
        deepest = max(deepest, depth)
        if depth < 0:
            break
    if depth:
        raise _unreadable(where, "its brackets do not match")
    operators = sum(token.kind == "operator" for token in tokens)
    if deepest > _DEEPEST or operators > _MOST_OPERATORS:
        most = f"at most {_MOST_OPERATORS} operators and {_DEEPEST} brackets in one another"
        raise _unreadable(where, f"it is too long; expected {most}")
    return f"({where})"


class _Token(NamedTuple):
    kind: str  # name, text, number, operator or mark
    word: str


_END, _CALL = _Token("mark", ")"), "a call"


def _tokens(where: str) -> list[_Token]:
    """The words and signs of a condition."""
    at, found = 0, list[_Token]()
    while at < len(where):
        if (match := _TOKEN.match(where, at)) is None:
            signs = "=, <>, <, >, +, -, *, /, %, AND, OR, NOT, IN, BETWEEN, LIKE, IS NULL"
            what = f"{where[at : at + 20]!r} is nothing that a condition has; expected {signs} and functions"
            raise _unreadable(where, f"{what} ({', '.join(FUNCTIONS)})")
        at, kind, word = match.end(), str(match.lastgroup), match[0]
        if kind != "space":
            found.append(_Token("operator" if word.lower() in _OPERATORS else kind, word))
    return found


def _unreadable(where: str, reason: str) -> UserError:
    shown = where if len(where) <= 300 else where[:300] + "…"
    return UserError(f"the condition {shown!r} cannot be read: {reason}")


def rows_where(table: lance.LanceDataset, where: str, seconds: float = math.inf) -> npt.NDArray[np.int64]:
    """The rows of a table for which a condition holds, ascending. UserError where it takes more ``seconds``."""
    began = time.monotonic()
    every = table.to_table(columns=[], with_row_address=True, scan_in_order=True)["_rowaddr"]
    chosen, parts = [np.empty(0, np.uint64)], table.get_fragments()
    for start in range(0, len(parts), _AT_A_TIME):
        some = parts[start : start + _AT_A_TIME]
        scan = table.scanner(
            columns=[], with_row_address=True, filter=where, fragments=some, batch_size=_BATCH
        )
        chosen.append(scan.to_table()["_rowaddr"].to_numpy())
        if time.monotonic() - began > seconds:
            raise UserError(f"the condition takes longer than {seconds:.0f} s; expected a shorter one")
    return np.flatnonzero(np.isin(every.to_numpy(), np.concatenate(chosen))).astype(np.int64)


def asked_rows(
    table: lance.LanceDataset, conditions: Sequence[str], where: str | None, path: PurePath | str
) -> npt.NDArray[np.int64]:
    """The rows for which all ``conditions`` hold, of which a user gave ``where``. UserError says what is wrong."""
    try:
        return rows_where(table, " AND ".join(conditions), math.inf if where is None else SECONDS)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise fault(where or "", error, path, nameable(table.schema)) from None


def fault(where: str, error: Exception, path: PurePath | str, columns: Sequence[str]) -> UserError:
    """What to say where Lance could not read ``where``: the column that there is not, or its own reason."""
    said = of_lance(error)
    if said.startswith("cannot "):  # not the condition, but the table's files
        return UserError(said)
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
    return _unreadable(where, reason[:200])


def nameable(schema: pa.Schema) -> list[str]:
    """The columns that a condition may name: words and numbers, not pictures and what was derived."""
    return [field.name for field in schema if str(field.type) in _NAMEABLE]


def _after_an_operator(where: str, word: str) -> bool:
    return (
        re.search(rf"(=|<|>|\blike\b|\bin\b\s*\().*?\b{re.escape(word)}\b", where, re.IGNORECASE) is not None
    )
