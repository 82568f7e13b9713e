"""`carrara sample`: prompts from a file, a sheet, a seed by chance, a device, and notes that other programs read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from carrara.conditions.text import known_words, unseen_note
from carrara.errors import UserError
from carrara.generation.model import WORDS, load_model
from carrara.generation.options import RequestOptions
from carrara.generation.png import parameters, read_recipe
from carrara.generation.prompt_file import read_prompts
from carrara.pages.picture_grid import contact_sheet
from carrara.training.condition_columns import reads_of
from carrara.training.passport import words_of
from conftest import Here, Trained

RECIPE: dict[str, Any] = {
    "steps": 20,
    "sampler": "euler_ancestral",
    "grid": "karras",
    "guidance": 7.0,
    "seed": 5,
    "number": 0,
    "model": "0123456789abcdef",
    "caption": "a red disc",
}


def test_prompts_of_a_file_are_the_same_pictures(here: Here, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes("\ufeffblue ring\r\n\r\nred disc\r\n".encode())
    given = ("--seed", 7, "--steps", 2, "--device", "cpu")
    alone = here("sample", trained.diffusion, "red disc", "--count", 2, *given, "--out", "alone")
    many = here("sample", trained.diffusion, "--prompts", "words.txt", "--sheet", *given, "--out", "many")
    assert (alone.status, many.status) == (0, 0), many.err
    first, *_ = sorted((tmp_path / "alone").glob("red-disc_7_0_*.png"))
    names = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert [name.split("_")[0] for name in names] == ["blue-ring", "red-disc", "sheet"]
    assert names[1] == first.name
    with Image.open(first) as one, Image.open(tmp_path / "many" / names[1]) as other:
        assert one.tobytes() == other.tobytes()
        assert one.info["parameters"] == other.info["parameters"]
        assert one.info["parameters"].startswith("red disc\nSteps: 2, Sampler: DPM++ 2M, ")
        assert f"Model: {trained.diffusion.name}, " in one.info["parameters"]
    assert read_recipe(tmp_path / "many" / names[2])["pictures"] == names[:2]

    lines = [{"caption_de": "red disc", "negative": "blue"}, {"caption": "red disc"}]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = here("sample", trained.diffusion, "--prompts", "lines.jsonl", *given, "--out", "rows")
    assert rows.status == 0
    assert first.name in [path.name for path in (tmp_path / "rows").iterdir()]
    against = next(p for p in (tmp_path / "rows").iterdir() if p.name != first.name)
    with Image.open(against) as image:
        assert image.info["parameters"].startswith("red disc\nNegative prompt: blue\nSteps: ")


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("p.txt", b"\xff\xfe", "line 2 is not UTF-8 text"),
        ("p.jsonl", b"a disc", "line 2: not JSON; expected for example"),
        ("p.jsonl", b"[" * 100_000, "line 2: not JSON"),
        ("p.jsonl", b"[1]", "line 2: expected columns by name"),
        ("p.jsonl", b'{"capton": "x"}', "line 2: no column is called 'capton'; did you mean 'caption'?"),
        ("p.jsonl", b'{"caption": ["x"]}', "line 2: 'caption' is [\"x\"]; expected text"),
        ("p.jsonl", b'{"caption": "x", "caption_de": "y"}', "line 2: it has caption and caption_de"),
        ("p.jsonl", b'{"depth": true}', "line 2: 'depth' is true; expected text"),
    ],
)
def test_a_line_that_cannot_be_read(name: str, line: bytes, words: str, tmp_path: Path) -> None:
    sound = b'{"caption": "a disc"}\n' if name.endswith("jsonl") else b"a disc\n"
    (tmp_path / name).write_bytes(sound + line + b"\n" + sound)
    with pytest.raises(UserError) as refused:
        read_prompts(tmp_path / name, RequestOptions(), ["depth"])
    assert f"{name}, {words}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_a_line_leaves_out_is_as_in_the_command(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"label": 3, "depth": "a.png", "boxes": [1]}\n{"negative": null}\n')
    usual = RequestOptions(negative="blur", label="cat")
    (_, first), (number, second) = read_prompts(tmp_path / "p.jsonl", usual, ["depth"])
    assert (first.label, first.negative, first.picture, first.boxes) == (
        "3",
        "blur",
        ("depth=a.png",),
        "[1]",
    )
    assert (number, second) == (2, usual)
    for file, words in (("no.txt", "cannot read"), (".", "cannot read"), ("empty.txt", "has no prompt")):
        (tmp_path / "empty.txt").write_text("\n \n")
        with pytest.raises(UserError, match=words):
            read_prompts(tmp_path / file, RequestOptions(), [])


def test_notes_for_other_programs() -> None:
    """As the web UI of Stable Diffusion writes and reads them: words, "Negative prompt:", "key: value" by commas."""
    assert parameters(RECIPE, (32, 64), "mine") == (
        "a red disc\nSteps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 64x32, "
        "Model hash: 0123456789, Model: mine, Version: Carrara 0.1.0"
    )
    text = parameters(RECIPE | {"negative": "x: y", "number": 3, "caption": ""}, (8, 8), "a, b")
    against, last = text.split("\n")
    assert against == "Negative prompt: x: y"
    pairs = dict(re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last))  # its own pattern
    assert (pairs["Model"], pairs["Picture number"], pairs["Size"]) == ('"a, b"', "3", "8x8")


def test_a_seed_by_chance_is_said(here: Here, trained: Trained, tmp_path: Path) -> None:
    given = ("sample", trained.diffusion, "red disc", "--count", 1, "--steps", 1, "--out", "p", "--seed")
    done = here(*given, "random")
    seed = int(done.err.split("the seed is ")[1].split()[0])
    (made,) = (tmp_path / "p").iterdir()
    assert read_recipe(made)["seed"] == seed
    assert here(*given, seed).out == done.out
    assert here(*given, "abc").refusal == (
        "--seed is 'abc'; expected a whole number from 0 to 2^63 - 1, or random"
    )
    assert "'seed': expected at least 0, got -1" in here(*given, -1).refusal


@pytest.mark.parametrize("device", ["tpu", "cpu:1", "meta", "cuda:99", ""])
def test_a_device_that_is_not_there(device: str, here: Here, trained: Trained, tmp_path: Path) -> None:
    refusal = here("sample", trained.diffusion, "x", "--device", device, "--out", "p").refusal
    assert refusal.startswith(f"this machine has no device {device!r}; it has cpu")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("x", "--size", ""), "cannot read the size ''"),
        (("x", "--size", "9" * 5000), "cannot read the size '99999"),
        (("x\udcff",), "holds bytes that are not UTF-8"),
        (("--prompts", "half.jsonl"), "half.jsonl, line 1: '\\ud800 x' is no text"),
        (("--prompts", "/dev/zero"), "/dev/zero is larger than 64 MB; expected a prompt per line"),
        (("x", "--prompts", "half.jsonl"), "a prompt and --prompts are both given"),
        (("x", "--count", 10**9), "100000"),
        (("x", "--label", "cat"), "no condition for --label"),
    ],
)
def test_requests_that_cannot_be(
    given: tuple[Any, ...], words: str, here: Here, trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "half.jsonl").write_text('{"caption": "\\ud800 x"}\n')
    assert words in here("sample", trained.diffusion, *given).refusal
    assert not (tmp_path / "pictures").exists()


def test_blanks_are_no_prompt_and_a_file_is_no_model(here: Here, trained: Trained, tmp_path: Path) -> None:
    blank = here("sample", trained.diffusion, "  ", "--count", 1, "--steps", 1)
    assert "without a prompt the pictures show anything" in blank.err
    (tmp_path / "file").write_text("x")
    assert here("sample", "file", "x").refusal == "file is a file; expected the folder of a model"


def test_words_of_no_caption_are_noted(here: Here, trained: Trained, tmp_path: Path) -> None:
    given = ("sample", trained.diffusion, "--count", 1, "--steps", 1, "--out", "p")
    assert "stand" not in here(*given, "Red disc!").err
    assert (
        "note: 'elephant' stands in no caption that this model was trained on"
        in here(*given, "red elephant").err
    )
    assert "note: negative prompt: 'fog' stands in no" in here(*given, "disc", "--negative", "fog").err
    model = load_model(trained.diffusion / "model")
    reads = reads_of(model.config, trained.dataset)
    there = words_of(model.conditions, reads, trained.dataset, None)
    assert there == {WORDS: model.passport[WORDS]}
    begun = cast(Any, SimpleNamespace(passport={WORDS: "elephant"}))
    assert "elephant" in words_of(model.conditions, reads, trained.dataset, begun)[WORDS].split()
    begun.passport = {}  # of a model that does not know its words nothing can be said
    assert words_of(model.conditions, reads, trained.dataset, begun) == {}
    model.passport = {key: value for key, value in model.passport.items() if key != WORDS}
    model.save(tmp_path / "older")
    assert "stands in no caption" not in here("sample", "older", "an elephant", *given[2:]).err


def test_words() -> None:
    known = known_words(["Ein roter Kreis", "红色的圆", "E\u0301clair"])
    assert known is not None
    assert unseen_note("ROTER kreis, éclair 色", known) == []
    assert unseen_note("象", known)[0].startswith("'象' stands in no caption")
    assert unseen_note(" ".join(f"w{n}" for n in range(9)), known)[0].startswith(
        "'w0', 'w1', 'w2', 'w3', 'w4' and 4 more words stand in no"
    )
    assert known_words(f"word{n}" for n in range(10_000)) is None


def test_a_sheet_is_bounded() -> None:
    large = contact_sheet([Image.new("RGB", (1024, 512), "red")] * 10, ["a very long prompt " * 30] * 10)
    assert large.width < 3000
    assert large.height < 800
    many = contact_sheet([Image.new("L", (8, 8))] * 150, ["红心"] * 150)
    assert max(many.size) < 9000
    one = contact_sheet([Image.new("RGBA", (16, 16), "blue")], ["x"])
    assert one.getpixel((one.width // 2, 40)) == (0, 0, 255)
