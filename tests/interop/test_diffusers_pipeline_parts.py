"""Our own models as pipelines of diffusers, denoisers without a pipeline, and what is refused either way."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_cases import diffusers, enlivened
from safetensors.torch import load_file
from test_diffusers_pipeline import ddim, ldm, plain_unet, stable_diffusion, text_unet, vae
from torch import nn

import tiny_encoders
from carrara.autoencoders import identity, kl, tiny, vq
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.conditions import image, label, pretrained_text
from carrara.config import Config
from carrara.denoisers import dit, unet
from carrara.errors import UserError
from carrara.generation.model import Model, ModelConfig, build_network, latent_of, load_model
from carrara.interop.diffusers import pipeline as diffusers_pipeline
from carrara.interop.diffusers import pipeline_export
from carrara.tensors import generator
from conftest import Here

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

SMALL = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "depth": 0, "attention": (2,), "head_width": 8}


def model(
    denoiser: Config, *, pixels: bool = False, conditions: dict[str, Any] | None = None, **process: Any
) -> Model:
    """A model of ours with weights that matter, on a KL autoencoder whose latents differ in scale, or on pixels."""
    torch.manual_seed(0)
    config: Any = identity.Config() if pixels else kl.Config(channels=32, multipliers=(1, 1), blocks=1)
    module = config.build()
    scale = LatentScale(torch.zeros(3), torch.ones(3))
    if not pixels:
        module = enlivened(module)
        scale = LatentScale(torch.tensor([0.1, -0.4, 0.3, 0.0]), torch.tensor([0.5, 2.0, 1.5, 0.7]))
    stored = StoredAutoencoder.of(module, config, 16, {}).with_scale(scale)
    encoders = nn.ModuleDict(conditions or {})
    said = ModelConfig(denoiser=denoiser, conditions={n: e.config for n, e in encoders.items()}, **process)
    network = enlivened(build_network(said, encoders, module.channels))
    return Model(said, network, encoders, stored, {"licences": ["CC0-1.0"]})


def classes(width: int, names: str = "cat dog owl") -> label.LabelEncoder:
    return label.LabelEncoder(label.Config(width=width), names.split())


def output(of: Model, z: torch.Tensor, t: float, row: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        context = of.context([row] * len(z), (16, 16))
        return of.diffusion.output(z, torch.full((len(z),), t, dtype=torch.float64), context)


def assert_near(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    assert 0.1 < expected.std() < 10
    torch.testing.assert_close(found / expected.std(), expected / expected.std(), rtol=0, atol=atol)


def test_classes_of_a_unet_and_a_scale_for_each_channel(tmp_path: Path) -> None:
    """Layers between class and time, steps counted from 1 and the latent scale: all are taken in by weights."""
    network = unet.Config(**SMALL, vector_layers="mlp")
    mine = model(
        network,
        conditions={"label": classes(24)},
        schedule="cosine",
        schedule_options={"zero_terminal": True},
        parameterization="v",
    )
    remarks = pipeline_export.write(mine, tmp_path / "out")
    assert remarks == [
        "its pipelines give a U-Net no class: call it yourself with class_labels, numbers of cat, dog, owl …, 3 stands "
        "for none"
    ]
    back = diffusers.LDMPipeline.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
    z = torch.randn(2, 4, 8, 8, generator=generator(1))
    for step, row, number in ((0, {"label": "dog"}, 1), (500, {"label": "cat"}, 0), (999, {}, 3)):
        with torch.no_grad():
            theirs = back.unet(z, torch.tensor(step), class_labels=torch.tensor([number] * 2)).sample
        # Renumbering turns sines of up to 1000 radians, which float32 holds to 3e-5.
        assert_near(theirs, output(mine, z, (step + 1) / 1000, row), 3e-5)
    alphas = mine.diffusion.schedule.alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000) ** 2
    torch.testing.assert_close(back.scheduler.alphas_cumprod.double(), alphas, rtol=1e-4, atol=1e-6)
    assert back.scheduler.config.prediction_type == "v_prediction"

    assert mine.autoencoder.scale is not None
    own: Any = mine.autoencoder.module
    picture = torch.rand(2, 3, 16, 16, generator=generator(2)) * 2 - 1
    with torch.no_grad():
        assert_near(back.vqvae.decode(z).sample, own.decode(mine.autoencoder.scale.unscale(z)))
        there, here_ = back.vqvae.encode(picture).latent_dist, own.encode(picture)
        assert_near(there.mean, mine.autoencoder.scale.scale(here_.mean))
        spread = here_.logvar - 2 * mine.autoencoder.scale.std.log()[:, None, None]
        assert_near(there.logvar, spread)
    again = diffusers_pipeline.read(tmp_path / "out").model
    assert (again.config.schedule, again.config.schedule_options) == ("cosine", {"zero_terminal": 1})
    assert again.passport == {**again.passport, "licences": ["CC0-1.0"]}
    assert "classes" not in again.passport
    assert again.conditions["label"].classes == ["cat", "dog", "owl"]
    for row in ({"label": "owl"}, {}):  # and its null
        assert_near(output(again, z, 0.5, row), output(mine, z, 0.5, row), 3e-5)


@pytest.mark.parametrize("kind", ["unet in pixels", "dit"])
def test_flow_matching(kind: str, tmp_path: Path) -> None:
    """Networks are told the noise's share times 1000, there and here, before and after."""
    if kind == "dit":
        denoiser: Config = dit.Config(width=24, depth=2, heads=2, frequency_shift=1.0, feed_forward_eps=1e-5)
        mine = model(denoiser, conditions={"label": classes(10)})
    else:
        mine = model(unet.Config(**SMALL), pixels=True)
    pipeline_export.write(mine, tmp_path / "out")
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
    back.set_progress_bar_config(disable=True)
    again = diffusers_pipeline.read(tmp_path / "out").model
    side = 8 if kind == "dit" else 16
    z, step, row = torch.randn(2, 4 if kind == "dit" else 3, side, side), torch.tensor([600.0, 600]), {}
    with torch.no_grad():
        if kind == "dit":
            row = {"label": "owl"}
            theirs = back.transformer(z, step, class_labels=torch.tensor([2, 2])).sample
            assert back.transformer.config.num_embeds_ada_norm == 1000
            assert again.conditions["label"].classes == ["cat", "dog", "owl"]
            made = back([2], num_inference_steps=2, output_type="np").images
        else:
            theirs = back.unet(z, step).sample
            made = back(num_inference_steps=2, output_type="np").images
    assert made.shape == (1, 16, 16, 3)
    assert_near(theirs, output(mine, z, 0.6, row))
    assert_near(output(again, z, 0.6, row), output(mine, z, 0.6, row))
    assert (again.config.schedule, again.config.parameterization) == ("flow", "flow")


def test_a_denoiser_without_its_pipeline(tmp_path: Path, here: Here) -> None:
    """With what it needs given by hand it is what the pipeline would have been."""
    stable_diffusion(tmp_path).save_pretrained(tmp_path / "sd")
    assert here("adopt", "sd", "whole", "--size", 32).status == 0
    parts = ("--autoencoder", "sd/vae", "--text", "sd/text_encoder", "--size", 32)
    done = here("adopt", "sd/unet", "mine", *parts)
    assert done.status == 0, done.err
    mine, whole = load_model(tmp_path / "mine"), load_model(tmp_path / "whole")
    assert (mine.hash, mine.config, mine.size) == (whole.hash, whole.config, 32)
    assert done.out.splitlines()[-1] == 'next: carrara sample mine "a prompt" --guidance 7.5 --out pictures'
    for changed, refusal in (
        (
            {"--text": None},
            "reads tokens of width 16, and what guides it gives none; give --text, a folder with",
        ),
        ({"--autoencoder": None}, "sd/unet makes 4 channels, which are hardly pixels: give --autoencoder"),
        ({"--size": 31}, "pictures of 31 x 31 pixels cannot be made: 31 is not a multiple of 4"),
        ({"--scheduler": "nowhere"}, "is incomplete: it lacks nowhere/scheduler_config.json"),
    ):
        given = dict(zip(parts[::2], parts[1::2], strict=True)) | changed
        words = [word for pair in given.items() if pair[1] is not None for word in pair]
        assert refusal in here("adopt", "sd/unet", "other", *words).refusal
    text_unet(cross_attention_dim=24).save_pretrained(tmp_path / "alone")
    assert here("adopt", "alone", "other").refusal.startswith(
        "alone says nothing of the noise it was trained"
    )
    wrong = here("adopt", "alone", "other", *parts, "--scheduler", "sd/scheduler").refusal
    assert wrong == "alone reads tokens of width 24, and what guides it gives 16"
    assert "belongs to a denoiser" in here("adopt", "sd/vae", "other", "--text", "sd/text_encoder").refusal
    assert not (tmp_path / "other").exists()

    again = here("export", "mine", "back")
    assert again.status == 0, again.err
    (tmp_path / "back" / "text_encoder" / "model.safetensors").unlink()
    assert "lacks model.safetensors" in here("adopt", "back", "other").refusal


def test_schedulers_that_are_refused(tmp_path: Path, here: Here) -> None:
    ddim(tmp_path).save_pretrained(tmp_path / "sound")
    file = tmp_path / "sound" / "scheduler" / "scheduler_config.json"
    sound = json.loads(file.read_text())
    for said, line in (
        ({"num_train_timesteps": 500}, "'num_train_timesteps': 500 is not supported; Carrara has 1000"),
        ({"trained_betas": [0.1, 0.2]}, "'trained_betas': [0.1, 0.2] is not supported; Carrara has None"),
        (
            {"beta_schedule": "sigmoid"},
            "'sigmoid' is not supported; Carrara has 'linear' or 'scaled_linear' or",
        ),
        (
            {"prediction_type": "flow_prediction"},
            "'flow_prediction' with use_flow_sigmas False is not supported",
        ),
        ({"_class_name": "DDIMSheduler"}, "'DDIMSheduler' is not supported; did you mean 'DDIMScheduler'?"),
    ):
        file.write_text(json.dumps(sound | said))
        assert line in here("adopt", "sound", "mine").refusal
    file.write_text(json.dumps({**sound, "thresholding": True, "clip_sample": False}))
    done = here("adopt", "sound", "mine")
    assert [line[:40] for line in done.out.splitlines()[1:-1]] == [
        "note: its dynamic thresholding (Imagen's",
        "note: its scheduler does not clip pixels",
    ]
    assert here("adopt", "sound", "mine2", "--autoencoder", "x").refusal == (
        "DDIMPipeline works on pixels: omit --autoencoder"
    )


def test_pipelines_that_are_refused(tmp_path: Path, here: Here) -> None:
    pipeline = ldm(tmp_path)
    pipeline.save_pretrained(tmp_path / "ldm")
    index = tmp_path / "ldm" / "model_index.json"
    sound = json.loads(index.read_text())
    index.write_text(json.dumps(sound | {"_class_name": "StableDiffusionInpaintPipeline"}))
    refusal = here("adopt", "ldm", "mine").refusal
    assert (
        "'StableDiffusionInpaintPipeline' is not supported; did you mean 'StableDiffusionPipeline'?"
        in refusal
    )
    assert refusal.endswith("; its autoencoder alone is in ldm/vqvae")
    index.write_text(json.dumps(sound))
    (tmp_path / "ldm" / "vqvae").rename(tmp_path / "ldm" / "away")
    assert here("adopt", "ldm", "mine").refusal == "ldm is incomplete: it lacks vqvae"
    vae().save_pretrained(tmp_path / "ldm" / "vqvae")
    assert here("adopt", "ldm", "mine").refusal == (
        "ldm/vqvae has latents of 4 channels, and ldm/unet makes 3"
    )
    scheduler = diffusers.DDPMScheduler()
    for name, network, line in (
        ("beside", plain_unet(7, out_channels=3), "it reads 4 channels beside the 3 of z"),
        (
            "number",
            plain_unet(class_embed_type="timestep"),
            "it reads the number of a class that no condition",
        ),
    ):
        diffusers.DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(tmp_path / name)
        assert line in here("adopt", name, "mine").refusal


def test_classes_that_dit_pipelines_cannot_count(tmp_path: Path) -> None:
    """There, number 1000 is none, whatever the table holds."""
    denoiser = dit.Config(width=24, depth=1, heads=2, frequency_shift=1.0, feed_forward_eps=1e-5)
    many = label.LabelEncoder(label.Config(width=10), [f"class {number}" for number in range(1001)])
    with pytest.raises(UserError, match="there are 1001 classes, and DiTPipeline takes number 1000 for none"):
        pipeline_export.write(model(denoiser, conditions={"label": many}), tmp_path / "out")
    assert not list(tmp_path.iterdir())
    always = label.LabelEncoder(label.Config(width=10, dropout=0.0), ["cat", "dog", "owl"])
    mine = model(denoiser, conditions={"label": always})
    remarks = pipeline_export.write(mine, tmp_path / "out")
    assert "it knows no picture without a class: call its pipeline with guidance_scale=1" in remarks
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
    back.set_progress_bar_config(disable=True)
    made = back([2], guidance_scale=1, num_inference_steps=2, output_type="np").images
    assert made.shape == (1, 16, 16, 3)


def test_a_class_without_none(tmp_path: Path, here: Here) -> None:
    network = enlivened(plain_unet(num_class_embeds=5))
    diffusers.DDPMPipeline(unet=network, scheduler=diffusers.DDPMScheduler()).save_pretrained(tmp_path / "a")
    done = here("adopt", "a", "mine")
    assert (
        "note: it knows no picture without a class: always give one, and guidance has no effect" in done.out
    )
    assert done.out.splitlines()[-1] == "next: carrara sample mine --label '0' --out pictures"
    assert here("export", "mine", "back").status == 0
    back = diffusers.UNet2DModel.from_pretrained(tmp_path / "back" / "unet", low_cpu_mem_usage=False)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in back.state_dict().items())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"schedule": "shifted_cosine"}, "the schedule is 'shifted_cosine', and its schedulers have linear, "),
        ({"schedule_options": {"shift": 3.0}}, "the schedule's shift is 3, and its networks are told the"),
        ({"parameterization": "v"}, "the parameterization is 'v' on the schedule 'flow', and it has 'flow' there"),
        ({"schedule": "linear"}, "the parameterization is 'flow', and with this schedule it has eps, x0, v"),
        (
            {"schedule": "linear", "schedule_options": {"zero_terminal": True}, "parameterization": "eps"},
            "a network that says eps knows nothing of the picture, and its schedulers divide by zero there",
        ),
        ({"schedule": "cosine", "schedule_options": {"cap": 0.99}}, "cap of the schedule is 0.99, and it has 0.999"),
    ],
)  # fmt: skip
def test_processes_that_cannot_be_exported(change: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        pipeline_export.write(model(unet.Config(**SMALL), pixels=True, **change), tmp_path / "out")
    assert line in str(told.value)
    assert not list(tmp_path.iterdir())


def test_conditions_that_cannot_be_exported(tmp_path: Path) -> None:
    path = tiny_encoders.clip_folder()
    text = {"paths": (path,), "length": 9, "padding": "read"}

    def refusal(denoiser: Config, encoder: Any, **more: Any) -> str:
        mine = model(denoiser, conditions={"it": encoder}, schedule="linear", parameterization="eps", **more)
        with pytest.raises(UserError) as told:
            pipeline_export.write(mine, tmp_path / "out")
        assert not list(tmp_path.iterdir())
        return str(told.value)

    nothing = diffusers_pipeline._NoData()
    reading = unet.Config(**{**SMALL, "depth": 1})
    hidden = pretrained_text.Config(**{**text, "padding": "masked"}).learn(nothing)
    assert "padding of the text is 'masked', and StableDiffusionPipeline has 'read'" in refusal(
        reading, hidden
    )
    pooled = pretrained_text.Config(**text, pooled="last").learn(nothing)
    assert "pooled of the text is 'last', and StableDiffusionPipeline has 'none'" in refusal(reading, pooled)
    whole = pretrained_text.Config(**text).learn(nothing)
    assert "its pipelines of text work on latents" in refusal(reading, whole, pixels=True)
    token = label.LabelEncoder(label.Config(width=16, fills="token"), ["a", "b"])
    assert "the class is a token, and none of its pipelines gives one" in refusal(reading, token)
    stored = model(unet.Config(**SMALL)).autoencoder
    beside = image.Config(shows="low_resolution", factor=2).learn(nothing, latent_of(stored))
    assert "the condition 'it' (image) cannot be exported: none of diffusers' pipelines" in refusal(
        unet.Config(**SMALL), beside
    )


def test_flow_matching_in_latents_is_refused(tmp_path: Path) -> None:
    """The schedulers that these pipelines work with tell the network whole numbers for its times."""
    with pytest.raises(UserError, match="LDMPipeline works with cut times to whole numbers"):
        pipeline_export.write(model(unet.Config(**SMALL)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_flow_is_sampled_there_as_here(tmp_path: Path) -> None:
    """Its own pipeline, with its own noise, against Euler's rule at the times themselves."""
    mine = model(unet.Config(**SMALL), pixels=True)
    pipeline_export.write(mine, tmp_path / "out")
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
    back.set_progress_bar_config(disable=True)
    made = back(num_inference_steps=3, generator=torch.Generator().manual_seed(4), output_type="pt").images
    z = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    times = [1.0, 0.5005, 0.001, 0.0]
    for t, s in pairwise(times):
        z = z + (s - t) * output(mine, z, t, {})
    expected = (z / 2 + 0.5).clamp(0, 1)
    assert expected.std() > 0.1
    torch.testing.assert_close(torch.as_tensor(made), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kind", "refused"), [("vq", True), ("tiny", True), ("kl", False)])
def test_a_scale_for_each_channel(kind: str, refused: bool, tmp_path: Path) -> None:
    """Pipelines know one factor: what cannot take the rest in is refused."""
    mine = model(unet.Config(**SMALL), schedule="linear", parameterization="eps")
    config: Any = {
        "vq": vq.Config(channels=32, multipliers=(1, 1), blocks=1, codes=8, latent_channels=4),
        "tiny": tiny.Config(encoder_width=8, decoder_width=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1)),
        "kl": mine.autoencoder.config,
    }[kind]
    scale = mine.autoencoder.scale
    assert scale is not None
    mine.autoencoder = StoredAutoencoder.of(enlivened(config.build()), config, 16, {}).with_scale(scale)
    if refused:
        with pytest.raises(
            UserError, match=f"LDMPipeline knows one factor, .* of kind '{kind}' cannot take it"
        ):
            pipeline_export.write(mine, tmp_path / "out")
        assert not list(tmp_path.iterdir())
        mine.autoencoder = mine.autoencoder.with_scale(LatentScale(torch.zeros(4), torch.full((4,), 2.0)))
    pipeline_export.write(mine, tmp_path / "out")
    assert diffusers_pipeline.is_denoiser(tmp_path / "out")


def test_the_factor_and_the_names_that_other_programs_know(tmp_path: Path) -> None:
    """ComfyUI and A1111 multiply by 0.18215 whatever a file says, and look for text_model. before each weight."""
    text = tiny_encoders.clip(tmp_path / "clip")
    config = pretrained_text.Config(paths=(str(tmp_path / "clip"),), length=20, padding="read")
    captions = config.learn(diffusers_pipeline._NoData())
    reading = unet.Config(**{**SMALL, "depth": 1})
    mine = model(reading, conditions={"it": captions}, schedule="scaled_linear", parameterization="eps")
    pipeline_export.write(mine, tmp_path / "out")
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
    assert back.vae.config.scaling_factor == 0.18215
    assert mine.autoencoder.scale is not None
    own: Any = mine.autoencoder.module
    z = torch.randn(2, 4, 8, 8, generator=generator(1))
    with torch.no_grad():
        assert_near(back.vae.decode(z / 0.18215).sample, own.decode(mine.autoencoder.scale.unscale(z)))
        picture = torch.rand(2, 3, 16, 16, generator=generator(2)) * 2 - 1
        seen = mine.autoencoder.scale.scale(own.encode(picture).mean)
        assert_near(back.vae.encode(picture).latent_dist.mean * 0.18215, seen)
    names = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors").keys()
    assert all(name.startswith("text_model.") for name in names)
    for there, here_ in zip(back.text_encoder.state_dict().values(), text.state_dict().values(), strict=True):
        assert torch.equal(there, here_)


def test_a_pipeline_in_half_precision(tmp_path: Path) -> None:
    """Saved with variant="fp16" every file has another name; exported they have the usual ones."""
    pipeline = stable_diffusion(tmp_path).to(torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    assert (tmp_path / "half" / "text_encoder" / "model.fp16.safetensors").is_file()
    adopted = diffusers_pipeline.read(tmp_path / "half")
    context = adopted.model.context([{"caption": "red disc"}])
    assert context.tokens is not None
    assert context.tokens.std() > 0.1
    pipeline_export.write(adopted.model, tmp_path / "out")
    diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
    assert diffusers_pipeline.read(tmp_path / "out").model.config.sampling == adopted.model.config.sampling


def test_weights_that_are_not_averaged_are_told(tmp_path: Path) -> None:
    ldm(tmp_path).save_pretrained(tmp_path / "sound", variant="non_ema")
    shutil.copyfile(
        tmp_path / "sound" / "vqvae" / "diffusion_pytorch_model.non_ema.safetensors",
        tmp_path / "sound" / "vqvae" / "diffusion_pytorch_model.safetensors",
    )
    remarks = diffusers_pipeline.read(tmp_path / "sound").remarks
    assert remarks == [
        f"{tmp_path / 'sound' / 'unet'} has only its 'non_ema' weights, which are not averaged over training"
    ]
