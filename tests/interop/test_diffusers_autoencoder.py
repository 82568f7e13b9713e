"""Adopted autoencoders compute what diffusers computes, exported ones do so there, and nothing is lost between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_cases import CASES, Case, diffusers, enlivened, pictures, trunk
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from carrara.autoencoders import kl, tiny, vq
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder, load_autoencoder
from carrara.interop.diffusers.autoencoder import SCALE, names, open_autoencoder, read, write
from carrara.interop.diffusers.files import CONFIG, WEIGHTS
from carrara.tensors import generator

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

EVERY = [pytest.param(case, id=name) for name, case in CASES.items()]


def encoded(theirs: Any, image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and log-variance as diffusers computes them; None where it has one point."""
    said = theirs.encode(image)
    if hasattr(said, "latent_dist"):
        return said.latent_dist.mean, said.latent_dist.logvar
    return said.latents, None


def assert_same(ours: Any, theirs: Any, factor: int, image_channels: int, latent_channels: int) -> None:
    """Encoding and decoding agree, at values that tell something."""
    image = pictures(image_channels, factor)
    latent = torch.randn(3, latent_channels, 4, 6, generator=generator(5))
    with torch.no_grad():
        encoding, (mean, logvar) = ours.encode(image), encoded(theirs, image)
        picture, expected = ours.decode(latent), theirs.decode(latent).sample
        again, expected_again = ours.decode(encoding.mode()), theirs.decode(mean).sample
    assert 0.1 < mean.std() < 10
    assert mean.std(0).max() > 0.1
    assert 0.1 < expected.std() < 10
    assert expected.std(0).max() > 0.1
    torch.testing.assert_close(encoding.mode(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(picture, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again, expected_again, rtol=1e-5, atol=1e-5)
    if logvar is None:
        assert torch.equal(encoding.logvar, torch.full_like(mean, -torch.inf))
    else:
        assert logvar.std() > 0.1
        assert logvar.abs().max() < 20, "not clamped"
        torch.testing.assert_close(encoding.logvar, logvar, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", EVERY)
def test_reading_and_writing_back(case: Case, tmp_path: Path) -> None:
    theirs = enlivened(case.build())
    theirs.save_pretrained(tmp_path / "theirs")
    stored = read(tmp_path / "theirs")
    assert (stored.config.factor, stored.module.channels) == (case.factor, case.channels)
    assert {key: getattr(stored.config, key) for key in case.ours} == case.ours
    assert not stored.module.training
    assert_same(stored.module, theirs, case.factor, theirs.config.in_channels, case.channels)
    if isinstance(stored.module, vq.Autoencoder):
        latent = stored.module.encode(pictures(3, case.factor)).mode()
        assert len(stored.module.indices(latent).unique()) > 8, "several codes are in use"

    write(stored, tmp_path / "back")
    back, info = type(theirs).from_pretrained(
        tmp_path / "back", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(info.values()), info
    assert_same(stored.module, back.eval(), case.factor, theirs.config.in_channels, case.channels)
    # Sizes become one number, one projection becomes two (one the identity); the scale is compared below.
    said = {"sample_size", "use_quant_conv", "use_post_quant_conv"}
    said |= {"scaling_factor", "latents_mean", "latents_std"}
    for key, value in theirs.config.items():
        if key not in said and not key.startswith("_") and value is not None:
            assert back.config[key] == json.loads(json.dumps(value)), key

    again = read(tmp_path / "back")
    assert (again.hash, again.config, again.size) == (stored.hash, stored.config, stored.size)
    assert again.scale is not None
    assert stored.scale is not None
    torch.testing.assert_close(again.scale.mean, stored.scale.mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(again.scale.std, stored.scale.std, rtol=1e-6, atol=0)


OURS = [
    pytest.param(
        kl.Config(channels=16, multipliers=(1, 3), blocks=2, attention=(2,), latent_channels=6), id="kl"
    ),
    pytest.param(kl.Config(channels=32, multipliers=(2,), blocks=1, projections=False), id="kl bare"),
    pytest.param(vq.Config(channels=32, multipliers=(1, 2, 1), blocks=1, codes=70), id="vq"),
    pytest.param(
        vq.Config(channels=8, multipliers=(1, 1), blocks=1, codes=40, projections=False, learning="gradient"),
        id="vq bare",
    ),
    pytest.param(tiny.Config(encoder_blocks=(1, 1, 0), decoder_blocks=(0, 2, 1), latent_channels=2), id="tiny"),
]  # fmt: skip


@pytest.mark.parametrize("config", OURS)
def test_writing_what_was_trained_here(config: Any, tmp_path: Path) -> None:
    module = enlivened(config.build())
    scale = LatentScale(torch.randn(config.latent_channels), torch.rand(config.latent_channels) + 0.5)
    stored = StoredAutoencoder.of(module, config, 8 * config.factor, {"licences": ["CC0-1.0"]})
    remarks = write(stored.with_scale(scale), tmp_path / "theirs")
    said = json.loads((tmp_path / "theirs" / CONFIG).read_text())
    theirs, info = getattr(diffusers, said["_class_name"]).from_pretrained(
        tmp_path / "theirs", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(info.values()), info
    assert_same(module, theirs.eval(), config.factor, 3, config.latent_channels)
    assert len(remarks) == 1
    if config.kind == "kl":
        assert "latents_mean" in remarks[0]
        assert said["scaling_factor"] == 1.0
        assert said["latents_std"] == pytest.approx(scale.std.tolist())
        assert not (tmp_path / "theirs" / SCALE).exists()
    else:
        assert SCALE in remarks[0]
    again = read(tmp_path / "theirs")
    assert again.scale is not None
    torch.testing.assert_close(again.scale.mean, scale.mean)
    torch.testing.assert_close(again.scale.std, scale.std)
    assert again.passport["licences"] == ["CC0-1.0"]
    assert again.size == (256 if config.kind == "tiny" else 8 * config.factor)


def test_a_scale_that_was_never_measured(tmp_path: Path) -> None:
    config = kl.Config(channels=8, multipliers=(1,), blocks=1)
    (remark,) = write(StoredAutoencoder.of(config.build(), config, 8, {}), tmp_path / "theirs")
    assert "never measured" in remark
    assert json.loads((tmp_path / "theirs" / CONFIG).read_text())["scaling_factor"] == 1.0


def test_latent_scales_are_what_pipelines_compute(tmp_path: Path) -> None:
    raw = torch.randn(2, 4, 3, 3, generator=generator(2))
    mean, std = [0.1, -0.2, 0.3, 0.4], [0.5, 2.0, 3.0, 4.0]
    wide = [torch.tensor(x)[:, None, None] for x in (mean, std)]
    for number, (said, expected) in enumerate(
        [
            ({}, raw * 0.18215),
            ({"scaling_factor": 0.13025}, raw * 0.13025),
            ({"scaling_factor": 1.5305, "shift_factor": 0.0609}, (raw - 0.0609) * 1.5305),
            (
                {"scaling_factor": 0.5, "latents_mean": mean, "latents_std": std},
                (raw - wide[0]) * 0.5 / wide[1],
            ),
            ({"scaling_factor": 0.5, "latents_mean": mean}, raw * 0.5),
        ]
    ):
        folder = tmp_path / str(number)
        diffusers.AutoencoderKL(**trunk((32,)), **said).save_pretrained(folder)
        scale = read(folder).scale
        assert scale is not None
        torch.testing.assert_close(scale.scale(raw), expected)
        torch.testing.assert_close(scale.unscale(expected), raw)
        remarks = write(read(folder), tmp_path / f"{number}-back")
        assert bool(remarks) == ("latents_std" in said)
        back = json.loads((tmp_path / f"{number}-back" / CONFIG).read_text())
        if not remarks:
            assert back["scaling_factor"] == said.get("scaling_factor", 0.18215)
            assert back.get("shift_factor") == said.get("shift_factor")


PUBLISHED = {
    "stable diffusion 1": (
        "AutoencoderKL", trunk((128, 256, 512, 512), layers_per_block=2), 83_653_863),
    "flux": (
        "AutoencoderKL",
        trunk((128, 256, 512, 512), layers_per_block=2, latent_channels=16, use_quant_conv=False,
              use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159),
        83_819_683),
    "vq-f4": (
        "VQModel", trunk((128, 256, 512), layers_per_block=2, num_vq_embeddings=8192), 55_322_782),
    "amused": (
        "VQModel",
        trunk((128, 256, 256, 512, 768), layers_per_block=2, latent_channels=64, num_vq_embeddings=8192,
              mid_block_add_attention=False, lookup_from_codebook=True),
        None),
    "taesd": ("AutoencoderTiny", {}, 2_445_063),
    "taef1": ("AutoencoderTiny", {"latent_channels": 16}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_by_name_and_shape(name: str) -> None:
    from carrara.interop.diffusers.autoencoder_config import file_config

    class_name, arguments, count = PUBLISHED[name]
    with torch.device("meta"):
        theirs = getattr(diffusers, class_name)(**arguments)
    config = file_config({"_class_name": class_name, **theirs.config}, name).adopt().config
    with torch.device("meta"):
        ours = config.build()
    shapes = {ours_: ours.get_parameter(ours_).shape for ours_ in names(ours)}
    assert {theirs_: shapes[ours_] for ours_, theirs_ in names(ours).items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    assert shapes.keys() == dict(ours.named_parameters()).keys(), "none is forgotten"
    assert sum(shape.numel() for shape in shapes.values()) == sum(p.numel() for p in theirs.parameters())
    if count is not None:
        assert sum(shape.numel() for shape in shapes.values()) == count


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An AutoencoderKL with attention, as diffusers saves it."""
    enlivened(CASES["the other projection, 8 groups"].build()).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_old_names_and_shapes(folder: Path) -> None:
    wanted = read(folder).hash
    state, old = load_file(folder / WEIGHTS), {}
    for name, value in state.items():
        before = name
        for today, once in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            before = before.replace(f".{today}.", f".{once}.")
        as_convolution = before != name and name.endswith("weight")
        old[before] = value[:, :, None, None].contiguous() if as_convolution else value
    assert len([name for name in old if ".proj_attn." in name]) == 12
    save_file(old, folder / WEIGHTS)
    assert read(folder).hash == wanted


def test_files_of_half_precision_and_in_parts(tmp_path: Path, folder: Path) -> None:
    full = read(folder)
    theirs = diffusers.AutoencoderKL.from_pretrained(folder)

    theirs.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    assert len(list((tmp_path / "parts").glob("*-of-*.safetensors"))) > 2
    assert not (tmp_path / "parts" / WEIGHTS).exists()
    assert read(tmp_path / "parts").hash == full.hash

    half = theirs.half()
    half.save_pretrained(tmp_path / "half", variant="fp16")
    half.save_pretrained(tmp_path / "both", variant="fp16", max_shard_size="40KB")
    rounded = read(tmp_path / "half")
    assert rounded.hash == read(tmp_path / "both").hash != full.hash
    assert {p.dtype for p in rounded.module.parameters()} == {torch.float32}
    for name, value in rounded.module.state_dict().items():
        torch.testing.assert_close(value, full.module.state_dict()[name].half().float(), rtol=0, atol=0)
    (folder / WEIGHTS).rename(tmp_path / "both" / WEIGHTS)
    assert read(tmp_path / "both").hash == full.hash, "full precision goes first"


@pytest.mark.parametrize("inside", ["vae", "vqvae", "movq"])
def test_a_pipeline_holds_it_inside(folder: Path, tmp_path: Path, inside: str) -> None:
    wanted = read(folder).hash
    (tmp_path / "pipeline").mkdir()
    folder.rename(tmp_path / "pipeline" / inside)
    assert open_autoencoder(tmp_path / "pipeline").hash == wanted


def test_sizes(tmp_path: Path) -> None:
    for said, expected in ((512, 512), ([1024, 768], 768), (100, 96), (3, 8), (None, 256)):
        diffusers.AutoencoderKL(**trunk((32,) * 4)).save_pretrained(tmp_path / "a")
        config = json.loads((tmp_path / "a" / CONFIG).read_text())
        config.pop("sample_size")
        (tmp_path / "a" / CONFIG).write_text(json.dumps(config | ({"sample_size": said} if said else {})))
        assert read(tmp_path / "a").size == expected
        assert read(tmp_path / "a", size=64).size == 64


def test_it_is_a_carrara_model_like_any_other(folder: Path, tmp_path: Path) -> None:
    stored = read(folder, licence="MIT")
    assert stored.passport["licences"] == ["MIT"]
    assert stored.passport["adopted"] == {"format": "diffusers", "class": "AutoencoderKL", "from": "theirs"}
    stored.save(tmp_path / "ours")
    loaded = load_autoencoder(tmp_path / "ours")
    assert (loaded.hash, loaded.config, loaded.passport) == (stored.hash, stored.config, stored.passport)
    assert open_autoencoder(tmp_path / "ours").hash == open_autoencoder(folder).hash == stored.hash


@pytest.mark.parametrize("name", ["stable diffusion, narrow", "vq", "tiny"])
def test_training_goes_on_from_it(name: str, tmp_path: Path) -> None:
    """One pass in training mode moves every weight that diffusers knows, and begins no codebook anew."""
    case = CASES[name]
    enlivened(case.build()).save_pretrained(tmp_path / "theirs")
    module = read(tmp_path / "theirs").module.train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    image = pictures(3, case.factor)
    with torch.no_grad():
        expected = module.decode(module.encode(image).mode())  # type: ignore[operator]
    out = module(image, torch.zeros(3, case.channels, 4, 6))
    torch.testing.assert_close(out.picture, expected, rtol=1e-4, atol=1e-4)
    loss = (out.picture - image).square().mean() + sum(out.terms.values())
    loss.backward()
    still = [key for key, p in module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []
    assert isinstance(module, nn.Module)
    for key in names(module):
        assert torch.equal(before[key], module.state_dict()[key]), "only an optimizer changes it"
