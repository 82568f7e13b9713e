"""Frozen, strict configuration models; TOML in and out; errors that name the nearest right spelling."""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import re
import tomllib
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, cast, get_args

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from carrara.errors import UserError, nearest

MOST_INT, MOST_FLOAT = 2**24, 1e12  # of a field that states no upper bound of its own


class Config(BaseModel):
    """A frozen model that refuses unknown keys and impossible numbers; a sentence describes each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if any(hasattr(rule, "le") or hasattr(rule, "lt") for rule in field.metadata):
                continue
            for number in value if isinstance(value, tuple) else [value]:
                most = MOST_FLOAT if isinstance(number, float) else MOST_INT
                if isinstance(number, int | float) and abs(number) > most:
                    raise ValueError(f"{name} is {number:g}; expected at most {most:g}")
        return self


C = TypeVar("C", bound=Config)


def check_memory(weights: float) -> None:
    """ValueError where a network of at least so many weights is larger than the memory of this machine."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # as on Windows
        return
    if 4 * weights > memory:
        raise ValueError(
            f"a network of {weights:.1e} weights or more is larger than this machine's memory of {memory / 1e9:.0f} GB"
        )


def kinds(room: str) -> list[str]:
    """The components of a room (``"denoisers"``): its modules are its registry."""
    package = importlib.import_module(f"carrara.{room}")
    modules = [
        importlib.import_module(f"{package.__name__}.{m.name}")
        for m in pkgutil.iter_modules(package.__path__)
    ]
    # A module that only imports the name Config (what components share) is none.
    own = [m for m in modules if getattr(getattr(m, "Config", None), "__module__", "") == m.__name__]
    return sorted(m.__name__.rpartition(".")[2] for m in own)


def component(room: str, kind: str) -> Any:
    """The module of a component; UserError with the nearest name where there is none."""
    if kind not in (known := kinds(room)):
        raise UserError(f"no {room.rstrip('s')} is called {kind!r}{nearest(kind, known)}")
    return importlib.import_module(f"carrara.{room}.{kind}")


def Component(room: str) -> Any:
    """The field type "any component of this room", chosen by its ``kind`` key."""

    def choose(value: Any) -> Any:
        if isinstance(value, Config):
            return value
        if not isinstance(value, dict) or "kind" not in value:
            raise ValueError(f"expected a table with a 'kind' (known: {', '.join(kinds(room))})")
        if value["kind"] not in (known := kinds(room)):
            raise ValueError(f"unknown kind {value['kind']!r}{nearest(str(value['kind']), known)}")
        model = component(room, value["kind"]).Config
        try:
            return model.model_validate(value)
        except ValidationError as error:
            raise ValueError(_first_fault(model, value, error)) from None

    return Annotated[SerializeAsAny[Config], BeforeValidator(choose)]


def OneOf(what: str, table: Container[str]) -> Any:
    """The field type "a name in this table"; another name is answered with the nearest."""

    def check(name: str) -> str:
        if name not in table:
            raise ValueError(f"no {what} is called {name!r}{nearest(name, cast(Iterable[str], table))}")
        return name

    return Annotated[str, AfterValidator(check)]


def parse(model: type[C], values: dict[str, Any], *, where: str) -> C:
    """Validates; a failure becomes one UserError line that names the key, the fault and the nearest key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_fault(model, values, error)}") from None


def _first_fault(model: type[Config], values: dict[str, Any], error: ValidationError) -> str:
    fault = error.errors()[0]
    path = [str(p) for p in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{'.'.join(path)}'{nearest(path[-1], _keys_beside(model, values, path[:-1]))}"
    where = f"'{'.'.join(path)}': " if path else ""
    if fault["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
        return f"{where}{fault['msg']}{_meant(str(fault['input']), choices)}"
    return where + fault["msg"].removeprefix("Value error, ")


def _meant(given: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _keys_beside(model: type[Config], values: dict[str, Any], path: list[str]) -> list[str]:
    """The keys that the table at ``path`` may hold, found by walking the model along it."""
    current: Any = model
    for step in path:
        if not (isinstance(current, type) and issubclass(current, Config)):
            return []
        field = current.model_fields.get(step)
        values = values.get(step, {}) if isinstance(values, dict) else {}
        current = field.annotation if field else None
        current = next((a for a in get_args(current) if a is not type(None)), current)  # of "X | None", X
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, Config) else []


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file; UserError with the line where it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def to_toml(config: Config) -> str:
    """The resolved configuration as TOML; None is written by absence."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
