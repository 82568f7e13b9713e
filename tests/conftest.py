"""A small data set and small recipes that tests of several rooms share; commands run as a user runs them."""

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from carrara.autoencoders import kl
from carrara.cli.app import main
from carrara.conditions import text
from carrara.config import Config, to_toml
from carrara.dataset.dataset import Dataset
from carrara.dataset.latents import encode
from carrara.denoisers import unet
from carrara.generation.model import ModelConfig
from carrara.importing.importing import import_pictures
from carrara.training import fastest
from carrara.training.recipe import AutoencoderRecipe, DiffusionRecipe, TrainConfig, ValidationConfig

os.environ["CARRARA_CACHE"] = tempfile.mkdtemp(prefix="carrara-tests-")  # what trials find is no user's
torch.set_num_threads(1)  # a process a core: threads that wait for each other's turn are many times slower


# Runs that are compared bit for bit do not differ by what a trial of microseconds found faster.
variants, fastest.variants = fastest.variants, lambda way: []


COLOURS = {"red": "rot", "green": "grün", "blue": "blau", "black": "schwarz"}
SHAPES = {"disc": "Scheibe", "square": "Quadrat", "bar": "Balken"}


def draw(colour: str, shape: str, size: int, jitter: int) -> Image.Image:
    """A coloured shape on white; ``jitter`` moves it."""
    image = Image.new("RGB", (size, size), "white")
    box = [size // 5 + jitter, size // 5, size - size // 5 + jitter, size - size // 5]
    pen = ImageDraw.Draw(image)
    if shape == "disc":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.rectangle([0, box[1] + 2 * jitter, size, box[1] + size // 5 + 2 * jitter], fill=colour)
    return image


def write_pictures(folder: Path, *, captions: bool = True, size: int = 20) -> Path:
    """Twenty-four pictures, with captions in English and German beside them where wanted."""
    folder.mkdir(parents=True, exist_ok=True)
    for jitter in (0, 1):
        for colour, farbe in COLOURS.items():
            for shape, form in SHAPES.items():
                name = f"{colour}-{shape}-{jitter}"
                draw(colour, shape, size, jitter).save(folder / f"{name}.png")
                if captions:
                    (folder / f"{name}.txt").write_text(f"{colour} {shape}\n", encoding="utf-8")
                    (folder / f"{name}.de.txt").write_text(f"{farbe}e {form}\n", encoding="utf-8")
    return folder


def small_autoencoder(budget: str = "6steps", **train: Any) -> AutoencoderRecipe:
    """Sixteen pixels a side to a latent of 4 x 8 x 8."""
    return AutoencoderRecipe(
        size=16,
        autoencoder=kl.Config(channels=8, multipliers=(1, 2), blocks=1, middle_attention=False),
        train=TrainConfig(**{"budget": budget, "batch": 4, "warmup": 2, **train}),
    )


def small_diffusion(budget: str = "6steps", *, captions: bool = True, **train: Any) -> DiffusionRecipe:
    """A U-Net of two levels and a text encoder of one layer."""
    caption = text.Config(vocabulary=300, length=12, width=16, depth=1, heads=2)
    return DiffusionRecipe(
        model=ModelConfig(
            denoiser=unet.Config(channels=8, multipliers=(1, 2), blocks=1, attention=(2,), head_width=8),
            conditions={"caption": caption} if captions else {},
        ),
        train=TrainConfig(**{"budget": budget, "batch": 4, "warmup": 2, **train}),
        validation=ValidationConfig(looks=1, pictures=2, samples=2, steps=1),
    )


def recipe_file(recipe: Config, path: Path) -> Path:
    """The recipe as a user's TOML file."""
    path.write_text(to_toml(recipe), encoding="utf-8")
    return path


def run_out(iterator: Iterable[Any]) -> list[Any]:
    """All that it yields."""
    return list(iterator)


def steps(reports: Iterable[Any]) -> list[Any]:
    """The reports about a step; others only bring a note."""
    return [report for report in reports if getattr(report, "losses", None)]


def first_step(reports: Iterable[Any]) -> Any:
    """The next report about a step."""
    return next(report for report in reports if getattr(report, "losses", None))


def some_steps(reports: Iterable[Any], count: int) -> list[Any]:
    """The next so many reports about a step."""
    return [first_step(reports) for _ in range(count)]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of captioned pictures."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "shapes")


@pytest.fixture(scope="session")
def dataset(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same, imported. Tests may add derived columns to it, nothing else."""
    path = tmp_path_factory.mktemp("dataset") / "data"
    run_out(import_pictures(str(pictures), path, held_out=0.2, licence="CC0-1.0"))
    return Dataset.open(path)


@dataclass(frozen=True)
class Trained:
    """Two finished runs and the data they saw."""

    dataset: Dataset
    autoencoder: Path
    diffusion: Path


@pytest.fixture(scope="session")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Both stages, a few steps each: their model folders are in ``model`` inside."""
    from carrara.autoencoders.stored import load_autoencoder
    from carrara.training.stages import train_autoencoder, train_diffusion

    root = tmp_path_factory.mktemp("runs")
    run_out(train_autoencoder(small_autoencoder("30steps"), dataset, root / "autoencoder"))
    autoencoder = load_autoencoder(root / "autoencoder" / "model")
    run_out(encode(dataset, autoencoder, torch.device("cpu")))
    run_out(train_diffusion(small_diffusion("30steps"), dataset, autoencoder, root / "diffusion"))
    return Trained(dataset, root / "autoencoder", root / "diffusion")


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line on standard error of a command that ended with status 2."""
        assert self.status == 2, (self.status, self.out, self.err)
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("carrara: ")
        return lines[0].removeprefix("carrara: ")


Here = Callable[..., Finished]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """here("sample", …): the command in this process and in the test's folder, for speed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["carrara", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Finished(left.value.code, captured.out, captured.err)

    return run


class Command:
    """`carrara …` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: object) -> "subprocess.Popen[str]":
        """Starts it, for a test that kills it."""
        program = Path(sys.executable).with_name("carrara")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.started.append(
            subprocess.Popen(
                [str(program), *map(str, arguments)],
                cwd=self.folder,
                env=environment,
                text=True,
                encoding="utf-8",
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        return self.started[-1]

    def __call__(self, *arguments: object) -> Finished:
        """Runs it to its end."""
        process = self.start(*arguments)
        out, err = process.communicate()
        return Finished(process.returncode, out, err)


@pytest.fixture
def carrara(tmp_path: Path) -> Iterator[Command]:
    """The console script, run in the test's folder."""
    command = Command(tmp_path)
    yield command
    for process in command.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def kill_within() -> Callable[["subprocess.Popen[str]", Path, int, random.Random], None]:
    """Kills a training once its newest checkpoint has ``seen`` pictures, a random moment later."""
    import time

    from carrara.training import checkpoint

    def kill(process: "subprocess.Popen[str]", run: Path, seen: int, draw: random.Random) -> None:
        while process.poll() is None:
            last = checkpoint.newest(run / "checkpoints")
            if last is not None and int(last.name) >= seen:
                time.sleep(draw.uniform(0, 0.03))
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the training ended before it was killed"

    return kill
