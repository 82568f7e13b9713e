"""How a scheduler of diffusers samples, in our words: sampler, grid, where it stops.

Its defaults are those that each class has for a key that is absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from carrara.config import Config, parse
from carrara.interop.diffusers.autoencoder_config import Number, only

_FIRST = 0.001  # the first step of a table of 1000, counted from 0 there
_VARIANCES = {"fixed_small": 0.0, "fixed_small_log": 0.0, "fixed_large": 1.0, "fixed_large_log": 1.0}


class _Said(Config):
    """What of a scheduler concerns its way; keys that a class lacks stay at what asks for nothing."""

    timestep_spacing: Annotated[str, only("linspace", "leading", "trailing")]
    steps_offset: Annotated[int, Field(ge=0, lt=1000)] = 0
    set_alpha_to_one: bool = True
    final_sigmas_type: Annotated[str, only("zero", "sigma_min")] = "zero"
    variance_type: str | None = None
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_lu_lambdas: bool | None = False
    use_beta_sigmas: bool | None = False
    solver_order: Annotated[int, Field(ge=1)] = 2
    algorithm_type: str = "dpmsolver++"
    skip_prk_steps: bool = True
    sigma_min: Annotated[float | None, Field(gt=0)] = None
    sigma_max: Annotated[float | None, Field(gt=0)] = None
    use_flow_sigmas: bool = False
    flow_shift: Annotated[float, Field(gt=0)] = 1.0
    shift: Annotated[Number, Field(gt=0)] = 1.0


class _Class(NamedTuple):
    """Our sampler, and what it does where the file does not say; ``exact``: it is that sampler."""

    sampler: str
    absent: Mapping[str, Any]
    exact: bool = True
    ends_early: bool = False


# Which lay their steps out by the table's own numbers, by numbers between, or with one more than there are steps.
_WHOLE, _BETWEEN, _SPARE = (
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "linspace", "steps_offset": 0},
)
_CLASSES: Mapping[str, _Class] = {
    "DDIMScheduler": _Class("ddim", _WHOLE),
    "DDIMParallelScheduler": _Class("ddim", _WHOLE),
    "DDPMScheduler": _Class("ancestral", _WHOLE | {"variance_type": "fixed_small"}),
    "DDPMParallelScheduler": _Class("ancestral", _WHOLE | {"variance_type": "fixed_small"}),
    "PNDMScheduler": _Class("plms", _WHOLE | {"set_alpha_to_one": False, "skip_prk_steps": False}),
    "LCMScheduler": _Class("consistency", _WHOLE, exact=False),
    "TCDScheduler": _Class("consistency", _WHOLE, exact=False),
    "EulerDiscreteScheduler": _Class("euler", _BETWEEN),
    "EulerAncestralDiscreteScheduler": _Class("euler_ancestral", _BETWEEN),
    "LMSDiscreteScheduler": _Class("lms", _BETWEEN),
    "HeunDiscreteScheduler": _Class("heun", _BETWEEN),
    "KDPM2DiscreteScheduler": _Class("dpm2", _BETWEEN),
    "KDPM2AncestralDiscreteScheduler": _Class("dpm2", _BETWEEN, exact=False),
    "DPMSolverSDEScheduler": _Class("dpmpp_sde", _BETWEEN),
    "DPMSolverMultistepScheduler": _Class("dpmpp_2m", _SPARE),
    "DPMSolverSinglestepScheduler": _Class("dpmpp_2s_ancestral", _SPARE, exact=False),
    "UniPCMultistepScheduler": _Class("unipc", _SPARE),
    "DEISMultistepScheduler": _Class("deis", _SPARE, ends_early=True),
    "SASolverScheduler": _Class("dpmpp_2m_sde", _SPARE, exact=False, ends_early=True),
    "FlowMatchEulerDiscreteScheduler": _Class("euler", _BETWEEN),
    "FlowMatchHeunDiscreteScheduler": _Class("heun", _BETWEEN),
    "FlowMapEulerDiscreteScheduler": _Class("euler", _BETWEEN),
}

_FORMLESS = {
    "use_beta_sigmas": "spacing by a beta distribution",
    "use_dynamic_shifting": "shift by the size of the picture",
    "shift_terminal": "stretch to a last level",
    "interpolation_type": "interpolation between levels",
}
_FORMLESS_FLOW = {"use_karras_sigmas": "Karras' spacing", "use_exponential_sigmas": "exponential spacing"}


def read_sampling(name: str, values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Fields of `generation.model.Released`, and what is not as it is there; UserError of a value it cannot have."""
    known = _CLASSES[name]
    values = {key: value for key, value in values.items() if value is not None}  # which means the default
    given = {key: value for key, value in values.items() if key in _Said.model_fields}
    said = parse(_Said, {**known.absent, **given}, where=where)
    remarks = []
    sampler, options, exact = _sampler(name, known, said)
    if not exact:
        remarks.append(f"its sampler ({name}) has no form here: {sampler} stands in for it")
    grid = _grid(name, known, said)
    formless = _FORMLESS | (_FORMLESS_FLOW if name.startswith("Flow") else {})
    for key, what in formless.items():
        if values.get(key) not in (None, False, "linear"):
            remarks.append(f"its {what} ({key}) has no form here: steps are as without")
    ends_early = known.ends_early or not said.set_alpha_to_one or said.final_sigmas_type == "sigma_min"
    released = {
        "sampler": sampler,
        "sampler_options": options or None,
        **grid,
        "end": _FIRST if ends_early else None,
        "scheduler": {key: value for key, value in values.items() if _plain(value)},
    }
    return released, remarks


def _plain(value: Any) -> bool:
    """Whether a model's file can hold it; infinity is what an absent key means, and else there is nothing."""
    values = value if isinstance(value, list) else [value]
    return all(isinstance(v, bool | int | str) or (isinstance(v, float) and math.isfinite(v)) for v in values)


def _sampler(name: str, known: _Class, said: _Said) -> tuple[str, dict[str, float], bool]:
    sampler, options, exact = known.sampler, {}, known.exact
    if sampler == "ancestral":
        if said.variance_type in _VARIANCES:
            options = {"variance": _VARIANCES[str(said.variance_type)]}
        exact = bool(options) or said.variance_type == "learned_range"
    elif sampler == "plms":
        exact = said.skip_prk_steps
    elif name == "DPMSolverMultistepScheduler":
        noisy = said.algorithm_type.startswith("sde-")
        if said.solver_order == 1:
            sampler, options = "ddim", {"eta": float(noisy)}
        elif said.solver_order == 2:
            sampler = "dpmpp_2m_sde" if noisy else "dpmpp_2m"
        else:
            sampler, options = "dpmpp_3m_sde", {"eta": float(noisy)}
        exact = said.algorithm_type.endswith("++") and said.solver_order <= 2
    elif sampler in ("unipc", "deis"):
        options = {"order": said.solver_order}
    elif sampler == "dpmpp_2s_ancestral":
        options = {"eta": 0.0}
    return sampler, options, exact


def _grid(name: str, known: _Class, said: _Said) -> dict[str, Any]:
    """The grid and its options, as fields."""
    flow = name.startswith("Flow")
    if name.startswith("FlowMatch") and said.shift == 1:
        return {"grid": "linspace", "grid_options": None}
    if flow or said.use_flow_sigmas:
        return {"grid": "shifted", "grid_options": {"shift": said.shift if flow else said.flow_shift}}
    for asked, name in (
        (said.use_karras_sigmas, "karras"),
        (said.use_exponential_sigmas, "exponential"),
        (said.use_lu_lambdas, "log_snr"),
    ):
        if asked:
            return {"grid": name, "grid_options": _spread(known, said) if name != "log_snr" else None}
    options: dict[str, float] = {}
    if said.timestep_spacing != "trailing" and known.absent is _SPARE:
        options |= {"spare": 1}
    if said.timestep_spacing == "linspace" and known.absent is not _BETWEEN:
        options |= {"rounded": 1}
    if said.timestep_spacing == "leading" and said.steps_offset:
        options |= {"offset": said.steps_offset}
    return {"grid": said.timestep_spacing, "grid_options": options or None}


def _spread(known: _Class, said: _Said) -> dict[str, Any] | None:
    """Between which levels: k-diffusion's samplers keep the ends of their spacing, others take the whole table."""
    levels = {"lowest": said.sigma_min, "highest": said.sigma_max}
    options: dict[str, Any] = {key: value for key, value in levels.items() if value is not None}
    if known.absent is _BETWEEN and said.timestep_spacing != "linspace":
        options["between"] = said.timestep_spacing
        if said.timestep_spacing == "leading" and said.steps_offset:
            options["offset"] = said.steps_offset
    return options or None
