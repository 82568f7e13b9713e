"""What each condition is given, by the condition's name: several may read one column and yet be given other values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from carrara.context import Context
from carrara.generation.model import Model, joined
from carrara.geometry import Size

Given = Mapping[str, Sequence[Any]]
"""By a condition's name its values, one a picture."""


@dataclass(frozen=True)
class Values:
    """For ``count`` pictures what is asked for, and what guidance leads away from."""

    count: int
    asked: Given
    free: Given

    @staticmethod
    def of(model: Model, rows: Sequence[Mapping[str, Any]]) -> Values:
        """From requests: each condition reads its column of the row, null where it is absent.

        Free of it, words become the row's "negative" ones; what was never left out in training stays, for the
        network knows no null.
        """
        asked: dict[str, list[Any]] = {}
        free: dict[str, list[Any]] = {}
        for name, encoder in model.conditions.items():
            asked[name] = [row.get(str(encoder.column)) for row in rows]
            if model.config.conditions[name].dropout == 0:
                free[name] = asked[name]
            else:
                text = encoder.form == "text"
                free[name] = [row.get("negative") if text else None for row in rows]
        return Values(len(rows), asked, free)

    def part(self, chosen: slice) -> Values:
        """Those of some pictures."""
        asked, free = (
            {name: list(values)[chosen] for name, values in given.items()}
            for given in (self.asked, self.free)
        )
        return Values(len(range(self.count)[chosen]), asked, free)

    def both(self) -> Given:
        """What is asked for and then what guidance leads away from."""
        return {name: [*values, *self.free[name]] for name, values in self.asked.items()}


def encoded(model: Model, given: Given, size: Size) -> Context:
    """The context of values, each different text encoded once (a prompt is asked for many times at once)."""
    context = Context()
    for name, encoder in model.conditions.items():
        values = list(given[name])
        alone = torch.nn.ModuleDict({name: encoder})
        if encoder.form != "text" or not all(value is None or isinstance(value, str) for value in values):
            context = context.join(joined(alone, {name: values}, size, model.device))
            continue
        texts = [value or None for value in values]  # the empty text is the null
        different = list(dict.fromkeys(texts))
        once = joined(alone, {name: different}, size, model.device)
        place = torch.tensor([different.index(text) for text in texts], device=model.device)
        context = context.join(Context(**{role: found[place] for role, found in once.roles().items()}))
    return context
