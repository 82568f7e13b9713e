"""Whether sampling goes where training was: the ends of the schedule, the times trained, the sampler's settings."""

from __future__ import annotations

import torch

from carrara.diffusion.schedules import Discrete
from carrara.diffusion.times import TIMES
from carrara.doctor.finding import Check, Finding
from carrara.generation.model import Model
from carrara.generation.sample import Settings
from carrara.training.recipe import DiffusionRecipe

_VISIBLE = 1e-3  # a ratio of signal to noise from which on a picture's mean colour can be guessed
_CLEAR = 1e-2
_FEW_STEPS = 8


def terminal(model: Model) -> Check:
    """Whether t = 1 is pure noise: sampling begins there (Lin et al. 2023, section 3.1)."""
    schedule, config = model.diffusion.schedule, model.config
    one = torch.ones((), dtype=torch.float64)
    alpha, sigma = float(schedule.alpha(one)), float(schedule.sigma(one))
    ratio = (alpha / sigma) ** 2 if alpha < sigma else 1.0
    saw = f"signal to noise at t = 1 is {ratio:.2g} ({config.schedule})"
    found = []
    zero = (
        "set model.schedule_options={zero_terminal=true} with model.parameterization=v, or take the schedule flow, "
        "and train again"
    )
    if ratio > _VISIBLE:
        words = (
            f"training ends at a signal-to-noise ratio of {ratio:.2g}, sampling begins with none: very dark and very "
            "bright pictures come out grey"
        )
        found.append(Finding("terminal_snr", words, zero, serious=ratio > _CLEAR))
    if alpha == 0 and config.parameterization == "eps":
        words = "at t = 1 there is no signal, and the network says only which noise it sees: the first step is blind"
        found.append(Finding("blind_start", words, "take model.parameterization=v or flow and train again"))
    return Check("terminal signal", saw, found)


def times(model: Model, recipe: DiffusionRecipe, settings: Settings) -> Check:
    """Whether the noisy end, where a picture is decided, was trained at all."""
    schedule = model.diffusion.schedule
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    drawn = TIMES[recipe.times](u, schedule, **recipe.times_options)
    drawn = recipe.times_shift * drawn / (1 + (recipe.times_shift - 1) * drawn)
    grid = settings.times(schedule)
    edge = float(grid[max(1, settings.steps // 5)])
    share = float((drawn >= edge).double().mean())
    saw = (
        f"{share:.2%} of the training times are beyond t = {edge:.2f}, where the first fifth of the steps is"
    )
    found = []
    exploding = float(schedule.alpha(torch.ones(()))) == 1  # there most levels are beyond any picture
    if share < 2e-3 and not exploding:
        words = (
            f"only {share:.2%} of the training was at t > {edge:.2f}, where sampling takes its first steps"
        )
        fix = f"set times=uniform, or raise times_shift (now {recipe.times_shift:g}), and train again"
        found.append(Finding("untrained_noise", words, fix))
    return Check("times trained", saw, found)


def sampling(model: Model, recipe: DiffusionRecipe, settings: Settings) -> Check:
    """Whether a sampler, its grid, steps and guidance suit what was trained."""
    schedule = model.diffusion.schedule
    grid = settings.times(schedule)
    first = grid[0]
    ratio = float((schedule.alpha(first) / schedule.sigma(first)) ** 2)
    exploding = float(schedule.alpha(torch.ones(()))) == 1
    saw = (
        f"{settings.sampler}, {settings.steps} steps on the grid {settings.grid} from t = {float(first):.3f}, guidance "
        f"{settings.guidance:g}"
    )
    found = []
    if float(first) < 1 and ratio > _CLEAR and not exploding:
        words = (
            f"the grid {settings.grid} begins at t = {float(first):.3f}, where the network expects a picture (signal "
            f"to noise {ratio:.2g}), but sampling begins with noise alone"
        )
        found.append(Finding("grid_start", words, f"sample with --grid {_usual(model)}"))
    if isinstance(schedule, Discrete) and recipe.times == "discrete":
        off = (grid * schedule.steps - (grid * schedule.steps).round()).abs()
        if float(off.max()) > 1e-6:
            words = f"the grid {settings.grid} stops between the {schedule.steps} steps that were trained"
            found.append(Finding("between_steps", words, "sample with --grid trailing", serious=False))
    if settings.steps < _FEW_STEPS:
        words = f"{settings.steps} steps are few for {settings.sampler}"
        found.append(
            Finding("few_steps", words, "sample with --steps 20 or more", serious=settings.steps < 4)
        )
    if settings.sampler == "ancestral" and settings.steps < 100 and isinstance(schedule, Discrete):
        words = f"ancestral sampling with {settings.steps} of {schedule.steps} steps leaves noise"
        found.append(
            Finding("ancestral_steps", words, f"sample with --steps {schedule.steps}, or --sampler dpmpp_2m")
        )
    if settings.guidance > 10:
        words = f"guidance {settings.guidance:g} pushes values out of range: glaring colours"
        found.append(Finding("much_guidance", words, "sample with --guidance 2 to 8"))
    if settings.guidance != 1 and not model.conditions:
        words = f"guidance {settings.guidance:g} has nothing to guide by: the model has no condition"
        found.append(Finding("nothing_guides", words, "sample with --guidance 1", serious=False))
    never = [
        name
        for name, encoder in model.conditions.items()
        if model.config.conditions[name].dropout == 0 and str(encoder.form) in ("text", "label")
    ]
    if settings.guidance > 1 and never:
        words = f"guidance {settings.guidance:g} does nothing for {never[0]}: training never left it out (dropout 0)"
        fix = f"train again with --set model.conditions.{never[0]}.dropout=0.1, or sample with --guidance 1"
        found.append(Finding("never_dropped", words, fix))
    return Check("sampler", saw, found)


def _usual(model: Model) -> str:
    return "trailing" if isinstance(model.diffusion.schedule, Discrete) else "uniform"
