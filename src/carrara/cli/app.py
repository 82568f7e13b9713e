"""The command line as an app: one function a command; what a command needs is imported when it runs."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field

from carrara.cli.data import data
from carrara.cli.doctor import doctor
from carrara.cli.models import adopt, export
from carrara.cli.models import app as inspect
from carrara.cli.options import Destination, options
from carrara.cli.plan import plan
from carrara.cli.sample import reconstruct, sample
from carrara.cli.samplers import samplers
from carrara.cli.show import show
from carrara.cli.train import average, train
from carrara.config import Config
from carrara.errors import likeliest, refusal
from carrara.files import current_folder
from carrara.importing.options import EmojiSet
from carrara.terminal import Interrupted, console, fail
from carrara.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# After Ctrl-C the same command goes on from there; any other begins again.
_CONTINUES = ("quickstart", "train", "data import", "data encode", "data caption", "data dedup")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"carrara {__version__}")
        raise typer.Exit


@app.callback()
def carrara(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
    unchecked: Annotated[
        bool,
        typer.Option("--unchecked", help="Open weights and checkpoints without comparing their hashes."),
    ] = False,
) -> None:
    """Train, measure and use your own latent diffusion model, from a folder of captioned pictures."""
    if unchecked:
        from carrara.model_folder import UNCHECKED

        os.environ[UNCHECKED] = "1"  # which processes that are started for it read too


app.add_typer(data, name="data")
app.add_typer(show, name="show")
app.add_typer(inspect, name="inspect")
app.command()(train)
app.command()(sample)
app.command()(samplers)


@app.command("recipe")
def show_recipe(
    name: Annotated[str, typer.Argument(help="Recipe to print; without a name, all are listed.")] = "",
) -> None:
    """List the recipes, or print one as TOML to change and train with."""
    from carrara.config import to_toml
    from carrara.recipes.catalogue import named, recipes

    if name:
        typer.echo(to_toml(named(name)), nl=False)
        return
    known = recipes()
    for one, sentence in known.items():
        console.print(f"{one:{max(map(len, known))}}  {sentence}", soft_wrap=True)


class Quickstart(Config):
    """What the quickstart makes, and in what time."""

    out: Destination = Field(
        Path("runs/quickstart"), description="Folder for the data, the models and the page."
    )
    budget: str = Field(
        "12m", description="Time for all of it, 3m, 30m or 2h, or for each stage 500steps or 20epochs."
    )
    subset: EmojiSet = "default"


@app.command()
@options(Quickstart)
def quickstart(chosen: Quickstart) -> None:
    """Make a text-to-image model from pictures that come with pip, and a page that shows what it can do."""
    from carrara.cli.quickstart import quickstart as run

    run(chosen.out, chosen.budget, chosen.subset)


app.command()(adopt)
app.command()(average)
app.command()(plan)
app.command()(doctor)
app.command()(export)
app.command()(reconstruct)


def main() -> None:
    """Runs a command; an error the user can mend is one line and exit status 2, Ctrl-C is 130."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
    sys.exit(_status())


def _status() -> int:
    """Runs a command and says in a line what went wrong; the status to exit with."""
    try:
        current_folder()  # first: without one torch ends the process as soon as it is imported
        code = app(standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # typer returns this for a Ctrl-C that it met
            continues = " ".join(sys.argv[1:]).startswith(_CONTINUES)
            fail("stopped; the same command again continues" if continues else "stopped")
        return code if isinstance(code, int) else 0
    except Interrupted as stop:
        fail(str(stop))
        return 130
    except BaseException as error:  # a panic in Rust is no Exception
        if hasattr(error, "format_message"):  # a usage error of the command line itself
            if message := _usage(error):  # empty where the help was shown instead
                fail(message)
            return 2
        if (line := refusal(error)) is None:
            raise
        if isinstance(error, OSError) and error.errno and error.filename is None and not _can_print():
            if isinstance(error, BrokenPipeError):  # its reader has read enough
                return 1
            line = f"cannot write standard output: {error.strerror}"
        fail(line)
        return 2


def _can_print() -> bool:
    """Whether standard output takes a line; otherwise what is still to come goes nowhere."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _usage(error: Any) -> str:
    """A usage error in one line, with what is probably meant."""
    from carrara.config import plain

    message = " ".join(error.format_message().split())
    if faults := getattr(error.__cause__, "errors", None):  # typer checks values with pydantic
        return f"{error.param.get_error_hint()}: {plain(faults()[0])}"
    if error.ctx is None:
        return message
    here = " ".join(part.info_name for part in _chain(error.ctx))
    if match := re.match(r"No such command '(.+?)'", message):
        meant = likeliest(match[1], _commands(error.ctx.find_root().command), here=here, between=" ")
        message = f"no command is called '{f'{here} {match[1]}'.strip()}'"
        return message + (f"; did you mean {' or '.join(map(repr, meant))}?" if meant else "")
    if option := getattr(error, "option_name", None):
        names = {name: name for p in error.ctx.command.params for name in p.opts if name.startswith("--")}
        arguments = [p for p in error.ctx.command.params if p.param_type_name == "argument"]
        names |= {f"--{p.name}": f"the argument {p.name.upper()}, given without --" for p in arguments}
        meant = [names[name] for name in likeliest(option, names)]
        return f"no option is called {option}" + (f"; did you mean {' or '.join(meant)}?" if meant else "")
    if match := re.match(r"Missing \w+ '(.+?)'", message):
        return f"{match[1]} is missing: {error.param.help}"
    if match := re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message):
        return f'too many words, from {match[1]!r} on; put what has spaces in quotes: "a red cap"'
    return message


def _chain(context: Any) -> list[Any]:
    """The contexts of a command within its groups, the program itself left out."""
    return [*_chain(context.parent), context] if context.parent else []


def _commands(group: Any, above: str = "") -> Iterator[str]:
    """Every command with its groups: "data import"."""
    for name, command in getattr(group, "commands", {}).items():
        yield above + name
        yield from _commands(command, f"{above}{name} ")
