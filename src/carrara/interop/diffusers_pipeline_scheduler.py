"""diffusers' ``scheduler_config.json`` as a schedule and a parameterization, and back.

A scheduler there is a trained process and a way to sample in one: the process is taken, samplers are our own.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from carrara.config import Config, parse
from carrara.diffusion.schedules import SCHEDULES
from carrara.errors import UserError, nearest
from carrara.generation.model import ModelConfig
from carrara.interop.diffusers_configs import Factor, only
from carrara.interop.diffusers_files import read_table

FILE = "scheduler_config.json"
_STEPS = 1000  # which networks there and here are told the number of
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
_DDPM = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
_BETWEEN = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_ABSENT: dict[str, dict[str, Any]] = {  # what a class has for keys that its file lacks
    **dict.fromkeys(
        [
            "DDIMParallelScheduler",
            "DDIMScheduler",
            "DDPMParallelScheduler",
            "DDPMScheduler",
            "DEISMultistepScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "LMSDiscreteScheduler",
            "PNDMScheduler",
            "SASolverScheduler",
            "UniPCMultistepScheduler",
        ],
        _DDPM,
    ),
    **dict.fromkeys(
        [
            "DPMSolverSDEScheduler",
            "HeunDiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "KDPM2DiscreteScheduler",
        ],
        _BETWEEN,
    ),
    **dict.fromkeys(["LCMScheduler", "TCDScheduler"], _LATENT),
}
_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_CLIPPING = ("DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler")


class Process(NamedTuple):
    """What a network was trained for. ``clips``: samples are kept within [-1, 1] on the way, as pixels are."""

    schedule: str
    options: dict[str, float]
    parameterization: str
    clips: bool
    remarks: list[str]

    @property
    def flow(self) -> bool:
        """Whether it is flow matching, whose networks are told 1000 times the noise's share."""
        return self.schedule == "flow"


class _Betas(Config):
    """What of a scheduler concerns the process; the rest is about sampling."""

    num_train_timesteps: Annotated[int, only(_STEPS)] = _STEPS
    beta_start: Factor
    beta_end: Factor
    beta_schedule: Annotated[str, only(*_SCHEDULES)]
    trained_betas: Annotated[Any, only(None)] = None
    prediction_type: Annotated[str, only(*_PREDICTIONS)] = "epsilon"
    rescale_betas_zero_snr: bool = False
    use_flow_sigmas: bool = False
    timestep_type: Annotated[str, only("discrete")] = "discrete"


class _Flow(Config):
    num_train_timesteps: Annotated[int, only(_STEPS)] = _STEPS
    invert_sigmas: Annotated[bool, only(False)] = False
    stochastic_sampling: Annotated[bool, only(False)] = False


def read_process(folder: Path) -> Process:
    """Of the folder with the ``scheduler_config.json``; UserError names the first thing that has no form here."""
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"{folder.parent} is incomplete: it lacks {folder.name}/{FILE}")
    values = read_table(file)
    name = values.get("_class_name")
    if name in _FLOWS:
        parse(_Flow, _known(_Flow, values), where=str(file))
        return Process("flow", {}, "flow", False, [])
    if name not in _ABSENT:
        raise UserError(
            f"{file}: _class_name {name!r} is not supported{nearest(str(name), [*_ABSENT, *_FLOWS])}"
        )
    said = parse(_Betas, _ABSENT[name] | _known(_Betas, values), where=str(file))
    if (said.prediction_type == "flow_prediction") != said.use_flow_sigmas:
        raise UserError(
            f"{file}: prediction_type {said.prediction_type!r} with use_flow_sigmas {said.use_flow_sigmas} is not "
            "supported; Carrara has 'flow_prediction' with use_flow_sigmas, or neither"
        )
    if said.use_flow_sigmas:
        return Process("flow", {}, "flow", False, [])
    options: dict[str, float] = {}
    if said.beta_schedule != "squaredcos_cap_v2":
        options |= {"start": said.beta_start, "end": said.beta_end}
    if said.rescale_betas_zero_snr:
        options |= {"zero_terminal": True}
    remarks = []
    if values.get("thresholding"):
        remarks.append("its dynamic thresholding (Imagen's) is not taken over: samples are clipped or left")
    clips = name in _CLIPPING and bool(values.get("clip_sample", True))
    parameterization = _PREDICTIONS[said.prediction_type]
    return Process(_SCHEDULES[said.beta_schedule], options, parameterization, clips, remarks)


def written_process(config: ModelConfig, *, pixels: bool, splits: bool) -> dict[str, Any]:
    """The table of a scheduler for the process of ``config``; UserError where diffusers has none.

    ``splits``: the pipeline takes a learnt variance from the output itself, so the scheduler must not.
    """
    if config.schedule == "flow":
        return _written_flow(config)
    there = {ours: theirs for theirs, ours in _SCHEDULES.items()}
    if config.schedule not in there:
        raise UserError(
            f"diffusers cannot express it: the schedule is {config.schedule!r}, and its schedulers have "
            f"{', '.join(there)} and flow"
        )
    known = inspect.signature(SCHEDULES[config.schedule]).parameters
    options = {name: p.default for name, p in known.items()} | config.schedule_options
    fixed = {"steps": _STEPS} | ({"offset": 0.008, "cap": 0.999} if config.schedule == "cosine" else {})
    for name, value in fixed.items():
        if options[name] != value:
            raise UserError(
                f"diffusers cannot express it: {name} of the schedule is {options[name]:g}, and it has {value:g}"
            )
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items() if ours != "flow"}
    if config.parameterization not in predictions:
        raise UserError(
            f"diffusers cannot express it: the parameterization is {config.parameterization!r}, and with this "
            f"schedule it has {', '.join(predictions)}"
        )
    betas = {"beta_start": options["start"], "beta_end": options["end"]} if "start" in options else {}
    learnt = bool(getattr(config.denoiser, "learnt_variance", False)) and not splits
    kind: Literal["DDPMScheduler", "DDIMScheduler"] = "DDPMScheduler" if pixels or learnt else "DDIMScheduler"
    said = {
        "_class_name": kind,
        "num_train_timesteps": _STEPS,
        **betas,
        "beta_schedule": there[config.schedule],
        "prediction_type": predictions[config.parameterization],
        "rescale_betas_zero_snr": bool(options["zero_terminal"]),
        "clip_sample": pixels,
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # of no account with that spacing, but its pipelines of text ask for it
    }
    if kind == "DDIMScheduler":
        return said | {"set_alpha_to_one": True}
    return said | {"variance_type": "learned_range" if learnt else "fixed_small"}


def _written_flow(config: ModelConfig) -> dict[str, Any]:
    if config.parameterization != "flow":
        raise UserError(
            f"diffusers cannot express it: the parameterization is {config.parameterization!r} on the schedule "
            "'flow', and it has 'flow' there"
        )
    if (shift := config.schedule_options.get("shift", 1.0)) != 1:
        raise UserError(
            f"diffusers cannot express it: the schedule's shift is {shift:g}, and its networks are told the noise's "
            "share itself (shift 1)"
        )
    if getattr(config.denoiser, "first_step", 1) != 1:
        raise UserError(
            "diffusers cannot express it: first_step is 0 on the schedule 'flow', and its networks count from 1 there"
        )
    # Of its schedulers for flow matching this one does what its older pipelines ask of a scheduler.
    return {
        "_class_name": "DPMSolverMultistepScheduler",
        "num_train_timesteps": _STEPS,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 1.0,
        "steps_offset": 1,
    }


def _known(model: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in model.model_fields}
