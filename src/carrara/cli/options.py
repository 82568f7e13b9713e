"""Options of a command out of a model: each field is a flag with its sentence, default, bounds and choices."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import AfterValidator, Field, ValidationError
from pydantic.fields import FieldInfo

from carrara.config import Config, plain
from carrara.errors import UserError
from carrara.files import check_writable, read_bytes


def writable(path: Path | None) -> Path | None:
    """Of an option that says where results go: UserError, before any work, where nothing can be written there."""
    if path is not None and not str(path).startswith("s3:/"):
        check_writable(path)
    return path


# Fields and arguments of several commands.
Destination = Annotated[Path, AfterValidator(writable)]  # where results go
Page = Annotated[
    Destination | None, Field(description="HTML page to write; by default, beside the data set.")
]
Json = Annotated[bool, Field(description="Print the result as JSON.", json_schema_extra={"flag": "--json"})]
DryRun = Annotated[bool, Field(description="Only say what would be done.")]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1, description="Seed: the same one gives the same result.")]


DatasetFolder = Annotated[Path, typer.Argument(help="A data set made by `carrara data import`.")]
NewFolder = Annotated[Path, typer.Argument(help="The folder to make.", callback=writable)]
ModelFolder = Annotated[Path, typer.Argument(help="A model folder, or the run that made it.")]
AutoencoderFolder = Annotated[Path, typer.Argument(help="An autoencoder's folder, or the run that made it.")]
RecipeName = Annotated[str, typer.Argument(help="A recipe's name (see `carrara recipe`) or a TOML file.")]
RunFolder = Annotated[Path, typer.Argument(help="A run's folder, finished or not.")]


class Work(Config):
    """Where the work of a command is done."""

    engine: str = Field(
        default="local",
        description="Where the work is done: local (this process) or ray (workers; RAY_ADDRESS names a cluster).",
    )
    workers: int | None = Field(
        default=None, ge=1, description="Ray only: number of workers; by default one per processor."
    )


class RecipeChanges(Config):
    """What a training is given beside its recipe."""

    autoencoder: Path | None = Field(
        None, description="Autoencoder for diffusion in latents: a model folder, or the run that made it."
    )
    budget: str | None = Field(
        None,
        description="How long to train: 90s, 10m, 2h, 4000steps or 20epochs; by default the recipe's (see `carrara "
        "recipe NAME`).",
    )
    change: tuple[str, ...] = Field(
        (),
        description="Change a value of the recipe, e.g. train.batch=16.",
        json_schema_extra={"flag": "--set"},
    )

    def changes(self) -> list[str]:
        """Those of the recipe's values, the budget among them."""
        return [*self.change, *([f'train.budget="{self.budget}"'] if self.budget is not None else [])]


def options(*models: type[Config]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Replaces each parameter of a command that is annotated with one of ``models`` by the fields of the model.

    A field becomes the flag that its name says, or ``json_schema_extra``: ``{"flag": "--skip -s"}``, ``{"argument":
    True}`` for a word without a flag, ``{"flag": None}`` for a field that is set elsewhere. A field of type bytes takes
    the name of a file. The command gets one validated instance a model; UserError names the flag at fault.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        replaced: dict[str, type[Config]] = {p.name: p.annotation for p in own if p.annotation in models}
        others = [p for p in own if p.name not in replaced]
        fields = [p for model in replaced.values() for p in _parameters(model)]
        signature = inspect.Signature(sorted([*others, *fields], key=lambda p: p.kind))

        @wraps(command)
        def run(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            chosen = {name: _chosen(model, given) for name, model in replaced.items()}
            return command(**{p.name: given[p.name] for p in others if p.name in given}, **chosen)

        run.__signature__ = signature  # type: ignore[attr-defined]
        return run

    return decorate


def _parameters(model: type[Config]) -> Iterator[inspect.Parameter]:
    """What typer makes a flag or an argument of, a field each."""
    for name, field in model.model_fields.items():
        if (flags := _flags(name, field)) is None:
            continue
        kind, choices = _kind(field.annotation)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        info: dict[str, Any] = {
            "help": (field.description or "").replace("[", "\\["),  # no markup
            "min": next((rule.ge for rule in field.metadata if hasattr(rule, "ge")), None),
            "max": next((rule.le for rule in field.metadata if hasattr(rule, "le")), None),
            "metavar": f"<{'|'.join(choices)}>" if choices else None,
        }
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY if flags else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            annotation=Annotated[kind, typer.Option(*flags, **info) if flags else typer.Argument(**info)],
            default=inspect.Parameter.empty if field.is_required() else (None if default == () else default),
        )


def _flags(name: str, field: FieldInfo) -> list[str] | None:
    """Those of a field; none for an argument, None for a field that no word of the command sets."""
    extra: Mapping[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    if extra.get("argument"):
        return []
    flag = extra.get("flag", f"--{name.replace('_', '-')}")
    return flag and str(flag).split()


def _kind(annotation: Any) -> tuple[Any, list[str]]:
    """The type that typer reads a field as, and its choices; what it knows no reading of is checked as text."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0])
    if origin is tuple:
        return list[_kind(parts[0])[0]], []  # type: ignore[misc]
    if origin in (Union, UnionType) and len(kinds := [part for part in parts if part is not NoneType]) == 1:
        kind, choices = _kind(kinds[0])
        return kind | None, choices
    if origin is Literal:
        return str, [str(part) for part in parts]
    if annotation is bytes:
        return Path, []
    return (annotation if annotation in (bool, int, float, Path) else str), []


def _chosen(model: type[Config], given: Mapping[str, Any]) -> Config:
    """The instance; UserError with the flag and what is wrong with it."""
    values = {name: given[name] for name in model.model_fields if given.get(name) is not None}
    for name, value in values.items():
        if bytes in (model.model_fields[name].annotation, *get_args(model.model_fields[name].annotation)):
            values[name] = read_bytes(value)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        if isinstance(cause := fault.get("ctx", {}).get("error"), UserError):
            raise cause from None
        name = str(fault["loc"][0]) if fault["loc"] else ""  # none: it is the values together
        flags = _flags(name, model.model_fields[name]) if name else []
        where = f"'{flags[0].partition('/')[0] if flags else name.upper()}': " if name else ""
        raise UserError(where + plain(fault)) from None
