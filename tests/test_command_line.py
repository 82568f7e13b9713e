"""The command line itself: version, help that is whole, and usage errors that say what is meant."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from carrara.cli.app import app
from carrara.version import __version__
from conftest import Here


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


ALL = dict(commands(get_command(app)))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_is_shown_whole(path: tuple[str, ...], here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that stands in brackets is taken for markup."""
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    shown = "".join("".join(here(*path, "-h").out.split()).split("│"))
    for parameter in ALL[path].params:
        sentence = "".join((parameter.help or "").replace("\\[", "[").split())
        assert sentence in shown, parameter.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("import x", "no command is called 'import'; did you mean 'data import'?"),
        ("serch x", "no command is called 'serch'; did you mean 'data search'?"),
        ("trian", "no command is called 'trian'; did you mean 'train'?"),
        ("data sampel", "no command is called 'data sampel'; did you mean 'sample'?"),
        ("show revers", "no command is called 'show revers'; did you mean 'show reverse'?"),
        ("quux", "no command is called 'quux'"),
        ("sample m --promt x", "no option is called --promt; did you mean the argument PROMPT, given without --?"),
        ("sample m --stepps 3", "no option is called --stepps; did you mean --steps?"),
        ("sample m --quux 3", "no option is called --quux"),
        ("sample m a dress", "put what has spaces in quotes"),
        ("sample m --count x", "'--count': expected a whole number, got 'x'"),
        ("sample m --count 0", "'--count': expected at least 1, got '0'"),
        ("data import a b --held-out 2", "'--held-out': expected at most 0.9, got '2'"),
    ],
)  # fmt: skip
def test_what_is_meant(here: Here, arguments: str, message: str) -> None:
    assert message in here(*arguments.split()).refusal


def test_version(here: Here) -> None:
    assert here("--version").out == f"carrara {__version__}\n"


def test_as_a_module_and_without_torch() -> None:
    """A wrong recipe name is answered at once."""
    code = (
        "import sys; sys.argv = ['carrara', 'train', 'kl_autoencodr', 'x', '--out', 'y']\n"
        "import runpy\n"
        "try: runpy.run_module('carrara', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 False\n"
    assert "did you mean 'kl_autoencoder'?" in done.stderr
