"""The command line: one function a command; what a command needs is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from carrara.cli_average import average
from carrara.cli_data import data
from carrara.cli_doctor import doctor
from carrara.cli_exchange import adopt, export
from carrara.cli_inspect import app as inspect
from carrara.cli_plan import plan
from carrara.cli_reconstruct import reconstruct
from carrara.cli_sample import sample
from carrara.cli_show import show
from carrara.cli_train import train
from carrara.console import Interrupted, console, fail
from carrara.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, measure and use your own latent diffusion model, from a folder of captioned pictures.",
)
app.add_typer(data, name="data")
app.add_typer(show, name="show")
app.add_typer(inspect, name="inspect")
app.command()(train)
app.command()(sample)


@app.command("recipe")
def show_recipe(
    name: Annotated[str, typer.Argument(help="A recipe; without it they are listed.")] = "",
) -> None:
    """List the recipes, or print one as TOML to change and train with."""
    from carrara.config import to_toml
    from carrara.recipes.catalogue import named, recipes

    if name:
        typer.echo(to_toml(named(name)), nl=False)
        return
    for known, sentence in recipes().items():
        console.print(f"{known:16} {sentence}", soft_wrap=True)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/quickstart"),
    budget: Annotated[
        str, typer.Option(help="How long it may train: 3m, 30m, 2h, or 500steps a stage.")
    ] = "12m",
    subset: Annotated[
        str, typer.Option("--set", help="default (food, animals, smileys), all, or categories.")
    ] = "default",
) -> None:
    """Make a text-to-image model from pictures that come with pip, and a page that shows what it can do."""
    from carrara.quickstart import quickstart as run

    run(out, budget, subset)


app.command()(adopt)
app.command()(average)
app.command()(plan)
app.command()(doctor)
app.command()(export)
app.command()(reconstruct)


def main() -> None:
    """Runs a command; an error the user can mend is one line and exit status 2, Ctrl-C is 130."""
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer returns this for a Ctrl-C that it met
            fail("stopped; the same command again continues")
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        fail(str(error))
        sys.exit(2)
    except Interrupted as stop:
        fail(str(stop))
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command line itself
            if message := " ".join(error.format_message().split()):  # empty where the help was shown instead
                fail(message)
            sys.exit(2)
        raise
