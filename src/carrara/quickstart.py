"""`carrara quickstart`: the public commands in a row, and a page about what came out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from carrara.cli_data import import_into
from carrara.cli_models import make_folder, open_model
from carrara.cli_train import run_autoencoder, run_diffusion
from carrara.config import to_toml
from carrara.console import Bar, clock, console
from carrara.data.table import Dataset
from carrara.errors import UserError
from carrara.evaluation import report
from carrara.evaluation.reconstruction import mean_psnr, reconstruct
from carrara.generation.generate import Settings, decode, denoise
from carrara.generation.model import Model
from carrara.generation.pictures import picture_recipe, save_png, sheet, to_image
from carrara.recipes import quickstart as recipes
from carrara.training.budget import Budget
from carrara.training.parallel import Placement
from carrara.training.run import read_metrics

FILM = 8  # pictures in the strip
SETTINGS = Settings(seed=7, steps=20, guidance=2.0)


def quickstart(out: Path, budget: str, subset: str) -> None:
    """Every step is skipped where it is done and continued where it was stopped."""
    try:
        time_allowed = Budget.parse(budget)
    except ValueError as error:
        raise UserError(str(error)) from None
    make_folder(out)
    _remember(out, budget, subset)
    timer = _Timer(out / "steps.json")
    with timer.step("data"):
        summary = import_into(recipes.SOURCE, out / "data", subset=subset)
        console.print(summary.lines()[0], soft_wrap=True)
    dataset = Dataset.open(out / "data")
    first, second = recipes.autoencoder(time_allowed), recipes.diffusion(time_allowed)
    with timer.step("autoencoder"):
        autoencoder = run_autoencoder(first, dataset, out / "autoencoder")
    with timer.step("latents and diffusion"):
        run_diffusion(second, dataset, autoencoder, out / "diffusion")
    link = out / "model"
    model = open_model(out / "diffusion")
    if not (link / "model.toml").is_file():
        model.save(link, {"recipe.toml": to_toml(second)})
    with timer.step("pictures"):
        pictures, film = _pictures(model, out / "pictures")
    with timer.step("report"):
        _report(out, dataset, model, pictures, film, timer, budget)
    console.print(f"\nthe page: {out / 'report.html'}    the model: {link}\ntry next:", soft_wrap=True)
    for command in next_commands(out):
        console.print(f"  {command}", soft_wrap=True)


def next_commands(out: Path) -> list[str]:
    """Three things to do after it."""
    return [
        f'carrara sample {out / "model"} "red heart" --seed 1 --count 4 --out pictures',
        f'carrara sample {out / "model"} "猫脸" --guidance 4 --sampler heun --out pictures',
        "carrara data import YOUR_FOLDER my-data",
    ]


def _remember(out: Path, budget: str, subset: str) -> None:
    """The choices of the first start; another choice in the same folder is refused before anything changes."""
    file, now = out / "quickstart.json", {"budget": budget, "set": subset}
    if file.is_file():
        if (before := json.loads(file.read_text())) != now:
            raise UserError(
                f"{out} was begun with --budget {before['budget']} --set {before['set']}; "
                "give the same to continue it, or another folder with --out"
            )
        return
    if {p.name for p in out.iterdir()} - {"quickstart.part"}:
        raise UserError(f"{out} is not empty and holds no quickstart; give another folder with --out")
    part = file.with_suffix(".part")
    part.write_text(json.dumps(now))
    os.replace(part, file)


class _Timer:
    """How long each step took, over all starts."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times a step; its start is said."""
        start = time.monotonic()
        console.print(name, style="bold")
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
            part = self.file.with_suffix(".part")
            part.write_text(json.dumps(self.seconds))
            os.replace(part, self.file)


def _pictures(model: Model, folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """The prompts' pictures, saved as PNG, and the clean estimates of the first prompt on their way."""
    make_folder(folder)
    prompts = recipes.PROMPTS
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
        recipe = picture_recipe(hash_, SETTINGS, {"caption": prompt}, 0)
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
    budget: str,
) -> None:
    placement = Placement.choose()
    held = dataset.indices("held_out")[:12]
    originals = dataset.pictures(held, model.size)
    again = reconstruct(model.autoencoder.module, originals, placement.device)
    compared = sheet([*originals, *again], len(held))
    compared.save(out / "pictures" / "reconstructions.png")
    measured = mean_psnr(model.autoencoder, dataset, placement.device)
    scale = model.autoencoder.scale
    assert scale is not None
    grid = "".join(report.picture(to_image(picture), prompt) for prompt, picture in pictures.items())
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
            report.picture(
                sheet(film, len(film) // 2, zoom=1),
                f"{recipes.PROMPTS[0]}: above z, below the clean estimate x0",
                wide=True,
            ),
        ),
        (
            "Stage one: the autoencoder",
            f"<p>{measured}; above held-out originals, below what it gives back.</p>"
            + report.picture(compared, wide=True)
            + report.curve(seen["autoencoder"], "l1")
            + report.table(
                [
                    [i, f"{m:.3f}", f"{s:.3f}"]
                    for i, (m, s) in enumerate(zip(scale.mean, scale.std, strict=True))
                ],
                ["latent channel", "mean", "standard deviation"],
            ),
        ),
        ("Stage two: the denoiser", report.curve(seen["diffusion"], "denoising")),
        (
            "Time",
            report.table(
                [[name, clock(seconds)] for name, seconds in timer.seconds.items()], ["step", "time"]
            )
            + f"<p>{rates['autoencoder']:.0f} and {rates['diffusion']:.0f} pictures a second in the two stages, "
            f"on {placement}.</p>",
        ),
        (
            "The data",
            f"<p>{len(dataset)} pictures, {len(dataset.indices('held_out'))} of them held out; licence of the "
            f"pictures: {licences}. Graphics: Twemoji, copyright Twitter, Inc and other contributors, CC-BY 4.0.</p>",
        ),
        ("Settings", report.code((model.path / "recipe.toml").read_text()) if model.path else ""),
    ]
    text = report.page(
        "Carrara quickstart", f"A text-to-image model trained here, with a budget of {budget}.", sections
    )
    part = out / "report.html.part"
    part.write_text(text, encoding="utf-8")
    os.replace(part, out / "report.html")
