"""Whole models of diffusers: adopted they sample what they sampled there, exported they are read there again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_cases import diffusers, enlivened, trunk
from torch import Tensor

import tiny_encoders
from carrara.generation.model import Model, load_model
from carrara.generation.sample import Settings, denoise
from carrara.tensors import PictureNoise
from conftest import Here

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

STEPS = 5
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PLAIN = {"clip_sample": False, "timestep_spacing": "trailing"}


def plain_unet(channels: int = 3, **others: Any) -> Any:
    return diffusers.UNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            **others,
        }
    )


def text_unet(**others: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "cross_attention_dim": tiny_encoders.WIDTH,
            **others,
        }
    )


def vae(**others: Any) -> Any:
    return diffusers.AutoencoderKL(**trunk((32, 32), latent_channels=4, **others))


def encoder(folder: Path, **others: Any) -> tuple[Any, Any]:
    import transformers

    model = tiny_encoders.clip(folder, **others)
    return model, transformers.CLIPTokenizer.from_pretrained(folder)


def stable_diffusion(folder: Path, **scheduler: Any) -> Any:
    text, words = encoder(folder / "clip")
    return diffusers.StableDiffusionPipeline(
        unet=enlivened(text_unet()),
        vae=enlivened(vae(scaling_factor=0.3)),
        text_encoder=text,
        tokenizer=words,
        scheduler=diffusers.DDIMScheduler(**SCALED, **PLAIN, **scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(folder: Path) -> Any:
    (one, words), (two, words2) = (
        encoder(folder / "one"),
        encoder(folder / "two", projection=12, width=24, pad="!"),
    )
    size = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    unet = text_unet(**size, projection_class_embeddings_input_dim=12 + 48, cross_attention_dim=40)
    return diffusers.StableDiffusionXLPipeline(
        unet=enlivened(unet),
        vae=enlivened(vae(latents_mean=[0.1, 0.2, -0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 1.5])),
        text_encoder=one,
        text_encoder_2=two,
        tokenizer=words,
        tokenizer_2=words2,
        scheduler=diffusers.DDIMScheduler(**SCALED, **PLAIN),
        add_watermarker=False,
    )


def ddim(folder: Path) -> Any:
    scheduler = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    return diffusers.DDIMPipeline(unet=enlivened(plain_unet()), scheduler=scheduler)


def ldm(folder: Path) -> Any:
    vqvae = diffusers.VQModel(**trunk((32, 32), latent_channels=3, num_vq_embeddings=16))
    scheduler = diffusers.DDIMScheduler(**PLAIN, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    return diffusers.LDMPipeline(vqvae=enlivened(vqvae), unet=enlivened(plain_unet()), scheduler=scheduler)


def dit(folder: Path) -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        out_channels=8,
        sample_size=8,
        norm_eps=1e-5,
        num_embeds_ada_norm=1000,
    )
    return diffusers.DiTPipeline(
        transformer=enlivened(transformer),
        vae=enlivened(vae()),
        scheduler=diffusers.DDIMScheduler(**PLAIN),
    )


PIPELINES: dict[str, Callable[[Path], Any]] = {
    f.__name__: f for f in (stable_diffusion, sdxl, ddim, ldm, dit)
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "stable_diffusion": [
        {"caption": "red disc", "negative": "blue"},
        {"caption": "a bar " * 20, "negative": "x"},
    ],
    "sdxl": [{"caption": "red disc", "size": "16x24"}, {"caption": "a bar", "size": "16x24"}],
    "ddim": [{}, {}],
    "ldm": [{}, {}],
    "dit": [{"label": "thing 3, other name"}, {"label": "crane (999)"}],
}
NAMES = {str(n): f"thing {n}, other name" for n in range(998)} | {"998": "crane", "999": "crane"}
GUIDANCE = 2.5


def ours(model: Model, rows: list[dict[str, Any]], grid: str) -> Tensor:
    """The latents that our DDIM ends with."""
    settings = Settings(sampler="ddim", grid=grid, steps=STEPS, guidance=GUIDANCE)
    return list(denoise(model, rows, range(len(rows)), settings))[-1].z


def theirs(name: str, pipeline: Any, rows: list[dict[str, Any]], z: Tensor) -> Tensor:
    """The latents that diffusers' pipeline ends with, begun at ``z``; where it takes none, by its own steps."""
    pipeline.set_progress_bar_config(disable=True)
    words = [row.get("caption") for row in rows]
    both = {"latents": z, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}
    if name == "stable_diffusion":
        return pipeline(words, negative_prompt=[row["negative"] for row in rows], **both).images
    if name == "sdxl":
        return pipeline(words, height=16, width=16, original_size=(24, 16), target_size=(16, 16),
                        negative_original_size=(24, 16),
                        negative_target_size=(16, 16), **both).images  # fmt: skip
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    classes = torch.tensor([3, 999, 1000, 1000])
    for t in scheduler.timesteps:
        with torch.no_grad():
            if name == "dit":
                out = pipeline.transformer(z.repeat(2, 1, 1, 1), t[None].expand(4), class_labels=classes)
                with_it, without = out.sample[:, :4].chunk(2)
                out = without + GUIDANCE * (with_it - without)
            else:
                out = pipeline.unet(z, t).sample
        z = scheduler.step(out, t, z, use_clipped_model_output=True).prev_sample
    return z


@pytest.mark.parametrize("name", PIPELINES)
def test_they_sample_the_same(name: str, tmp_path: Path, here: Here) -> None:
    pipeline = PIPELINES[name](tmp_path)
    pipeline.save_pretrained(tmp_path / "theirs")
    if name == "dit":  # as the released ones have it; the library reads it, but does not write it
        index = tmp_path / "theirs" / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": NAMES}))
    done = here("adopt", "theirs", "mine", "--licence", "CC0-1.0")
    assert done.status == 0, done.err
    model = load_model(tmp_path / "mine")
    assert model.passport["licences"] == ["CC0-1.0"]
    assert model.size == 8 * model.autoencoder.module.factor  # type: ignore[operator]
    grid = pipeline.scheduler.config.timestep_spacing
    first = 1.0 if grid == "trailing" else (1000 // STEPS * (STEPS - 1) + 1) / 1000
    noise = PictureNoise(0, [0, 1]).draw(model.latent_shape)
    z = noise * model.diffusion.schedule.sigma(torch.tensor(first, dtype=torch.float64)).float()
    found, expected = ours(model, ROWS[name], grid), theirs(name, pipeline, ROWS[name], z)
    spread = expected.std()
    assert expected.std(0).mean() > 0.05 * spread, "two pictures differ"
    torch.testing.assert_close(found / spread, expected / spread, rtol=0, atol=1e-4)

    done = here("export", "mine", "back")
    assert done.status == 0, done.err
    back = type(pipeline).from_pretrained(tmp_path / "back", low_cpu_mem_usage=False)
    step = torch.tensor(601)
    a, b = one_step(pipeline, z, step), one_step(back, z, step)
    assert 0.1 < a.std() < 10
    torch.testing.assert_close(b / a.std(), a / a.std(), rtol=0, atol=1e-5)
    processes = [pipe.scheduler.alphas_cumprod for pipe in (pipeline, back)]
    torch.testing.assert_close(*processes, rtol=0, atol=0)
    assert back.scheduler.config.prediction_type == pipeline.scheduler.config.prediction_type
    if name in ("stable_diffusion", "sdxl"):  # whose pipelines take the noise: encoders and sampler, too
        torch.testing.assert_close(theirs(name, back, ROWS[name], z), expected, rtol=1e-4, atol=1e-4)
    if name == "dit":
        assert back.labels["thing 3"] == 3
    assert_decode_alike(pipeline, back, expected)


def assert_decode_alike(a: Any, b: Any, latent: Tensor) -> None:
    """Both pipelines' pictures of a latent, as their own code scales it."""
    pictures = []
    for pipeline in (a, b):
        module = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
        if module is None:
            return
        raw = latent / module.config.scaling_factor
        if getattr(module.config, "latents_mean", None) is not None:
            mean, std = (torch.tensor(getattr(module.config, f"latents_{n}")) for n in ("mean", "std"))
            raw = raw * std[:, None, None] + mean[:, None, None]
        with torch.no_grad():
            pictures.append(module.decode(raw).sample)
    assert pictures[0].std() > 0.05
    torch.testing.assert_close(*pictures, rtol=1e-4, atol=1e-4)


def one_step(pipeline: Any, z: Tensor, step: Tensor) -> Tensor:
    """What the network says of two latents, given some context where it reads one."""
    if hasattr(pipeline, "transformer"):
        with torch.no_grad():
            return pipeline.transformer(z, step[None].expand(2), class_labels=torch.tensor([5, 1000])).sample
    more: dict[str, Any] = {}
    if hasattr(pipeline, "text_encoder"):
        draw = torch.Generator().manual_seed(0)
        width = pipeline.unet.config.cross_attention_dim
        more = {"encoder_hidden_states": torch.randn(2, 7, width, generator=draw)}
        if hasattr(pipeline, "text_encoder_2"):
            times = torch.tensor([[16.0, 24, 0, 4, 16, 16]] * 2)
            more["added_cond_kwargs"] = {
                "text_embeds": torch.randn(2, 12, generator=draw),
                "time_ids": times,
            }
    with torch.no_grad():
        return pipeline.unet(z, step, **more).sample
