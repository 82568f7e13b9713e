"""`carrara quickstart` from its first line to the page, on a few emoji and with a handful of steps."""

import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

import carrara as library
from carrara.cli.quickstart import _left, _Timer
from carrara.dataset.dataset import Dataset
from carrara.generation.model import Model
from carrara.generation.png import read_recipe
from carrara.training.lr_and_budget import Budget
from conftest import Command

CHOICES = ["--budget", "6steps", "--set", "Activities"]


class Page(HTMLParser):
    """What a page asks for from elsewhere, its headings and its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.fetched += [values[name] or "" for name in ("src", "srcset", "data", "poster") if name in values]
        if tag in ("link", "image", "use"):
            self.fetched.append(values.get("href") or "")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "h2":
            self.headings.append(data)
            self.tags.append("")


def test_a_kill_takes_no_time_from_stage_one(tmp_path: Path) -> None:
    """What its checkpoints counted is counted against the budget, although the step never ended."""
    file = tmp_path / "steps.json"
    file.write_text('{"data": 3.0}')
    timer = _Timer(file, time.monotonic())
    with timer.step("autoencoder"):
        pass
    for told in (50.0, 50.0, 40.0):
        timer.at_least("autoencoder", told)
        assert timer.before_stage_two == pytest.approx(53, abs=1)
    with timer.step("what can be learned"):
        pass
    again = _Timer(file, time.monotonic())
    again.at_least("autoencoder", 50.0)
    assert again.before_stage_two == pytest.approx(53, abs=1)
    assert _left(Budget(seconds=100), again) == pytest.approx(100 - 53 - 6, abs=1)


@pytest.mark.slow
def test_from_nothing_to_the_page_and_again(carrara: Command, tmp_path: Path) -> None:
    first = carrara("quickstart", "--out", "q", *CHOICES)
    assert (first.status, first.err) == (0, "")
    out = tmp_path / "q"

    data = Dataset.open(out / "data")
    assert 20 < len(data) < 200
    assert {"en", "de", "zh"} <= data.captions.keys()
    groups = {
        split: set(data.take(data.indices(split), ["group"])["group"]) for split in ("train", "held_out")
    }
    assert groups["held_out"]
    assert not groups["train"] & groups["held_out"]

    model = library.load(out / "model")
    assert isinstance(model, Model)
    assert model.passport["licences"] == ["CC-BY-4.0"]
    assert model.passport["steps"] == 6

    pictures = sorted((out / "pictures").glob("[0-9]*.png"))
    assert len(pictures) == 12
    assert len({f.read_bytes() for f in pictures}) == 12
    assert read_recipe(pictures[0])["caption"]
    assert (out / "pictures" / "grid.png").is_file()
    assert (out / "pictures" / "film.png").is_file()

    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.fetched, "there are pictures"
    assert all(source.startswith("data:image/") for source in page.fetched)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"url\(\s*['\"]?(?!data:)|@import", text)
    assert {"Pictures", "From noise to picture", "Time", "The data", "Settings"} <= set(page.headings)
    assert "CC-BY 4.0" in text
    assert text.count("<img") >= 14
    assert re.search(r"\d+\.\d\d dB PSNR on \d+ held-out", text)

    *_, one, two, three = first.out.splitlines()
    assert all(line.startswith("  carrara ") for line in (one, two, three))
    assert str(Path("q") / "model") in one

    kept = {f: f.read_bytes() for f in out.rglob("*.safetensors")}
    times = {f: f.stat().st_mtime_ns for f in out.rglob("*.safetensors")}
    again = carrara("quickstart", "--out", "q", *CHOICES)
    assert (again.status, again.err) == (0, "")
    assert again.out.count("is trained already") == 1
    assert {f: f.read_bytes() for f in out.rglob("*.safetensors")} == kept
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*.safetensors")} == times
    assert [f.read_bytes() for f in sorted((out / "pictures").glob("[0-9]*.png"))] == [
        f.read_bytes() for f in pictures
    ]

    smaller = carrara("quickstart", "--out", "q", "--budget", "5steps", "--set", "Activities")
    assert "was begun with --budget 6steps --set Activities" in smaller.refusal
    longer = carrara("quickstart", "--out", "q", "--budget", "9steps", "--set", "Activities")
    assert longer.status == 0, longer.err
    trained = library.load(out / "model")
    assert trained.passport["steps"] == 9
    assert trained.passport["data"] == model.passport["data"], "the same concepts"

    next_one = carrara(
        *one.split('"')[0].split()[1:], "red heart", "--steps", 2, "--count", 1, "--out", "next"
    )
    assert next_one.status == 0, next_one.err
    assert len(list((tmp_path / "next").glob("*.png"))) == 1


@pytest.mark.slow
def test_killed_in_the_middle_it_continues(carrara: Command, tmp_path: Path) -> None:
    """kill -9 in the data, in stage one and in stage two: the model is that of an undisturbed start."""
    import signal

    whole = carrara("quickstart", "--out", "whole", *CHOICES)
    assert whole.status == 0, whole.err
    killed = tmp_path / "killed"
    for sign in (
        "data",
        "autoencoder/metrics.jsonl",
        "autoencoder/model/model.toml",
        "diffusion/recipe.toml",
    ):
        process = carrara.start("quickstart", "--out", "killed", *CHOICES)
        while process.poll() is None and not (killed / sign).exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (killed / "report.html").exists(), sign
    done = carrara("quickstart", "--out", "killed", *CHOICES)
    assert (done.status, done.err) == (0, "")
    for file in ("denoiser.safetensors", "conditions.safetensors", "autoencoder/weights.safetensors"):
        assert (killed / "model" / file).read_bytes() == (tmp_path / "whole" / "model" / file).read_bytes()
