"""Frozen, strict configuration models; TOML in and out; errors that name the nearest right spelling."""

from __future__ import annotations

import copy
import difflib
import importlib
import os
import pkgutil
import re
import textwrap
import tomllib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, cast

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
from pydantic_core import ErrorDetails

from carrara.errors import UserError, likeliest, nearest, one_line

MOST_INT, MOST_FLOAT = 2**24, 1e12  # of a field that states no upper bound of its own


class Config(BaseModel):
    """A frozen model that refuses unknown keys and impossible numbers; a sentence describes each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
    elsewhere: ClassVar[Mapping[str, str]] = {}  # keys that are often looked for here: what to do instead

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
        return component(room, value["kind"]).Config.model_validate(value)  # _faults looks into its error

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
    """A key that does not exist before anything else, for it is often the cause of the rest."""
    faults = _faults(error)
    unknown = [fault["loc"] for fault in faults if fault["type"] == "extra_forbidden"]
    if unknown:
        return _unknown_key(model, values, unknown)
    path = ".".join(map(str, faults[0]["loc"]))
    if faults[0]["type"] == "missing":
        return f"'{path}' is missing"
    return (f"'{path}': " if path else "") + plain(faults[0])


def _faults(error: ValidationError, above: tuple[str | int, ...] = ()) -> list[ErrorDetails]:
    """All of them, each with its whole path; those of a component lie inside the error of its field."""
    found: list[ErrorDetails] = []
    for fault in error.errors():
        path, inner = (*above, *fault["loc"]), fault.get("ctx", {}).get("error")
        found += _faults(inner, path) if isinstance(inner, ValidationError) else [{**fault, "loc": path}]
    return found


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a table",
    "model": "a table",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_long": "at most {max_length} letters",
    "finite_number": "a finite number",
}


def plain(fault: Mapping[str, Any]) -> str:
    """What pydantic found at fault (an item of ``errors()``) in plain words: ``"expected at least 1, got 0"``."""
    kind, ctx = str(fault["type"]), fault.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        return str(ctx["error"])
    meant = ""
    if kind == "literal_error":
        meant = _meant(str(fault["input"]), re.findall(r"'([^']*)'", ctx["expected"]))
        expected = ctx["expected"]
    elif words := _EXPECTED.get(kind) or _EXPECTED.get(kind.partition("_")[0]):
        expected = words.format(
            **{k: int(v) if isinstance(v, float) and v == int(v) else v for k, v in ctx.items()}
        )
    else:
        expected = fault["msg"].removeprefix("Input should be ")
    return f"expected {expected}, got {textwrap.shorten(repr(fault['input']), 60, placeholder=' …')}{meant}"


def _meant(given: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, choices, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


_OTHER_NAMES = {  # what other trainers call it: what it is called here
    "batch_size": "batch",
    "epochs": "budget",
    "gradient_accumulation_steps": "accumulate",
    "gradient_checkpointing": "checkpointing",
    "image_size": "size",
    "learning_rate": "lr",
    "max_grad_norm": "clip",
    "max_steps": "budget",
    "resolution": "size",
    "steps": "budget",
    "warmup_steps": "warmup",
}


def _unknown_key(
    model: type[Config], values: dict[str, Any], unknown: Sequence[tuple[str | int, ...]]
) -> str:
    """With the key that is meant, in whichever table it stands; else with those that its own table may hold."""
    path = [str(step) for step in unknown[0]]
    words, key = f"unknown key '{'.'.join(path)}'", _OTHER_NAMES.get(path[-1], path[-1])
    if len(path) == 1 and key in model.elsewhere:
        return f"{words}: {model.elsewhere[key]}"
    rest = copy.deepcopy(values)
    for extra in unknown:
        table: Any = rest
        for step in extra[:-1]:
            table = table[step]
        del table[extra[-1]]
    try:
        known = list(_keys(model.model_validate(rest)))
    except ValidationError:  # another value is at fault too
        known = list({**dict.fromkeys(model.model_fields), **dict.fromkeys(_keys(rest))})
    here = ".".join(path[:-1])
    if meant := likeliest(key, known, here=here):
        return f"{words}; did you mean {' or '.join(map(repr, meant[:3]))}?"
    beside = sorted(last for table, _, last in (full.rpartition(".") for full in known) if table == here)
    return f"{words} (known: {', '.join(beside)})" if beside else words


def _keys(config: Config | Mapping[Any, Any], above: str = "") -> Iterator[str]:
    """Every key of it and of the tables in it, with its path: ``"train.batch"``."""
    for name, value in config.items() if isinstance(config, Mapping) else config:
        yield f"{above}{name}"
        if isinstance(value, Config | Mapping):
            yield from _keys(value, f"{above}{name}.")


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file; UserError with the line where it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def to_toml(config: Config) -> str:
    """The resolved configuration as TOML; None is written by absence."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
