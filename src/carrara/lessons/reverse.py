"""The reverse process of a model: z on its way from noise to picture, and what the model takes it for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from carrara.errors import UserError
from carrara.generation.model import Model
from carrara.generation.png import to_image
from carrara.generation.sample import Settings, decode, denoise
from carrara.lessons.output import Exhibit, Lesson
from carrara.pages.picture_grid import Row, plate
from carrara.progress import Progress
from carrara.tensors import PictureNoise

FRAMES = 40


def request(model: Model, prompt: str, label: str | None = None) -> Mapping[str, Any]:
    """The row for a prompt and a class; UserError where the model was trained without either and it is given."""
    if prompt and not model.conditions:
        raise UserError("this model was trained without captions: omit the prompt")
    if label is None:
        return {"caption": prompt}
    encoders: list[Any] = [encoder for encoder in model.conditions.values() if encoder.form == "label"]
    if not encoders:
        raise UserError("this model was trained without classes: omit --label")
    for encoder in encoders:
        encoder.remarks(label)  # refuses a class that there is not
    return {"caption": prompt, **{str(encoder.column): label for encoder in encoders}}


def reverse(
    model: Model, prompt: str, settings: Settings, *, columns: int = 9, label: str | None = None
) -> Lesson:
    """The exhibit for picture 0 of a seed: the one that `carrara sample` makes with the same settings."""
    row = request(model, prompt, label)
    schedule = model.diffusion.schedule
    times = settings.times(schedule)
    stops = len(times) - 1
    shown = sorted({round(stops * k / (columns - 1)) for k in range(columns)})
    kept = sorted({round(stops * k / (FRAMES - 1)) for k in range(FRAMES)} | set(shown))
    start = PictureNoise(settings.seed, [0]).draw(model.latent_shape, device=model.device)
    z = start * schedule.sigma(times[0]).item()
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    done = 0
    for done, moment in enumerate(denoise(model, [row], [0], settings)):
        if done in kept:
            seen[done] = (z, moment.x0)  # z at times[done], and the estimate from it
        z = moment.z
        yield Progress(
            title="sampling", fraction=(done + 1) / (stops + 1), words=f"step {done + 1} of {stops}"
        )
    if done + 1 != stops:
        raise UserError(
            f"{settings.sampler} goes back up on its way; show the reverse process of another sampler"
        )
    seen[stops] = (z, z)
    pictures = {
        stop: (_picture(model, z, times[stop]), _picture(model, x0)) for stop, (z, x0) in seen.items()
    }
    still = plate(
        [
            Row("z", [pictures[stop][0] for stop in shown]),
            Row("estimate\nof x0", [pictures[stop][1] for stop in shown]),
        ],
        [f"t = {times[stop]:.2f}" for stop in shown],
    )
    film = [
        plate([Row("", pictures[stop])], [f"z at t = {times[stop]:.2f}", "estimate of x0"], side=128)
        for stop in kept
    ]
    words = (
        f"{prompt or label or 'Without a prompt'}: {stops} steps of {settings.sampler} on the grid {settings.grid}, "
        f"guidance {settings.guidance:g}, seed {settings.seed}. Left is noise, right the picture. Below each z stands "
        "what the network takes it for: first the mean of all pictures that could be hidden in it, then "
        "one of them, with more and more detail."
    )
    return Exhibit("The reverse process", words, still, film)


def _picture(model: Model, latent: Tensor, t: Tensor | None = None) -> Image:
    """A latent [1 c h w] decoded; z on a variance exploding path is shrunk first to what a decoder knows."""
    schedule = model.diffusion.schedule
    size = 1.0 if t is None else torch.hypot(schedule.alpha(t), schedule.sigma(t)).clamp(min=1).item()
    return to_image(decode(model, latent / size)[0])
