"""Errors that a user will make: one readable line on standard error, exit status 2, nothing half-written."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import (
    Command,
    Here,
    Trained,
    recipe_file,
    small_autoencoder,
    small_diffusion,
    some_steps,
    write_pictures,
)


def below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.fixture
def nothing_written(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Call it when the ground is laid; at the end the folder holds just the same."""
    before: list[set[str]] = []
    yield lambda: before.append(below(tmp_path))
    assert before, "call it"
    assert below(tmp_path) == before[-1]


@pytest.fixture
def files(tmp_path: Path, trained: Trained) -> Path:
    """mine/ with pictures, first.toml, second.toml, and data/, runs/a and runs/m as links to finished ones."""
    write_pictures(tmp_path / "mine")
    recipe_file(small_autoencoder(), tmp_path / "first.toml")
    recipe_file(small_diffusion(), tmp_path / "second.toml")
    (tmp_path / "runs").mkdir()
    (tmp_path / "data").symlink_to(trained.dataset.path)
    (tmp_path / "runs" / "a").symlink_to(trained.autoencoder)
    (tmp_path / "runs" / "m").symlink_to(trained.diffusion)
    return tmp_path


# --- real processes: a few, to see the exit status and both streams as a shell does ---


def test_an_empty_folder(carrara: Command, tmp_path: Path, nothing_written: Callable[[], None]) -> None:
    (tmp_path / "empty").mkdir()
    nothing_written()
    assert carrara("data", "import", "empty", "data").refusal.startswith(
        "no pictures found in empty (looked for "
    )


def test_an_unknown_sampler(carrara: Command, files: Path, nothing_written: Callable[[], None]) -> None:
    nothing_written()
    refusal = carrara("sample", "runs/m", "x", "--sampler", "dpmpp2m", "--out", "p").refusal
    assert "no sampler is called 'dpmpp2m'; did you mean 'dpmpp_2m'?" in refusal


def test_an_unknown_recipe_key(carrara: Command, files: Path, nothing_written: Callable[[], None]) -> None:
    (files / "first.toml").write_text((files / "first.toml").read_text().replace("warmup", "warmpu"))
    nothing_written()
    refusal = carrara("train", "first.toml", "data", "--out", "run").refusal
    assert refusal.startswith("first.toml: unknown key 'train.warmpu'; did you mean 'train.warmup'?")


# --- in this process ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train first.toml data --out run --set train.bach=4", "unknown key 'train.bach'; did you mean 'train.batch'?"),
        ("train first.toml data --out run --set train.batch", "cannot read the change 'train.batch'"),
        ("train first.toml data --out run --set train.batch=0", "'train.batch': expected at least 1, got 0"),
        ("train first.toml data --out run --set size=17", "multiple of 2"),
        ("train first.toml data --out run --budget soon", "cannot read the budget 'soon'"),
        ("train kl_autoencodr data --out run", "did you mean 'kl_autoencoder'?"),
        ("train missing.toml data --out run", "missing.toml"),
        ("train first.toml dota --out run", "dota"),
        ("train first.toml mine --out run", "mine"),
        ("train second.toml data --out run", "needs --autoencoder"),
        ("train second.toml data --out run --autoencoder nowhere", "there is no model at nowhere"),
        ("train second.toml data --out run --autoencoder mine", "mine"),
        ("train second.toml data --out run --autoencoder runs/a --set model.schedule=flwo", "did you mean 'flow'?"),
        ("train second.toml data --out run --autoencoder runs/a --set model.conditions.caption.languages=[\"xx\"]",
         "the data has no captions in 'xx' (it has: de, und)"),
        ("train first.toml data --out first.toml", "first.toml"),
        ("train first.toml data --out mine", "is not empty and holds no run"),
        ("train first.toml data", "--out is missing: Run folder"),
        ("sample runs/m x --sampler eule --out p", "no sampler is called 'eule'; did you mean"),
        ("sample runs/m x --grid karas --out p", "did you mean 'karras'?"),
        ("sample runs/m x --steps 0 --out p", "'steps': expected at least 1"),
        ("sample runs/m x --seed -1 --out p", "'seed': expected at least 0"),
        ("sample runs/m x --count 0 --out p", "'--count'"),
        ("sample runs/m x --guidance -1 --out p", "'guidance': expected at least 0"),
        ("sample runs/m x --guidanse 2 --out p", "no option is called --guidanse"),
        ("sample runs/m x --out first.toml", "first.toml"),
        ("sample runs/x x --out p", "there is no model at runs/x"),
        ("sample runs/a x --out p", "expected a diffusion model"),
        ("sample mine x --out p", "mine is not a model folder"),
        ("sample first.toml x --out p", "first.toml"),
        ("data import nowhere d", "there is no source 'nowhere'"),
        ("data import  d", "there is no source ''"),  # an empty name is not the current folder's
        ("data import mine first.toml", "first.toml is a file"),
        ("data import mine runs", "runs holds other things"),
        ("data import mine d --held-out 2", "'--held-out'"),
        ("data import emoji d --set Fod", "no emoji subset is called 'Fod'"),
        ("train first.toml second.toml --out run", "second.toml is a file; expected a data set"),
        ("data stats data@nope", "data has no version called 'nope'"),
        ("data search data x --by wrods", "did you mean 'words'?"),
        ("recipe text_ldn", "did you mean 'text_ldm'?"),
        ("quickstart --out q --budget soon", "cannot read the budget 'soon'"),
        ("quickstart --out mine", "mine is not empty and holds no quickstart"),
        ("trian first.toml", "no command is called 'trian'"),
    ],
)  # fmt: skip
def test_one_line_and_nothing_written(
    here: Here, files: Path, nothing_written: Callable[[], None], arguments: str, message: str
) -> None:
    nothing_written()
    assert message in here(*arguments.split(" ")).refusal


def test_captions_that_name_missing_pictures(
    here: Here, files: Path, nothing_written: Callable[[], None]
) -> None:
    """Where none of them is there, the folder is not what the user thinks it is."""
    for file in (files / "mine").glob("*.txt"):
        file.unlink()
    (files / "mine" / "metadata.csv").write_text("file_name,caption\nx.png,a disc\ny.png,a bar\n")
    nothing_written()
    assert "x.png" in here("data", "import", "mine", "new").refusal


def test_a_caption_that_names_a_missing_picture_is_listed(here: Here, files: Path) -> None:
    for file in (files / "mine").glob("*.txt"):
        file.unlink()
    (files / "mine" / "metadata.csv").write_text("file_name,caption\nx.png,a disc\nred-bar-0.png,a bar\n")
    done = here("data", "import", "mine", "new")
    assert done.status == 0
    assert "x.png" in (files / "new" / "rejected.jsonl").read_text()


def test_a_folder_of_nothing_readable(
    here: Here, tmp_path: Path, nothing_written: Callable[[], None]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "mine" / "b.jpg").write_text("no picture")
    nothing_written()
    assert "no picture in mine could be read" in here("data", "import", "mine", "data").refusal


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "denoiser.safetensors").unlink(), "is incomplete: it lacks denoiser.safetensors"),
        (lambda m: (m / "denoiser.safetensors").write_bytes(b"\0" * 64), "denoiser.safetensors is damaged"),
        (lambda m: (m / "condition_caption" / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda m: shutil.rmtree(m / "autoencoder"), "autoencoder"),
        (lambda m: newer(m / "model.toml"), "model format 2"),
        (lambda m: newer(m / "autoencoder" / "model.toml"), "model format 2"),
    ],
)
def test_a_model_that_cannot_be_opened(
    here: Here,
    files: Path,
    nothing_written: Callable[[], None],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    damage(Path(shutil.copytree(files / "runs" / "m" / "model", files / "copy")))
    nothing_written()
    assert message in here("sample", "copy", "x", "--out", "p").refusal


def newer(about: Path) -> None:
    about.write_text(about.read_text().replace("format = 1", "format = 2", 1))


def test_a_run_that_has_not_finished(here: Here, files: Path) -> None:
    from carrara.dataset.dataset import Dataset
    from carrara.training.stages import train_autoencoder

    reports = train_autoencoder(small_autoencoder(), Dataset.open(files / "data"), files / "half")
    some_steps(reports, 2)
    reports.close()  # type: ignore[attr-defined]
    assert (
        "has not finished: the same `carrara train` again continues it" in here("sample", "half", "x").refusal
    )


def test_a_place_where_nothing_may_be_written(here: Here, files: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("everything may be written by root")
    (files / "locked").mkdir(mode=0o500)
    assert "Permission denied" in here("train", "first.toml", "data", "--out", "locked/run").refusal
    assert "Permission denied" in here("sample", "runs/m", "x", "--out", "locked/p").refusal


def test_a_disk_that_is_full(here: Here, files: Path) -> None:
    place = files / "disk"
    place.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a small disk here")
    try:
        command = ("train", "first.toml", "data", "--out", "disk/run", "--set", "train.save_every=1e-9")
        assert "No space left on device; the last good checkpoint is " in here(*command).refusal
        (place / "something").write_bytes(b"\1" * 1000)
        refusal = here(*command).refusal
        assert "No space left on device" in refusal
        for file in place.rglob("*"):
            if file.is_file() and file.name.startswith("something"):
                file.unlink()
        taken = os.statvfs(place)
        (place / "something").write_bytes(b"\1" * max(0, taken.f_bavail * taken.f_frsize - 2000))
        refusal = here("sample", "runs/m", "x", "--count", 9, "--steps", 1, "--out", "disk/p").refusal
        assert "No space left on device" in refusal
        assert not list(place.rglob("*.png.part"))
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_help_is_no_mistake(here: Here) -> None:
    for arguments in (["--help"], ["train", "--help"], ["data", "import", "--help"]):
        shown = here(*arguments)
        assert (shown.status, shown.err) == (0, "")
        assert "Usage: " in shown.out
