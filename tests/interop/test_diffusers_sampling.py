"""An adopted model samples by default as its scheduler does there: sampler, spacing, offset, end and variance."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_cases import diffusers, enlivened, trunk
from torch import Tensor

from carrara.diffusion.schedules import SCHEDULES, logsnr
from carrara.errors import UserError
from carrara.generation.model import Model, Released, load_model
from carrara.generation.sample import denoise, settings_for
from carrara.interop.diffusers import pipeline as diffusers_pipeline
from carrara.interop.diffusers import pipeline_export
from carrara.interop.diffusers.scheduler import process_of
from carrara.tensors import PictureNoise

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

STEPS = 8  # of 1000 a whole share: else DDIM there aims at other steps than it tells
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PLAIN = {"clip_sample": False}
KEPT = {**PLAIN, "set_alpha_to_one": False}
KARRAS = {"use_karras_sigmas": True}
END = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", PLAIN),
    ("DDIMScheduler", KEPT),
    ("DDIMScheduler", {**KEPT, "steps_offset": 1}),
    ("DDIMScheduler", {**KEPT, "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {**PLAIN, "prediction_type": "v_prediction"}),
    ("DDPMScheduler", PLAIN),
    ("DDPMScheduler", {**PLAIN, "variance_type": "fixed_large"}),
    ("DDPMScheduler", {**PLAIN, "variance_type": "learned_range"}),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True, "timestep_spacing": "trailing"}),
    ("HeunDiscreteScheduler", {**KARRAS, "timestep_spacing": "leading", "steps_offset": 1}),
    ("LMSDiscreteScheduler", {**KARRAS, "timestep_spacing": "leading"}),
    ("DPMSolverMultistepScheduler", {**KARRAS, "timestep_spacing": "leading"}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    ("DEISMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", **END}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "timestep_spacing": "trailing"}),
]  # fmt: skip
# They walk with z / alpha.
EXPLODING = [f"{name}DiscreteScheduler" for name in ("Euler", "EulerAncestral", "Heun", "LMS")]


def pipeline(folder: Path, name: str, said: dict[str, Any]) -> Any:
    """Latent diffusion without a condition, of one level."""
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=6 if said.get("variance_type") == "learned_range" else 3,
        block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        layers_per_block=1, add_attention=False,
    )  # fmt: skip
    pipe = diffusers.LDMPipeline(
        vqvae=diffusers.VQModel(**trunk((32,), latent_channels=3, num_vq_embeddings=8)),
        unet=enlivened(unet),
        scheduler=getattr(diffusers, name)(**SD, **said),
    )
    pipe.save_pretrained(folder)
    return pipe


def theirs(pipe: Any, model: Model, times: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Where the scheduler itself ends, from our noise and with our fresh noise."""
    noise = PictureNoise(0, [0, 1])
    schedule, scheduler = model.diffusion.schedule, pipe.scheduler
    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: noise(torch.empty(shape)), raising=False)
    x = noise.draw(model.latent_shape) * schedule.sigma(times[0]).float()
    if type(scheduler).__name__ in EXPLODING:
        x = x / schedule.alpha(times[0]).float()
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        with torch.no_grad():
            out = pipe.unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(out, t, x).prev_sample
    return x


@pytest.mark.parametrize(("name", "said"), SCHEDULERS, ids=lambda value: str(value)[:60])
def test_as_it_was_released(
    name: str, said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline(tmp_path / "theirs", name, said)
    adopted = diffusers_pipeline.read(tmp_path / "theirs")
    assert not adopted.remarks
    adopted.model.save(tmp_path / "mine")
    model = load_model(tmp_path / "mine")
    assert settings_for(model, {}).steps == 50
    settings = settings_for(model, {"steps": STEPS})
    *_, last = denoise(model, [{}, {}], [0, 1], settings)
    expected = theirs(pipe, model, settings.times(model.diffusion.schedule), monkeypatch)
    spread = expected.std()
    assert spread > 0.1
    torch.testing.assert_close(last.z / spread, expected / spread, rtol=0, atol=2e-3)

    pipeline_export.write(model, tmp_path / "back")
    came, back = (
        json.loads((tmp_path / side / "scheduler" / "scheduler_config.json").read_text())
        for side in ("theirs", "back")
    )
    assert back == {key: value for key, value in came.items() if value not in (None, -math.inf)}


@pytest.mark.parametrize("kind", ["plain", "use_karras_sigmas", "use_exponential_sigmas"])
@pytest.mark.parametrize(
    "name", [*EXPLODING, "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"]
)
def test_levels_of_every_spacing(name: str, kind: str) -> None:
    if name.startswith("EulerAncestral") and kind != "plain":
        return
    for spacing in ({"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "leading"},
                    {"timestep_spacing": "leading", "steps_offset": 1}):  # fmt: skip
        scheduler = getattr(diffusers, name)(**SD, **spacing, **({} if kind == "plain" else {kind: True}))
        scheduler.set_timesteps(STEPS)
        expected = torch.unique_consecutive(scheduler.sigmas.double())
        process = process_of({"_class_name": name, **scheduler.config}, "it")
        schedule = SCHEDULES[process.schedule](**process.options)
        times = Released(**process.sampling | {"steps": STEPS}).times(schedule)
        torch.testing.assert_close((-logsnr(schedule, times) / 2).exp(), expected, rtol=1e-3, atol=1e-3)


def test_levels_that_the_file_states() -> None:
    said = {"_class_name": "EulerDiscreteScheduler", **SD, **KARRAS, "sigma_min": 0.1, "sigma_max": 10.0}
    process = process_of(said, "it")
    schedule = SCHEDULES[process.schedule](**process.options)
    levels = (-logsnr(schedule, Released(**process.sampling).times(schedule)) / 2).exp()
    torch.testing.assert_close(levels[[0, -2]], torch.tensor([10.0, 0.1]).double(), rtol=1e-3, atol=0)


def test_what_is_chosen_goes_before_what_was_released(tmp_path: Path) -> None:
    pipeline(tmp_path / "theirs", "DDPMScheduler", {**PLAIN, "steps_offset": 1})
    model = diffusers_pipeline.read(tmp_path / "theirs").model
    settings = settings_for(model, {"sampler": "ddim"})
    assert (settings.sampler, settings.sampler_options) == ("ddim", None)
    assert (settings.grid, settings.grid_options) == ("leading", {"offset": 1})
    settings = settings_for(model, {"grid": "karras"})
    assert (settings.sampler_options, settings.grid_options) == ({"variance": 0.0}, None)


@pytest.mark.parametrize(
    ("said", "remark"),
    [
        ({"_class_name": "KDPM2AncestralDiscreteScheduler"}, "dpm2 stands in for it"),
        ({"_class_name": "PNDMScheduler"}, "plms stands in for it"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "ancestral stands in for it"),
        ({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}, "beta distribution"),
        ({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}, "interpolation"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", **KARRAS}, "Karras' spacing"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "size of the"),
    ],
)
def test_what_has_no_form_is_told(said: dict[str, Any], remark: str) -> None:
    assert remark in process_of(said, "it").remarks[0]
    with pytest.raises(UserError, match="'timestep_spacing': 'log' is not supported"):
        process_of({**said, "timestep_spacing": "log"}, "it")
