"""Rows chosen by a condition, by chance, or evenly by a column, for a data set of their own."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from carrara.data.keep.neighbours import Index
from carrara.errors import UserError, nearest

if TYPE_CHECKING:
    from carrara.data.table import Dataset

_WHERE_IN_LANCE = re.compile(r"(, /\S+\.rs:\d+:\d+)+$")
_UNKNOWN = re.compile(r"No field named [\"']?(\w+)")


def choose(
    dataset: Dataset,
    where: str | None = None,
    *,
    sample: int | None = None,
    balance: str | None = None,
    at_most: int | None = None,
    seed: int = 0,
) -> Index:
    """Row numbers, ascending: where the SQL condition holds, then at most ``at_most`` of each value of the column
    ``balance`` (None: as many as the rarest has), then ``sample`` of them.

    What chance takes, the seed and the row number decide. UserError for a condition or a column that is none.
    """
    rows = dataset.indices(None, check(dataset, where)) if where is not None else dataset.indices(None)
    ranked = np.random.default_rng(seed).random(len(dataset))[rows]
    if balance is not None:
        if balance not in (known := words_of(dataset)):
            raise UserError(f"no column to balance is called {balance!r}{nearest(balance, known)}")
        values = dataset.take(rows, [balance])[balance]
        counts = Counter(value for value in values if value is not None)
        if not counts:
            raise UserError(f"no picture has a {balance} to balance by")
        most = at_most or min(counts.values())
        taken: Counter[str] = Counter()
        keep = []
        for k in np.argsort(ranked, kind="stable").tolist():
            if values[k] is not None and taken[values[k]] < most:
                taken[values[k]] += 1
                keep.append(k)
        keep = sorted(keep)
        rows, ranked = rows[keep], ranked[keep]
    if sample is not None and sample < len(rows):
        rows = np.sort(rows[np.argsort(ranked, kind="stable")[:sample]])
    return rows


def words_of(dataset: Dataset) -> list[str]:
    """The columns that a condition may name: words and numbers, not pictures and what was derived."""
    known = ("string", "large_string", "int32", "int64", "double", "float", "bool")
    return [field.name for field in dataset.table.schema if str(field.type) in known]


def check(dataset: Dataset, where: str) -> str:
    """The condition, if Lance can read it; UserError that names the nearest column, or says what is wrong."""
    if not where.strip():
        raise UserError("the condition is empty; expected something like \"width >= 256 AND label = 'cat'\"")
    try:
        dataset.table.scanner(columns=["id"], filter=where, limit=1).to_table()
    except (ValueError, OSError) as error:
        said = _WHERE_IN_LANCE.sub("", " ".join(str(error).split()))
    else:
        return where
    if named := _UNKNOWN.search(said):
        quotes = "; a text stands in single quotes" if _after_an_operator(where, named[1]) else ""
        near = nearest(named[1], words_of(dataset))
        raise UserError(
            f"the condition names a column {named[1]!r} that {dataset.path} does not have{quotes}{near}"
        )
    reason = said.rsplit("Invalid user input: ", 1)[-1]
    if parser := re.search(r"sql parser error: (.*)\)", reason):
        reason = parser[1]
    raise UserError(f"the condition {where!r} cannot be read: {reason[:200]}")


def _after_an_operator(where: str, word: str) -> bool:
    return (
        re.search(rf"(=|<|>|\blike\b|\bin\b\s*\().*?\b{re.escape(word)}\b", where, re.IGNORECASE) is not None
    )
