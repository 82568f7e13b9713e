"""A user's own folder, from import to pictures, through the commands that the README shows, in real processes."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from carrara.dataset.dataset import Dataset
from carrara.generation.png import read_recipe
from carrara.training.metrics_log import read_metrics
from conftest import Command, recipe_file, small_autoencoder, small_diffusion, write_pictures


class Journey:
    """A folder in which the commands have been run, and what they said."""

    def __init__(self, folder: Path, *, captions: bool) -> None:
        self.folder, self.carrara = folder, Command(folder)
        write_pictures(folder / "mine", captions=captions)
        (folder / "mine" / "cut.png").write_bytes((folder / "mine" / "red-disc-0.png").read_bytes()[:60])
        (folder / "mine" / "notes.jpg").write_text("this is no picture")
        recipe_file(small_autoencoder(), folder / "first.toml")
        recipe_file(small_diffusion(), folder / "second.toml")
        self.data = self.carrara("data", "import", "mine", "data", "--licence", "CC0-1.0")
        trained = len(Dataset.open(folder / "data").indices("train"))
        self.few = f"note: {trained} pictures are few: a model will memorize rather than learn\n"
        self.first = self.carrara("train", "first.toml", "data", "--out", "runs/a", "--budget", "20steps")
        self.second = self.carrara(
            "train",
            "second.toml",
            "data",
            "--autoencoder",
            "runs/a",
            "--out",
            "runs/m",
            "--budget",
            "20steps",
        )


def journey(folder: Path, *, captions: bool) -> Iterator[Journey]:
    made = Journey(folder, captions=captions)
    for finished in (made.data, made.first, made.second):
        assert finished.status == 0, finished.err
    yield made
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    yield from journey(tmp_path_factory.mktemp("captioned"), captions=True)


@pytest.fixture(scope="module")
def wordless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    yield from journey(tmp_path_factory.mktemp("wordless"), captions=False)


def test_the_import_counts_and_lists_what_it_skipped(captioned: Journey) -> None:
    assert "24 pictures added" in captioned.data.out
    assert captioned.data.err == ""
    assert "\n24 pictures are few: a model will memorize rather than learn\n" in captioned.data.out
    assert captioned.few in captioned.first.out
    lines = (captioned.folder / "data" / "rejected.jsonl").read_text().splitlines()
    rejected = {json.loads(line)["file"]: json.loads(line)["reason"] for line in lines}
    assert rejected.keys() == {"cut.png", "notes.jpg"}
    assert all(rejected.values())
    assert re.search(r"2\b.*(skipped|rejected)|(skipped|rejected).*\b2", captioned.data.out)


def test_training_says_what_comes_next(captioned: Journey) -> None:
    assert re.search(r"\d+\.\d\d dB PSNR on \d+ held-out pictures", captioned.first.out)
    assert "next: carrara train text_ldm data --autoencoder runs/a --out RUN" in captioned.first.out
    assert 'next: carrara sample runs/m "a prompt" --out pictures' in captioned.second.out
    assert captioned.first.err == captioned.second.err == ""
    steps = [line["step"] for line in read_metrics(captioned.folder / "runs" / "m") if "lr" in line]
    assert steps == [10, 20]
    assert list((captioned.folder / "runs" / "m" / "events").iterdir())


def test_the_same_commands_again_do_nothing(captioned: Journey) -> None:
    kept = {f: f.stat().st_mtime_ns for f in (captioned.folder / "runs").rglob("*.safetensors")}
    again = captioned.carrara("train", "first.toml", "data", "--out", "runs/a", "--budget", "20steps")
    assert again.status == 0, again.err
    assert "nothing to do: runs/a is trained already" in again.out
    assert {f: f.stat().st_mtime_ns for f in (captioned.folder / "runs").rglob("*.safetensors")} == kept
    other = captioned.carrara("train", "first.toml", "data", "--out", "runs/a", "--budget", "10steps")
    assert (
        "trained for 20 steps of a budget of 20steps already, and the budget is now 10steps" in other.refusal
    )


def test_the_same_sample_command_gives_the_same_bytes(captioned: Journey) -> None:
    def sample(out: str, *more: str) -> dict[str, bytes]:
        finished = captioned.carrara(
            "sample", "runs/m", "red disc", "--seed", 7, "--count", 3, "--steps", 4, "--out", out, *more
        )
        assert (finished.status, finished.err) == (0, captioned.few)
        made = {f.name: f.read_bytes() for f in sorted((captioned.folder / out).iterdir())}
        assert finished.out.splitlines()[-3:] == [f"{out}/{name}" for name in made]
        return made

    first = sample("p1")
    assert [re.sub(r"_[0-9a-f]+\.png", "", name) for name in first] == [f"red-disc_7_{k}" for k in range(3)]
    assert sample("p2") == first
    assert len(set(first.values())) == 3
    assert sample("p3", "--guidance", "5") != first
    (last,) = (captioned.folder / "p1").glob("red-disc_7_2*.png")
    recipe = read_recipe(last)
    made = {"caption": "red disc", "seed": 7, "number": 2, "steps": 4, "sampler": "dpmpp_2m"}
    assert recipe.items() >= made.items()
    with Image.open(last) as image:
        assert (image.size, image.mode) == ((16, 16), "RGB")


def test_other_settings_never_overwrite_a_picture(captioned: Journey) -> None:
    for steps in (2, 3, 2):
        captioned.carrara("sample", "runs/m", "bar", "--count", 1, "--steps", steps, "--out", "kept")
    assert len(list((captioned.folder / "kept").iterdir())) == 2


def test_a_picture_is_the_same_alone(captioned: Journey) -> None:
    """Number 0 of three and of one: pixels at most one level apart."""
    for count, out in ((1, "alone"), (3, "three")):
        captioned.carrara("sample", "runs/m", "red disc", "--count", count, "--steps", 4, "--out", out)
    a, b = (Image.open(*(captioned.folder / out).glob("red-disc_0_0*.png")) for out in ("alone", "three"))
    assert max(abs(x - y) for x, y in zip(a.tobytes(), b.tobytes(), strict=True)) <= 1


def test_a_prompt_in_a_script_that_no_caption_has(captioned: Journey) -> None:
    finished = captioned.carrara("sample", "runs/m", "круг", "--count", 1, "--steps", 2, "--out", "cyrillic")
    assert finished.status == 0
    notes = finished.err.splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert any("Cyrillic" in note for note in notes)
    assert len(list((captioned.folder / "cyrillic").glob("*.png"))) == 1


def test_a_prompt_of_signs_alone_and_one_beyond_the_window(captioned: Journey) -> None:
    finished = captioned.carrara("sample", "runs/m", "🍎!?", "--count", 1, "--steps", 2, "--out", "signs")
    assert finished.status == 0, finished.err
    (made,) = (captioned.folder / "signs").iterdir()
    assert made.name.startswith("picture_0_0")
    long = captioned.carrara(
        "sample", "runs/m", "red disc " * 200, "--count", 1, "--steps", 2, "--out", "long"
    )
    assert long.status == 0
    assert "beyond the model's window" in long.err


def test_without_captions_it_trains_and_says_so(wordless: Journey) -> None:
    assert "caption" in wordless.data.out
    assert "unconditional" in wordless.second.out
    free = wordless.carrara("sample", "runs/m", "--count", 2, "--steps", 3, "--out", "free")
    assert (free.status, free.err) == (0, wordless.few)
    assert len(list((wordless.folder / "free").glob("*.png"))) == 2
    prompted = wordless.carrara("sample", "runs/m", "red disc", "--count", 2, "--steps", 3, "--out", "asked")
    assert prompted.status == 0
    note = "note: this model was trained without captions; the prompt is not used\n"
    assert prompted.err == note + wordless.few
    free_pixels, asked = (
        [Image.open(f).tobytes() for f in sorted((wordless.folder / out).iterdir())]
        for out in ("free", "asked")
    )
    assert free_pixels == asked
    assert free_pixels[0] != free_pixels[1]
