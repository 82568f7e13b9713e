"""Registries: tables of functions by name; an unknown name or option is answered with the nearest known one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from carrara.errors import UserError, nearest

P = ParamSpec("P")
R = TypeVar("R")


class Table(dict[str, Callable[..., R]]):
    """Functions by name; ``what`` they are is said in the errors. Filled by the decorator ``add``."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __missing__(self, name: str) -> Callable[..., R]:
        raise UserError(f"no {self.what} is called {name!r}{nearest(name, self)}")

    def add(self, function: Callable[P, R]) -> Callable[P, R]:
        """Enters a function under its own name; a keyword that it does not take is then a UserError."""
        name = function.__name__
        known = inspect.signature(function).parameters
        options = [p.name for p in known.values() if p.kind is p.KEYWORD_ONLY]

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for key in kwargs:
                if key not in known:
                    raise UserError(f"{self.what} {name!r} has no option {key!r}{nearest(key, options)}")
            return function(*args, **kwargs)

        self[name] = checked
        return checked
