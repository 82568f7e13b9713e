"""Registries: tables of functions by name; an unknown name or option is answered with the nearest known one."""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from carrara.errors import UserError, nearest

P = ParamSpec("P")
R = TypeVar("R")
Option = bool | int | float | str
_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Table(dict[str, Callable[..., R]]):
    """Functions by name; ``what`` they are is said in the errors. Filled by the decorator ``add``.

    ``supplied`` are numbers that callers have anyway, so that they are no options.
    """

    def __init__(self, what: str, supplied: Collection[str] = ()) -> None:
        super().__init__()
        self.what, self.supplied = what, supplied

    def __missing__(self, name: str) -> Callable[..., R]:
        raise UserError(f"no {self.what} is called {name!r}{nearest(name, self)}")

    def add(self, function: Callable[P, R]) -> Callable[P, R]:
        """Enters a function under its own name; a keyword that it does not take is then a UserError."""
        name = function.__name__
        known = inspect.signature(function).parameters

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for key in kwargs:
                if key not in known:
                    raise self._no_option(name, key)
            return function(*args, **kwargs)

        self[name] = checked
        return checked

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """What a user may set of a function, in order: its parameters that are numbers, switches or text."""
        known = inspect.signature(self[name], eval_str=True).parameters
        return {key: p for key, p in known.items() if _kind(p) and key not in self.supplied}

    def read(self, text: str) -> tuple[str, dict[str, Option]]:
        """``"apg:4,limit=2"`` to its name and options; values without a name are the options in that place.

        UserError names the nearest where there is no such name or option, and what is expected of a value.
        """
        name, _, rest = (part.strip() for part in text.partition(":"))
        known, found = self.options(name), dict[str, Option]()
        for place, given in enumerate(rest.split(",") if rest else []):
            key, sign, value = (part.strip() for part in given.partition("="))
            if not sign:
                if place >= len(known):
                    takes = f"takes {', '.join(known)}" if known else "has no options"
                    raise UserError(f"{self.what} {name!r} {takes}; {given.strip()!r} is too much")
                key, value = list(known)[place], key
            if key not in known:
                raise self._no_option(name, key)
            if key in found:
                raise UserError(f"{self.what} {name!r}: {key} is given twice")
            found[key] = self._value(name, known[key], value)
        return name, found

    def write(self, name: str, options: Mapping[str, Option]) -> str:
        """The text that `read` takes."""
        return ":".join(filter(None, [name, ",".join(f"{key}={value}" for key, value in options.items())]))

    def call(self, name: str, options: Mapping[str, Any], supplied: Mapping[str, Any]) -> R:
        """The function with these options and what it takes of ``supplied``; UserError where an option is missing."""
        for key, parameter in self.options(name).items():
            if parameter.default is parameter.empty and key not in options:
                raise UserError(f"{self.what} {name!r} needs {key}, for example {name}:{key}=2")
        taken = inspect.signature(self[name]).parameters
        return self[name](**options, **{key: value for key, value in supplied.items() if key in taken})

    def sentence(self, name: str) -> str:
        """What it does, from its first paragraph."""
        return " ".join((inspect.getdoc(self[name]) or "").split("\n\n")[0].replace("``", "").split())

    def _no_option(self, name: str, key: str) -> UserError:
        return UserError(f"{self.what} {name!r} has no option {key!r}{nearest(key, self.options(name))}")

    def _value(self, name: str, parameter: inspect.Parameter, text: str) -> Option:
        kind = _kind(parameter)
        if kind is bool and text in ("true", "false"):
            return text == "true"
        if kind is int and re.fullmatch(r"[-+]?[0-9]{1,9}", text):
            return int(text)
        if kind is str and text:
            return text
        try:
            if kind is float and not math.isnan(number := float(text)):
                return number
        except ValueError:
            pass
        raise UserError(
            f"{self.what} {name!r}: {parameter.name} is {text[:40]!r}; expected {_EXPECTED[kind or str]}"
        )


def _kind(parameter: inspect.Parameter) -> type[bool] | type[int] | type[float] | type[str] | None:
    """The simplest type among those that it takes; None where it takes none that a user could write."""
    union = typing.get_origin(parameter.annotation) in (types.UnionType, typing.Union)
    taken = typing.get_args(parameter.annotation) if union else (parameter.annotation,)
    return next((kind for kind in (bool, int, float, str) if kind in taken), None)
