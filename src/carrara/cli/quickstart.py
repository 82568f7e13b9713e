"""`carrara quickstart`: the public commands in a row, and a page about what came out."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from carrara.autoencoders.stored import StoredAutoencoder
from carrara.cli.data import import_into
from carrara.cli.models import make_folder
from carrara.cli.train import run_autoencoder, run_diffusion
from carrara.config import to_toml
from carrara.dataset.dataset import Dataset
from carrara.dataset.subset import subset
from carrara.errors import UserError
from carrara.files import json_object, write_atomically
from carrara.generation.model import Model, load_model
from carrara.generation.png import picture_recipe, save_png, sheet, to_image
from carrara.generation.sample import Settings, decode, denoise
from carrara.interop.models import open_autoencoder, open_model
from carrara.metrics.reconstruction import mean_psnr, reconstruct
from carrara.pages import html
from carrara.recipes import quickstart as recipes
from carrara.recipes.quickstart import Choice
from carrara.terminal import Bar, clock, console
from carrara.training.devices import Placement
from carrara.training.fastest import fastest_sampling
from carrara.training.loop import Report
from carrara.training.lr_and_budget import Budget
from carrara.training.metrics_log import read_metrics
from carrara.training.recipe import DiffusionRecipe, ValidationConfig
from carrara.training.run import trained_on
from carrara.training.stages import train_diffusion

FILM = 8  # pictures in the strip
_CHOSEN = ("concepts", "languages", "stage_two", "words")
SETTINGS = Settings(seed=7, steps=20, guidance=2.0)


def quickstart(out: Path, budget: str, subset: str) -> None:
    """Every step is skipped where it is done and continued where it was stopped; a larger budget goes on training."""
    began = time.monotonic()
    try:
        allowed = Budget.parse(budget)
    except ValueError as error:
        raise UserError(str(error)) from None
    make_folder(out)
    notes = _Notes.open(out, budget, subset)
    timer = _Timer(out / "steps.json", began)
    with timer.step("data"):
        summary = import_into(recipes.SOURCE, out / "data", subset=subset)
        console.print(summary.lines()[0], soft_wrap=True)
    everything = Dataset.open(out / "data")
    with timer.step("autoencoder"):
        if (out / "autoencoder" / "model").is_dir():
            autoencoder = open_autoencoder(out / "autoencoder")
        else:
            autoencoder = run_autoencoder(recipes.autoencoder(allowed), everything, out / "autoencoder")
    timer.at_least("autoencoder", float(autoencoder.passport.get("seconds", 0)))
    with timer.step("what can be learned"):
        learned = _learned(out, everything, autoencoder, allowed, notes, timer)
    with timer.step("diffusion"):
        second = recipes.diffusion(Budget.parse(notes.stage_two), tuple(notes.languages))
        run_diffusion(second, learned, autoencoder, out / "diffusion")
    model = open_model(out / "diffusion")
    _replace(model, out / "model", to_toml(second))
    with timer.step("pictures"):
        prompts = _prompts(learned, notes.languages)
        model = fastest_sampling(model, [{"caption": prompt} for prompt in prompts], SETTINGS)
        pictures, film = _pictures(model, prompts, out / "pictures")
    with timer.step("report"):
        _report(out, learned, model, pictures, film, timer, notes)
    console.print(
        f"\nthe page: {out / 'report.html'}    the model: {out / 'model'}\ntry next:", soft_wrap=True
    )
    for command in next_commands(out):
        console.print(f"  {command}", soft_wrap=True)


def next_commands(out: Path) -> list[str]:
    """Three things to do after it."""
    return [
        f'carrara sample {out / "model"} "red heart" --seed 1 --count 4 --out pictures',
        f'carrara sample {out / "model"} "猫脸" --guidance 4 --sampler heun --out pictures',
        "carrara data import YOUR_FOLDER my-data",
    ]


@dataclass
class _Notes:
    """What was chosen at the first start and stays: the set, concepts, languages; and the budget, which may grow."""

    file: Path
    budget: str
    subset: str
    concepts: int = 0
    languages: list[str] = field(default_factory=list)
    stage_two: str = ""
    words: str = ""

    @staticmethod
    def open(out: Path, budget: str, subset: str) -> _Notes:
        """UserError where the folder holds something else, was begun on another set, or with a larger budget."""
        file = out / "quickstart.json"
        known = json_object(file.read_bytes()) if file.is_file() else None
        if known is None or not known.keys() >= {"budget", "set"}:
            if not file.is_file() and {p.name for p in out.iterdir()} - {"quickstart.json.part"}:
                raise UserError(f"{out} is not empty and holds no quickstart; give another folder with --out")
            notes = _Notes(file, budget, subset)
            notes.keep()
            return notes
        fields = {key: known[key] for key in _CHOSEN if key in known}
        notes = _Notes(file, known["budget"], known["set"], **fields)
        before, now = Budget.parse(notes.budget), Budget.parse(budget)
        grows = before.amount[0] == now.amount[0] and before.amount <= now.amount
        if notes.subset != subset or not grows:
            raise UserError(
                f"{out} was begun with --budget {notes.budget} --set {notes.subset}; give the same to continue it, "
                "a larger budget to train it longer, or another folder with --out"
            )
        if str(before) != str(now):
            notes.budget, notes.stage_two = budget, ""
            notes.keep()
        return notes

    def keep(self) -> None:
        """Writes them, whole or not at all."""
        known = asdict(self)
        known["set"] = known.pop("subset")
        text = json.dumps({k: v for k, v in known.items() if k != "file"}, ensure_ascii=False)
        write_atomically(self.file, text)


def _learned(
    out: Path,
    everything: Dataset,
    autoencoder: StoredAutoencoder,
    allowed: Budget,
    notes: _Notes,
    timer: _Timer,
) -> Dataset:
    """The data set of what can be learned in the time that is left, chosen once and said."""
    place = out / "learned"
    if not notes.concepts:
        recipe = recipes.diffusion(allowed, tuple(recipes.LANGUAGES))
        available = len(everything.indices("train"))
        if not allowed.seconds:
            steps = allowed.counted(available, recipe.train.batch).steps or 0
            seen, rate = float(steps * recipe.train.batch), 0.0
        else:
            rate = _rate(out / "rate", recipe, everything, autoencoder)
            seen = rate * _left(allowed, timer)
        choice = recipes.choose(seen, available)
        notes.concepts, notes.languages = choice.concepts, list(choice.languages)
        notes.words = _words(choice, seen, rate, available, allowed)
        notes.keep()
    if not (place / "dataset.toml").is_file():
        rows = _chosen(everything, notes.concepts, autoencoder.size)
        held_out = everything.indices("held_out")
        subset(everything, np.sort(np.concatenate([rows, held_out])), place, why=notes.words)
    if not notes.stage_two:
        left = allowed if not allowed.seconds else Budget(seconds=round(_left(allowed, timer), 1))
        notes.stage_two = str(left)
        notes.keep()
    console.print(notes.words, soft_wrap=True)
    return Dataset.open(place)


def _left(allowed: Budget, timer: _Timer) -> float:
    """Seconds of stage two, so that with pictures and page the command ends with its budget; never below a tenth."""
    seconds = allowed.seconds or 0.0
    return max(seconds / 10, seconds - timer.before_stage_two - min(20.0, 0.06 * seconds))


def _rate(place: Path, recipe: DiffusionRecipe, dataset: Dataset, autoencoder: StoredAutoencoder) -> float:
    """Pictures per second of stage two, from some seconds of it."""
    shutil.rmtree(place, ignore_errors=True)
    recipe = recipe.model_copy(update={"validation": ValidationConfig(looks=0)})
    seconds = Budget.parse(recipe.train.budget).seconds or 0.0
    long, until = min(8.0, 0.03 * seconds), math.inf
    ends: list[tuple[float, int]] = []
    with closing(train_diffusion(recipe, dataset, autoencoder, place)) as reports:
        for report in reports:
            if isinstance(report, Report) and report.losses:
                ends.append((time.monotonic(), report.seen))
                until = min(until, time.monotonic() + long)
            if len(ends) > 4 and time.monotonic() > until:
                break
    shutil.rmtree(place, ignore_errors=True)
    steps = [(later[1] - one[1]) / (later[0] - one[0]) for one, later in pairwise(ends[1:])]
    return statistics.median(steps) if steps else recipe.train.batch / seconds


def _words(choice: Choice, seen: float, rate: float, available: int, allowed: Budget) -> str:
    at = f"some {seen:,.0f} pictures seen" + (f" at {rate:.0f} per second" if rate else "")
    every = Choice(available, tuple(recipes.LANGUAGES))
    found = f"learning {choice} of {available}: {at}"
    if choice == every or not rate:
        return found
    minutes = (
        (every.pictures / rate + 45) / (1 - recipes.AUTOENCODER_SHARE) / 60
    )  # with encoding, pictures, page
    return f"{found}; --budget {math.ceil(minutes)}m in a new folder would be enough for {every}"


def _chosen(dataset: Dataset, count: int, size: int) -> npt.NDArray[np.int64]:
    """Rows to train on: those that are to be shown, then one after another the picture least like those before.

    So no two of them are hard to tell apart: half of the faces differ by an eyebrow.
    """
    rows = dataset.indices("train")
    names = dataset.take(rows, ["caption_en"])["caption_en"]
    small = F.adaptive_avg_pool2d(dataset.pictures(rows, size).float(), 32).flatten(1)
    first = [names.index(name) for name in (*recipes.SHOWN, *recipes.COLOURS) if name in names]
    chosen, distance = list(first), torch.full((len(rows),), math.inf)
    for index in first:
        distance = distance.minimum((small - small[index]).norm(dim=1))
    while len(chosen) < min(count, len(rows)):
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
        distance = distance.minimum((small - small[chosen[-1]]).norm(dim=1))
    return rows[chosen[: max(count, len(first))]]


def _prompts(dataset: Dataset, languages: Sequence[str]) -> list[str]:
    """Twelve for the grid: learned ones in all languages in turn, and combinations that no caption says."""
    rows = dataset.indices("train")
    captions = dataset.take(rows, [f"caption_{language}" for language in languages])
    english = captions["caption_en"]
    known = [name for name in recipes.SHOWN if name in english]
    known += [name for name in english if name not in known][: len(recipes.SHOWN) - len(known)]
    turns = [f"caption_{languages[index % len(languages)]}" for index in range(len(known))]
    return [captions[turn][english.index(name)] for turn, name in zip(turns, known, strict=True)] + [
        *recipes.COMBINATIONS
    ]


def _replace(model: Model, place: Path, recipe: str) -> None:
    """Puts the newest model at ``place``, where an earlier one may be."""
    if (place / "model.toml").is_file() and load_model(place).hash == model.hash:
        return
    model.save(place, {"recipe.toml": recipe})


class _Timer:
    """How long each step took, over all starts."""

    def __init__(self, file: Path, began: float) -> None:
        """``began`` is when this start of the command did, on the monotonic clock."""
        self.file = file
        before = (json_object(file.read_bytes()) if file.is_file() else None) or {}
        self.seconds = {name: float(s) for name, s in before.items() if isinstance(s, int | float)}
        self._began, self._earlier = began, sum(self.seconds.values())

    @property
    def before_stage_two(self) -> float:
        """Seconds that were spent on everything but stage two, this moment included."""
        later = ("diffusion", "pictures", "report")
        return (
            self._earlier
            - sum(self.seconds.get(step, 0.0) for step in later)
            + time.monotonic()
            - self._began
        )

    def at_least(self, name: str, seconds: float) -> None:
        """A step took so long by what it noted itself, which a kill does not take away."""
        self.seconds[name] = max(known := self.seconds.get(name, 0.0), seconds)
        self._earlier += self.seconds[name] - known

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times a step; its start is said."""
        start = time.monotonic()
        console.print(name, style="bold")
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
            write_atomically(self.file, json.dumps(self.seconds))


def _pictures(model: Model, prompts: Sequence[str], folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """The prompts' pictures, saved as PNG, and the clean estimates of the first prompt on their way."""
    make_folder(folder)
    rows = [{"caption": prompt} for prompt in prompts]
    film, every = [], max(1, SETTINGS.steps // (FILM - 1))
    with Bar("sampling") as bar:
        for moment in denoise(model, rows, [0] * len(rows), SETTINGS):
            if (moment.step - 1) % every == 0 or moment.step == moment.steps:
                film.append((moment.z[:1].clone(), moment.x0[:1].clone()))
            words = f"step {moment.step} of {moment.steps}"
            bar.show(moment.step / moment.steps, words, total=len(rows) * moment.steps, unit="denoisings")
    found = dict(zip(prompts, decode(model, moment.z), strict=True))
    hash_ = model.hash
    for index, (prompt, picture) in enumerate(found.items()):
        exact = {"precision": "bf16"} if model.bf16 else {}
        recipe = picture_recipe(hash_, SETTINGS, {"caption": prompt, **exact}, 0)
        save_png(picture, folder / f"{index:02}.png", recipe)
    sheet(list(found.values()), 6, zoom=2).save(folder / "grid.png")
    strip = [decode(model, z)[0] for z, _ in film] + [decode(model, x0)[0] for _, x0 in film]
    sheet(strip, len(film)).save(folder / "film.png")
    return found, strip


def _report(
    out: Path,
    dataset: Dataset,
    model: Model,
    pictures: dict[str, Any],
    film: list[Any],
    timer: _Timer,
    notes: _Notes,
) -> None:
    grid = "".join(html.picture(to_image(picture), prompt) for prompt, picture in pictures.items())
    seen = {name: read_metrics(out / name) for name in ("autoencoder", "diffusion")}
    seen = {name: [line for line in lines if "spent" in line] for name, lines in seen.items()}
    rates = {name: lines[-1]["seen"] / lines[-1]["spent"] if lines else 0.0 for name, lines in seen.items()}
    licences = ", ".join(model.passport.get("licences", []))
    sections = [
        (
            "Pictures",
            f"<p>Guidance {SETTINGS.guidance:g}, {SETTINGS.steps} steps of {SETTINGS.sampler}, "
            f"seed {SETTINGS.seed}.</p>{grid}",
        ),
        (
            "From noise to picture",
            html.picture(
                sheet(film, len(film) // 2, zoom=1),
                f"{next(iter(pictures))}: above z, below the clean estimate x0",
                wide=True,
            ),
        ),
        ("Stage one: the autoencoder", _stage_one(model, dataset, out, seen["autoencoder"])),
        ("Stage two: the denoiser", html.curve(seen["diffusion"], "denoising")),
        (
            "Time",
            html.table([[name, clock(seconds)] for name, seconds in timer.seconds.items()], ["step", "time"])
            + f"<p>{rates['autoencoder']:.0f} and {rates['diffusion']:.0f} pictures per second in the two stages, "
            f"on {trained_on(out / 'diffusion')}.</p>",
        ),
        (
            "The data",
            f"<p>{notes.words}.</p><p>{len(dataset)} pictures, {len(dataset.indices('held_out'))} of them held out; "
            f"licence of the pictures: {licences}. Graphics: Twemoji, copyright Twitter, Inc and other contributors, "
            "CC-BY 4.0.</p>",
        ),
        (
            "Settings",
            html.code((model.path / "recipe.toml").read_text(errors="replace")) if model.path else "",
        ),
    ]
    text = html.page(
        "Carrara quickstart",
        f"A text-to-image model trained here, with a budget of {notes.budget}.",
        sections,
    )
    write_atomically(out / "report.html", text)


def _stage_one(model: Model, dataset: Dataset, out: Path, lines: list[dict[str, Any]]) -> str:
    """What the autoencoder gives back of held-out pictures, its curve, and the scale of its latent."""
    device, scale = Placement.choose().device, model.autoencoder.scale
    assert scale is not None
    originals = dataset.pictures(dataset.indices("held_out")[:12], model.size)
    again = reconstruct(model.autoencoder.module, originals, device)
    compared = sheet([*originals, *again], len(originals))
    compared.save(out / "pictures" / "reconstructions.png")
    measured = mean_psnr(model.autoencoder, dataset, device)
    channels = enumerate(zip(scale.mean, scale.std, strict=True))
    return (
        f"<p>{measured}; above held-out originals, below what it gives back.</p>"
        + html.picture(compared, wide=True)
        + html.curve(lines, "l1")
        + html.table(
            [[i, f"{m:.3f}", f"{s:.3f}"] for i, (m, s) in channels],
            ["latent channel", "mean", "standard deviation"],
        )
    )
