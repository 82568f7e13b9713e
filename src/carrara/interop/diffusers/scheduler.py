"""diffusers' ``scheduler_config.json`` as a schedule, a parameterization and a way to sample, and back.

A scheduler there is all of these in one; `diffusers_sampling` reads the last.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from carrara.config import Config, parse
from carrara.diffusion.schedules import SCHEDULES
from carrara.errors import UserError, nearest
from carrara.generation.model import ModelConfig
from carrara.interop.diffusers.autoencoder_config import Factor, only
from carrara.interop.diffusers.files import read_table
from carrara.interop.diffusers.sampling import read_sampling

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
_FLOWS = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMapEulerDiscreteScheduler",
)
_CLIPPING = ("DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler")


class Process(NamedTuple):
    """What a network was trained for. ``clips``: samples are kept within [-1, 1] on the way, as pixels are."""

    schedule: str
    options: dict[str, float]
    parameterization: str
    clips: bool
    remarks: list[str]
    sampling: dict[str, Any]  # fields of `Released`

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
    return process_of(read_table(file), str(file))


def process_of(values: dict[str, Any], where: str) -> Process:
    """The same of the table itself."""
    name = str(values.get("_class_name"))
    if name not in (*_ABSENT, *_FLOWS):
        raise UserError(f"{where}: _class_name {name!r} is not supported{nearest(name, [*_ABSENT, *_FLOWS])}")
    sampling, remarks = read_sampling(name, values, where)
    if name in _FLOWS:
        parse(_Flow, _known(_Flow, values), where=where)
        return Process("flow", {}, "flow", False, remarks, sampling)
    said = parse(_Betas, _ABSENT[name] | _known(_Betas, values), where=where)
    if (said.prediction_type == "flow_prediction") != said.use_flow_sigmas:
        raise UserError(
            f"{where}: prediction_type {said.prediction_type!r} with use_flow_sigmas {said.use_flow_sigmas} is not "
            "supported; Carrara has 'flow_prediction' with use_flow_sigmas, or neither"
        )
    if said.use_flow_sigmas:
        return Process("flow", {}, "flow", False, remarks, sampling)
    options: dict[str, float] = {}
    if said.beta_schedule != "squaredcos_cap_v2":
        options |= {"start": said.beta_start, "end": said.beta_end}
    if said.rescale_betas_zero_snr:
        options |= {"zero_terminal": True}
    if values.get("thresholding"):
        remarks.append("its dynamic thresholding (Imagen's) is not taken over: samples are clipped or left")
    clips = name in _CLIPPING and bool(values.get("clip_sample", True))
    parameterization = _PREDICTIONS[said.prediction_type]
    schedule = _SCHEDULES[said.beta_schedule]
    return Process(schedule, options, parameterization, clips, remarks, sampling)


def written_process(config: ModelConfig, pipeline: str) -> dict[str, Any]:
    """The table of a scheduler for the process of ``config``; UserError where that pipeline of diffusers has none.

    An adopted model has the one that it came with.
    """
    if config.sampling and (released := config.sampling.scheduler):
        was = process_of(released, FILE)
        if (was.schedule, was.options, was.parameterization) == (
            config.schedule,
            config.schedule_options,
            config.parameterization,
        ):
            return released
    if config.schedule == "flow":
        return _written_flow(config, pipeline)
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
    if config.parameterization == "eps" and options["zero_terminal"]:
        raise UserError(
            "diffusers cannot express it: at the last step of a schedule with zero_terminal a network that says eps "
            "knows nothing of the picture, and its schedulers divide by zero there; train with --set "
            "model.parameterization=v"
        )
    betas = {"beta_start": options["start"], "beta_end": options["end"]} if "start" in options else {}
    pixels = pipeline == "DDPMPipeline"
    # DiTPipeline leaves a learnt variance out before its scheduler sees it.
    learnt = bool(getattr(config.denoiser, "learnt_variance", False)) and pipeline != "DiTPipeline"
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


_FLOW_CLASSES = {
    "DDPMPipeline": "FlowMatchEulerDiscreteScheduler",
    "DiTPipeline": "FlowMapEulerDiscreteScheduler",
}
"""Which tell a network its time itself and do what the pipeline asks of a scheduler; others cut it to whole steps."""


def _written_flow(config: ModelConfig, pipeline: str) -> dict[str, Any]:
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
    if pipeline not in _FLOW_CLASSES:
        raise UserError(
            f"diffusers cannot express it: the schedulers for flow matching that {pipeline} works with cut times to "
            "whole numbers of 1000; to export, train with --set model.schedule=scaled_linear --set "
            "model.parameterization=v --set times=discrete"
        )
    return {"_class_name": _FLOW_CLASSES[pipeline], "num_train_timesteps": _STEPS, "shift": 1.0}


def _known(model: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in model.model_fields}
