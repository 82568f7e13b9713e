"""From requests to pictures: seeded noise, a sampler's steps, the decoder."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from carrara.autoencoders.tiling import decode_any_size
from carrara.config import parse
from carrara.context import Context
from carrara.diffusion.editing import image_to_image, keep
from carrara.diffusion.guidance import combined
from carrara.diffusion.learnt_variance import with_variance
from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.samplers.path import Denoise
from carrara.diffusion.schedules import Discrete, Flow, NoiseSchedule
from carrara.errors import UserError
from carrara.generation.editing import Original, encoded_originals, strength_for
from carrara.generation.model import Model, Sampling, load_model
from carrara.generation.values import Values, encoded
from carrara.geometry import Size
from carrara.model_place import model_in
from carrara.tensors import PictureNoise, to_pixels
from carrara.threads import alone, at_once


class Settings(Sampling):
    """How to sample; the same for every model."""

    seed: int = Field(0, ge=0, lt=2**63, description="Noise follows from (seed, picture number).")
    height: int | None = Field(
        None, ge=1, le=16384, description="In pixels; the model's own where it is not said."
    )
    width: int | None = Field(
        None, ge=1, le=16384, description="In pixels; the model's own where it is not said."
    )
    strength: float | None = Field(
        None, gt=0, le=1, description="How much of a picture to start from is changed; 1 is from noise."
    )

    def size(self, model: Model) -> Size:
        """Height and width of the pictures."""
        return self.height or model.size, self.width or model.size


def settings_for(model: Model, given: Mapping[str, Any]) -> Settings:
    """Settings from what is ``given``; what is absent or None as suits the model. UserError as in ``parse``, or where
    the sampler or the grid cannot do with its options or with this schedule.

    An adopted model is sampled as it was released. Of others a table of trained steps is walked on its own steps, a
    flow with more of them in the noise, any other path evenly. Guidance is off where nothing guides.
    """
    chosen = {key: value for key, value in given.items() if value is not None}
    schedule = model.diffusion.schedule
    if released := model.config.sampling:
        usual = released.model_dump(exclude={"scheduler"})
        for part, own in (
            ("sampler", "sampler_options"),
            ("grid", "grid_options"),
            ("guidance", "guidance_rules"),
        ):
            if chosen.get(part, usual[part]) != usual[part]:  # options go with what they are of
                usual[own] = None
    elif isinstance(schedule, Discrete):
        usual = {"grid": "trailing"}
    else:
        usual = {"grid": "shifted" if isinstance(schedule, Flow) else "uniform"}
    if not model.conditions:
        usual["guidance"] = 1.0
    settings = parse(Settings, usual | chosen, where="sample")
    _length(settings, settings.times(schedule), schedule)
    return settings


def _length(settings: Settings, times: Tensor, schedule: NoiseSchedule) -> int:
    """How many steps are taken, counted on a single number: samplers that go back take more than the grid has."""
    sampler, options = SAMPLERS[settings.sampler], settings.sampler_options or {}
    nothing = torch.zeros(1, 1)
    return sum(
        1 for _ in sampler(lambda z, t: z, nothing, times, schedule, noise=torch.zeros_like, **options)
    )


@dataclass(frozen=True)
class Moment:
    """After each step: its number, of how many; scaled latents z and the clean estimate x0, [b c h w]."""

    step: int
    steps: int
    z: Tensor
    x0: Tensor


@torch.inference_mode()  # as a decorator it is off again whenever the caller's loop body runs
def denoise(
    model: Model,
    rows: Sequence[Mapping[str, Any]] | Values,
    numbers: Sequence[int],
    settings: Settings,
    given: Sequence[Original] | None = None,
) -> Iterator[Moment]:
    """Samples one latent a request; picture i's noise belongs to (seed, numbers[i]), whatever the batch.

    A row is a request's columns by name, e.g. {"caption": "a red apple"}; a column that a condition reads and
    the row lacks is the condition's null. "negative" holds what to keep away from. `Values` go by the names of
    conditions instead. ``given`` are the pictures to start from, one a request.
    """
    schedule, device = model.diffusion.schedule, model.device
    options: dict[str, Any] = {**(settings.sampler_options or {})}
    times = settings.times(schedule)
    noise = PictureNoise(settings.seed, numbers)
    drawn = noise.draw(model.latent_of(settings.size(model)), device=device)
    z = float(schedule.sigma(times[0])) * drawn
    says_variance = getattr(model.config.denoiser, "learnt_variance", False)
    learnt: list[Tensor] | None = [] if settings.sampler == "ancestral" and says_variance else None
    if (heard := learnt) is not None:
        options = {"variance": lambda z, t: heard[-1], **options}
    guided = _guided(model, rows, settings, learnt)
    if given:
        known, hole = encoded_originals(model, given, settings.size(model))
        guided = keep(guided, known, hole)
        if (strength := settings.strength or 1) < 1:
            z, times = image_to_image(known, drawn, times, schedule, strength=strength)
    steps = _length(settings, times, schedule)
    for step in SAMPLERS[settings.sampler](guided, z, times, schedule, noise=noise, **options):
        yield Moment(step.index + 1, steps, step.z, step.x0)


def decode(model: Model, latent: Tensor) -> Tensor:
    """Scaled latents [b c h w] to ``uint8`` or, of an autoencoder of 16 bits, ``uint16 [b c H W]``.

    Large pictures are decoded tile by tile (docs/tiling.md).
    """
    autoencoder, scale = model.autoencoder, model.autoencoder.scale
    assert scale is not None
    with torch.inference_mode(), alone(model.parts > 1):
        raw = scale.unscale(latent).tensor_split(min(model.parts, len(latent)))
        images = at_once([functools.partial(decode_any_size, autoencoder.module, part) for part in raw])
        return to_pixels(torch.cat(images), autoencoder.bits).cpu()


def generate(
    model: Model,
    rows: Sequence[Mapping[str, Any]] | Values,
    settings: Settings,
    *,
    numbers: Sequence[int] | None = None,
    batch: int = 16,
    given: Sequence[Original] | None = None,
) -> Tensor:
    """One picture a request, ``[n c H W]`` as `decode` gives them; ``numbers`` default to 0, 1, 2 … .

    ``given`` are the pictures to start from, one a request; outside of their holes they stay as they are.
    """
    settings = settings.model_copy(update={"strength": strength_for(settings.strength, given)})
    values = rows if isinstance(rows, Values) else Values.of(model, rows)
    numbers = list(range(values.count)) if numbers is None else numbers
    pictures = []
    for first in range(0, values.count, batch):
        part = slice(first, first + batch)
        begun = given[part] if given else None
        for moment in denoise(model, values.part(part), numbers[part], settings, begun):
            latent = moment.z
        made = decode(model, latent)
        pictures.append(
            torch.stack([o.finish(one) for o, one in zip(begun, made, strict=True)]) if begun else made
        )
    return torch.cat(pictures)


def _guided(
    model: Model,
    rows: Sequence[Mapping[str, Any]] | Values,
    settings: Settings,
    learnt: list[Tensor] | None,
) -> Any:
    """z, t -> x0: both guidance branches in one call of the network, and only where guidance is on.

    ``learnt`` keeps the variance of the last call, where the network says one: the conditional branch's.
    """
    diffusion, size = model.diffusion, settings.size(model)
    values = rows if isinstance(rows, Values) else Values.of(model, rows)

    @functools.cache  # either is made when a step first needs it, and often one of them never is
    def contexts(both: bool) -> list[Context]:
        rows = (2 if both else 1) * values.count
        whole = encoded(model, values.both() if both else values.asked, size)
        return [part.remembering() for part in whole.split(min(model.parts, rows))]

    def estimate(z: Tensor, t: Tensor, both: bool) -> Tensor:
        parts = list(zip(z.tensor_split(len(contexts(both))), contexts(both), strict=True))
        with alone(model.parts > 1), model.autocast():
            if learnt is None:
                work = [functools.partial(diffusion.denoise, part, t, context) for part, context in parts]
                return torch.cat(at_once(work))
            asked = [(part, with_variance(diffusion, context)) for part, context in parts]
            x0 = torch.cat(at_once([functools.partial(each.denoise, part, t) for part, each in asked]))
        learnt[:] = [torch.cat([each.variance(part, t) for part, each in asked])[: values.count]]
        return x0

    def conditional(z: Tensor, t: Tensor) -> Tensor:
        return estimate(z, t, False)

    def pair(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if not model.conditions:  # one estimate is both
            return (x0 := conditional(z, t)), x0
        with_it, without = estimate(torch.cat([z, z]), t, True).chunk(2)
        return with_it, without

    opened = functools.partial(_weaker, model, values, settings)
    supplied = {
        "schedule": diffusion.schedule,
        "parameterization": diffusion.parameterization,
        "opened": opened,
    }
    guided = combined(settings.guidance, settings.guidance_rules, **supplied).together(pair, conditional)
    limit = getattr(model.autoencoder.module, "limit", None)
    if limit is None:
        return guided
    return lambda z, t: guided(z, t).clamp(-limit, limit)


def _weaker(model: Model, values: Values, settings: Settings, path: str) -> Denoise:
    """The estimates of the model at ``path`` for the same requests; UserError where it does not draw the same way."""
    other = load_model(model_in(Path(path))).to(model.device)
    if _world(other) != _world(model):
        raise UserError(
            f"{path} cannot guide this model: its autoencoder, conditions or schedule differ; "
            "expected a smaller or an earlier model of the same kind"
        )
    context = encoded(other, values.asked, settings.size(model)).remembering()

    def estimate(z: Tensor, t: Tensor) -> Tensor:
        with model.autocast():
            return other.diffusion.denoise(z, t, context)

    return estimate


def _world(model: Model) -> tuple[Any, ...]:
    """What two models must have in common so that their estimates mean the same."""
    autoencoder, config = model.autoencoder, model.config
    scale = (
        [part.tolist() for part in (autoencoder.scale.mean, autoencoder.scale.std)]
        if autoencoder.scale
        else []
    )
    columns = {name: (c.column, c.form) for name, c in model.conditions.items()}
    return autoencoder.hash, scale, columns, config.schedule, config.schedule_options
