"""Options: every one is declared once, with one whole sentence, and what is wrong with a value is said in one line."""

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from pydantic import Field, model_validator
from typer.main import get_command

from carrara.cli import app as command_line
from carrara.cli.options import Destination, options
from carrara.config import Config, OneOf
from conftest import Here


def parameters(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every option and argument of every command, with the command's name."""
    for name, command in getattr(group, "commands", {}).items():
        yield from parameters(command, f"{path} {name}")
    yield from ((path, parameter) for parameter in group.params)


ALL = list(parameters(get_command(command_line.app)))
# Flags of which each command makes something of its own.
OWN = {
    "--autoencoder", "--budget", "--by", "--count", "--format", "--into", "--licence", "--out", "--picture",
    "--precision", "--seconds", "--seed", "--set", "--sheet", "--size", "--steps", "--sampler", "--grid",
    "--guidance", "--version", "--with", "--within",
}  # fmt: skip


def test_help_is_one_whole_sentence() -> None:
    for path, one in ALL:
        sentence = (one.help or "").replace("e.g. ", "")
        assert sentence.endswith("."), (path, one.name)
        assert not re.search(r"[.!?]\s", sentence), (path, sentence)
        assert sentence[0].isupper(), (path, sentence)


def test_an_option_says_the_same_everywhere() -> None:
    """The sentence and the bounds of a flag agree in all commands, and of a sentence in all flags."""
    flags, sentences = defaultdict(set), defaultdict(set)
    for _, one in ALL:
        if one.param_type_name == "option":
            info = one.type_descriptor.parameter_info
            flags[one.opts[0]].add((one.help, info.min, info.max))
            sentences[one.help].add((one.opts[0], info.min, info.max, str(one.default)))
    assert {flag for flag, ways in flags.items() if len(ways) > 1} == OWN
    assert {sentence: ways for sentence, ways in sentences.items() if len(ways) > 1} == {}


def test_no_sentence_is_written_twice() -> None:
    root = Path(command_line.__file__).parent.parent
    files = [*root.glob("cli/*.py")]
    files += [root / "importing/options.py", root / "search/query.py", root / "generation/options.py"]
    calls = [
        node for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
    ]
    words = [word.value for call in calls for word in call.keywords if word.arg in ("help", "description")]
    times = Counter(word.value for word in words if isinstance(word, ast.Constant))
    assert [sentence for sentence, count in times.items() if count > 1] == []
    assert len(times) > 100


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, carrara.cli.app; print({'torch', 'numpy', 'PIL', 'pyarrow', 'lance'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


class Small(Config):
    """One field of each sort."""

    words: str = Field("", description="A word [in brackets].", json_schema_extra={"argument": True})
    out: Destination | None = Field(None, description="A place.")
    share: float = Field(0.05, ge=0, le=0.9, description="A share.")
    by: Literal["hash", "features"] = Field("hash", description="A choice.")
    sampler: OneOf("sampler", ["ddim", "heun"]) = Field("ddim", description="A name.")  # type: ignore[valid-type]
    changes: tuple[str, ...] = Field((), description="Many.", json_schema_extra={"flag": "--set -s"})
    picture: bytes | None = Field(None, description="A file.")
    inner: bool = Field(False, description="Not on the command line.", json_schema_extra={"flag": None})
    page: bool = Field(True, description="On or off.", json_schema_extra={"flag": "--open/--no-open"})
    dry_run: bool = Field(False, description="A flag.")

    @model_validator(mode="after")
    def _one_of_them(self) -> "Small":
        if self.dry_run and self.changes:
            raise ValueError("--dry-run changes nothing: omit --set")
        return self


@pytest.fixture
def small(here: Here, monkeypatch: pytest.MonkeyPatch) -> list[Small]:
    """What a command with those options was given, as often as it ran."""
    given: list[Small] = []
    app = typer.Typer()
    app.callback()(lambda: None)

    @app.command()
    @options(Small)
    def small(count: int, chosen: Small) -> None:
        given.append(chosen)

    monkeypatch.setattr(command_line, "app", app)
    return given


def test_fields_become_one_instance(here: Here, small: list[Small], tmp_path: Path) -> None:
    file = tmp_path / "picture"
    file.write_bytes(b"bytes")
    here("small", "3")
    here("small", "3", "word", "--share", "0.5", "--by", "features", "-s", "a", "--set", "b", "--no-open",
         "--picture", file)  # fmt: skip
    assert small[0] == Small()
    assert small[1] == Small(
        words="word", share=0.5, by="features", changes=("a", "b"), page=False, picture=b"bytes"
    )


def test_help_says_what_the_model_says(
    here: Here, small: list[Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "120")
    shown = " ".join(here("small", "--help").out.replace("│", " ").split())
    for name, field in Small.model_fields.items():
        assert (field.description in shown) == (name != "inner")
    for words in ("<hash|features>", "[0<=x<=0.9]", "[default: 0.05]", "--set -s", "--open --no-open"):
        assert words in shown
    assert "--no-dry-run" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--share 2", "'--share': expected at most 0.9, got '2'"),
        ("--share nan", "'--share': expected at most 0.9, got 'nan'"),
        ("--share some", "'--share': expected a number, got 'some'"),
        ("--by hsh", "'--by': expected 'hash' or 'features', got 'hsh'; did you mean 'hash'?"),
        ("--sampler hen", "'--sampler': no sampler is called 'hen'; did you mean 'heun'?"),
        ("--dry-run --set a", "--dry-run changes nothing: omit --set"),
        ("--out /proc/none/here", "cannot use /proc/none/here: No such file or directory"),
        ("--picture /none", "cannot read /none: No such file or directory"),
        ("--shar 0.1", "no option is called --shar; did you mean --share?"),
        ("--inner", "no option is called --inner"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    here: Here, small: list[Small], arguments: str, message: str
) -> None:
    assert message in here("small", "3", *arguments.split()).refusal
    assert not small
