"""What cannot be adopted or exported is refused in one line that says what stands there and what is supported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_cases import CASES, diffusers, enlivened, trunk
from safetensors.torch import load_file, save_file

from carrara.autoencoders import fsq, identity, kl, vq
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.errors import UserError
from carrara.interop.diffusers.autoencoder import SCALE, open_autoencoder, read, write
from carrara.interop.diffusers.files import CONFIG, WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound AutoencoderKL of two levels."""
    torch.manual_seed(0)
    diffusers.AutoencoderKL(**trunk((32, 64))).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(folder: Path, **said: Any) -> str:
    """The refusal of the folder when its configuration says this."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | said))
    return refusal(lambda: read(folder)).removeprefix(f"{folder / CONFIG}: ")


def test_the_folder_is_sound(folder: Path) -> None:
    assert read(folder).config.factor == 2


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"act_fn": "mish"}, "'act_fn': 'mish' is not supported; Carrara has 'silu' or 'swish'"),
        (
            {"down_block_types": ["DownEncoderBlock2D", "DownBlock2D"]},
            "'down_block_types.1': 'DownBlock2D' is not supported; Carrara has 'DownEncoderBlock2D' or "
            "'AttnDownEncoderBlock2D'",
        ),
        (
            {"up_block_types": ["UpBlock2D", "UpDecoderBlock2D"]},
            "'up_block_types.0': 'UpBlock2D' is not supported; Carrara has 'UpDecoderBlock2D' or "
            "'AttnUpDecoderBlock2D'",
        ),
        (
            {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
            "up_block_types ['UpDecoderBlock2D', 'UpDecoderBlock2D'] attend at other levels than down_block_types "
            "['DownEncoderBlock2D', 'AttnDownEncoderBlock2D']; Carrara has the same on both sides",
        ),
        (
            {"down_block_types": ["DownEncoderBlock2D"]},
            "down_block_types has 1 levels and block_out_channels 2",
        ),
        ({"norm_num_groups": 16}, "'norm_num_groups': 16 is not supported; Carrara has 32 or 8"),
        (
            {"norm_num_groups": 8},
            "norm_num_groups 8 at a width of 32 (block_out_channels) is not supported; Carrara has 32 groups where "
            "the width is a multiple of 32, else 8",
        ),
        (
            {"block_out_channels": [32, 48]},
            "norm_num_groups 32 at a width of 48 (block_out_channels) is not supported; Carrara has 32 groups where "
            "the width is a multiple of 32, else 8",
        ),
        ({"block_out_channels": []}, "'block_out_channels': "),
        ({"block_out_channels": ["wide"]}, "'block_out_channels.0': "),
        (
            {"out_channels": 4},
            "out_channels is 4 and in_channels 3; Carrara has the same on both sides",
        ),
        ({"scaling_factor": 0}, "'scaling_factor': "),
        ({"latents_mean": [0.0], "latents_std": [1.0]}, "latents_mean has 1 numbers for 4 latent_channels"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 0.0, 1.0, 1.0]}, "'latents_std.1': "),
        ({"layers_per_block": 1_000_000}, "'layers_per_block': "),
        ({"sample_size": []}, "'sample_size."),
        (
            {"mid_block_add_attention2": True},
            "unknown key 'mid_block_add_attention2'; did you mean 'mid_block_add_attention'?",
        ),
        ({"quantization_config": {"bits": 8}}, "unknown key 'quantization_config' (known: act_fn, "),
        (
            {"_class_name": "AsymmetricAutoencoderKL"},
            "_class_name 'AsymmetricAutoencoderKL' is not supported; did you mean 'AutoencoderKL'? (known: "
            "AutoencoderKL, AutoencoderTiny, VQModel)",
        ),
        (
            {"_class_name": "UNet2DConditionModel"},
            "_class_name 'UNet2DConditionModel' is not supported (known: ",
        ),
    ],
)
def test_configurations_of_kl(folder: Path, said: dict[str, Any], line: str) -> None:
    said_of_it = changed(folder, **said)
    assert said_of_it.startswith(line) if line[-1] in " ." else said_of_it == line


def test_keys_of_other_versions_that_ask_for_nothing(folder: Path) -> None:
    wanted = read(folder).hash
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(
        json.dumps(config | {"new_thing": None, "other": False, "_private": {"a": 1}})
    )
    assert read(folder).hash == wanted


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"norm_type": "spatial"}, "'norm_type': 'spatial' is not supported; Carrara has 'group'"),
        (
            {"vq_embed_dim": 8},
            "vq_embed_dim 8 is not supported; Carrara has as many as latent_channels (3)",
        ),
        ({"num_vq_embeddings": 2**40}, "num_vq_embeddings is "),
    ],
)
def test_configurations_of_vq(tmp_path: Path, said: dict[str, Any], line: str) -> None:
    CASES["vq"].build().save_pretrained(tmp_path / "theirs")
    said_of_it = changed(tmp_path / "theirs", **said)
    assert said_of_it.startswith(line) if line.endswith(" ") else said_of_it == line


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"act_fn": "gelu"}, "'act_fn': 'gelu' is not supported; Carrara has 'relu'"),
        ({"upsample_fn": "bilinear"}, "'upsample_fn': 'bilinear' is not supported; Carrara has 'nearest'"),
        ({"upsampling_scaling_factor": 4}, "'upsampling_scaling_factor': 4 is not supported; Carrara has 2"),
        (
            {"encoder_block_out_channels": [64, 64, 64, 32]},
            "encoder_block_out_channels [64, 64, 64, 32] is not supported; Carrara has one width for all",
        ),
        (
            {"num_decoder_blocks": [1]},
            "num_decoder_blocks has 1 levels and decoder_block_out_channels 4",
        ),
        (
            {"num_decoder_blocks": [1], "decoder_block_out_channels": [64]},
            "AutoencoderTiny: encoder_blocks has 4 levels and decoder_blocks 1; expected as many of both",
        ),
        ({"out_channels": 1}, "out_channels is 1 and in_channels 3; Carrara has the same on both sides"),
    ],
)
def test_configurations_of_tiny(tmp_path: Path, said: dict[str, Any], line: str) -> None:
    CASES["tiny"].build().save_pretrained(tmp_path / "theirs")
    assert changed(tmp_path / "theirs", **said) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "is not valid JSON: "),
        ("[]", "does not hold a table"),
        ("{}", "names no _class_name: it does not describe an autoencoder of diffusers"),
        ('{"_class_name": 3}', "names no _class_name"),
    ],
)
def test_a_configuration_that_is_none(folder: Path, text: str, line: str) -> None:
    (folder / CONFIG).write_text(text)
    assert f"{folder / CONFIG} " in (said := refusal(lambda: read(folder)))
    assert line in said


def test_pickles_are_not_opened(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    said = refusal(lambda: read(folder))
    assert said.startswith(
        f"{folder} has only diffusion_pytorch_model.bin, a pickle, which can run any program"
    )
    assert f"from diffusers import AutoencoderKL as A; A.from_pretrained('{folder}'" in said
    assert not Path("pwned").exists()


def test_the_way_out_of_a_pickle_works(folder: Path, tmp_path: Path) -> None:
    wanted = read(folder).hash
    model = diffusers.AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, safe_serialization=False)
    command = refusal(lambda: read(folder)).split('python -c "')[1].removesuffix('"')
    exec(command)
    assert read(f"{folder}-safe").hash == wanted


def test_weights_that_are_not_there_or_damaged(folder: Path) -> None:
    sound = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(sound[: len(sound) // 2])
    assert refusal(lambda: read(folder)).startswith(f"{folder / WEIGHTS} is damaged: ")
    (folder / WEIGHTS).unlink()
    assert refusal(lambda: read(folder)) == f"{folder} is incomplete: it lacks {WEIGHTS}"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: s.pop("quant_conv.bias"), "quant_conv.bias is nothing, expected (8,)"),
        (lambda s: s.update({"loss.weight": torch.zeros(2)}), "loss.weight is (2,), expected nothing"),
        (
            lambda s: s.update({"encoder.conv_in.bias": torch.zeros(3)}),
            "encoder.conv_in.bias is (3,), expected (32,)",
        ),
    ],
)
def test_weights_that_do_not_fit(folder: Path, change: Callable[[dict[str, Any]], Any], line: str) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    assert refusal(lambda: read(folder)) == f"{folder}: the weights do not fit {CONFIG}: {line}"


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": "../outside.safetensors"}}])
def test_an_index_that_leads_astray(folder: Path, index: dict[str, Any]) -> None:
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert "has no weight_map from names of weights to files beside it" in refusal(lambda: read(folder))


def test_a_part_that_is_missing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert "it lacks diffusion_pytorch_model-00001-of-00002.safetensors" in refusal(lambda: read(folder))


def test_a_size_that_does_not_divide(folder: Path) -> None:
    assert refusal(lambda: read(folder, size=17)) == "size is 17; this autoencoder needs a multiple of 2"


@pytest.mark.parametrize(
    "kept",
    [
        {},
        {"mean": [0.0], "std": [1.0]},
        {"mean": [0.0] * 4, "std": [1.0, 1.0, 0.0, 1.0]},
        {"mean": "a", "std": 1},
    ],
)
def test_a_kept_scale_that_is_none(folder: Path, kept: dict[str, Any]) -> None:
    (folder / SCALE).write_text(json.dumps(kept))
    assert refusal(lambda: read(folder)) == f"{folder / SCALE} does not hold mean and std, 4 numbers each"


def test_neither_ours_nor_theirs(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(lambda: open_autoencoder(tmp_path / "empty")) == (
        f"{tmp_path / 'empty'} is no autoencoder: it has neither a model.toml (Carrara) nor a config.json (diffusers)"
    )
    assert "is a file; expected the folder" in refusal(lambda: open_autoencoder(folder / WEIGHTS))
    assert "did you mean 'theirs'?" in refusal(lambda: open_autoencoder(tmp_path / "their"))
    read(folder).save(tmp_path / "run" / "model")
    hint = f"did you mean {str(tmp_path / 'run' / 'model')!r}?"
    assert hint in refusal(lambda: open_autoencoder(tmp_path / "run"))
    assert "is no autoencoder of diffusers: it has no config.json" in refusal(
        lambda: read(tmp_path / "empty")
    )


# --- writing ---

SMALL: dict[str, Any] = {"channels": 8, "blocks": 1, "multipliers": (1, 2)}


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            kl.Config(**SMALL, patch=2),
            "diffusers cannot express it: patch is 2, and its autoencoders have none; to export, train with "
            "--set autoencoder.patch=1 --set autoencoder.multipliers=[1,2,2] --set autoencoder.channels=32",
        ),
        (
            kl.Config(**{**SMALL, "multipliers": (1, 4)}),
            "diffusers cannot express it: widths of 8, 32 have 32 and 8 norm groups, and its autoencoders have one "
            "number for all",
        ),
        (
            vq.Config(**SMALL, cosine=True),
            "diffusers cannot express it: cosine is true, and its VQModel compares by distance",
        ),
        (
            fsq.Config(**SMALL),
            "diffusers cannot express an autoencoder of kind 'fsq', only kl, vq, tiny",
        ),
        (identity.Config(), "diffusers cannot express an autoencoder of kind 'identity', only kl, vq, tiny"),
    ],
)
def test_what_diffusers_has_no_form_for(config: Any, line: str, tmp_path: Path) -> None:
    stored = StoredAutoencoder.of(config.build(), config, 8, {})
    assert refusal(lambda: write(stored, tmp_path / "theirs")) == line
    assert not list(tmp_path.iterdir())


def test_writing_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = kl.Config(**SMALL)
    stored = StoredAutoencoder.of(enlivened(config.build()), config, 8, {})
    scaled = stored.with_scale(LatentScale(torch.zeros(4), torch.ones(4)))
    write(scaled, tmp_path / "theirs")
    before = {p.name: p.read_bytes() for p in (tmp_path / "theirs").iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("carrara.interop.diffusers.autoencoder.write_weights", full)
    assert "No space left on device" in refusal(lambda: write(stored, tmp_path / "theirs"))
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "theirs").iterdir()} == before


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny"])
def test_weights_that_are_damaged(name: str, folder: Path, tmp_path: Path) -> None:
    if name == "AutoencoderTiny":
        folder = tmp_path / "tiny"
        widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        diffusers.AutoencoderTiny(**widths, **blocks).save_pretrained(folder)
    assert read(folder).config.factor == 2
    sound = load_file(folder / WEIGHTS)
    first = next(iter(sound))
    for number in (math.nan, -math.inf):
        save_file({**sound, first: sound[first].clone().fill_(number)}, folder / WEIGHTS)
        assert f"{first} of its weights has values that are no finite numbers" in refusal(
            lambda: read(folder)
        )
    save_file({**sound, first: sound[first][:-1].clone()}, folder / WEIGHTS)
    assert f"the weights do not fit {CONFIG}: {first} is" in refusal(lambda: read(folder))


@pytest.mark.parametrize(
    "said",
    [
        {"encoder_block_out_channels": [10**7] * 4},
        {"decoder_block_out_channels": [10**7] * 4},
    ],
)
def test_a_tiny_autoencoder_larger_than_memory(said: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"_class_name": "AutoencoderTiny", **said}))
    assert "is larger than this machine's memory" in refusal(lambda: read(tmp_path))
