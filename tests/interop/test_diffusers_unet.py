"""Adopted U-Nets compute what diffusers computes, exported ones do so there, and nothing is lost between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_cases import diffusers, enlivened
from torch import Tensor
from unet_cases import CASES, CONDITIONAL, PLAIN, Case, asked, sides

from carrara.denoisers import unet
from carrara.errors import UserError
from carrara.interop.diffusers import unet as diffusers_unet
from carrara.interop.diffusers.autoencoder import modern
from carrara.interop.diffusers.files import CONFIG, read_tensors
from carrara.interop.diffusers.unet import read_unet, write_unet
from carrara.interop.diffusers.unet_conditional_config import UNet2DConditionModel
from carrara.interop.diffusers.unet_config import Extras, UNet2DModel
from carrara.tensors import generator

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own
EVERY = [pytest.param(case, id=name) for name, case in CASES.items()]
STEPS = (0, 1, 500, 999)  # as diffusers counts them


def assert_same(
    network: Any,
    theirs: Any,
    config: unet.Config,
    channels: int,
    widths: dict[str, int],
    extras: Extras,
    tolerance: float = 1e-5,
) -> None:
    """The same output at the first, the last and other steps, from times in float32."""
    z, context, more = asked(theirs, config, channels, widths, extras)
    given = z if context.image is None else torch.cat([z, context.image], 1)
    outs = []
    for step in STEPS:
        with torch.no_grad():
            wanted = theirs(given, torch.full((3,), step), **more).sample
            out = network(z, torch.full((3,), (step + 1) / 1000), context)
        assert 0.05 < wanted.std() < 50
        assert (out - wanted).abs().max() < tolerance * wanted.abs().max(), step
        outs.append(wanted)
    assert (outs[0] - outs[1]).abs().max() > 1e-4, "steps differ"


@pytest.mark.parametrize("case", EVERY)
def test_reading_and_writing_back(case: Case, tmp_path: Path) -> None:
    theirs = case.build()
    theirs.save_pretrained(tmp_path / "theirs")
    found = read_unet(tmp_path / "theirs")
    assert {key: getattr(found.config, key) for key in case.ours} == case.ours
    network = found.network()
    assert_same(network, theirs, found.config, found.channels, found.widths, found.extras)

    assert write_unet(tmp_path / "back", found.config, network, found.extras) == []
    back, info = type(theirs).from_pretrained(
        tmp_path / "back", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(info.values()), info
    assert_same(network, back.eval(), found.config, found.channels, found.widths, found.extras)
    again = read_unet(tmp_path / "back")
    assert again.config == found.config
    assert again.widths == found.widths
    assert again.extras == found.extras
    assert again.state.keys() == found.state.keys()
    assert all(torch.equal(again.state[name], value) for name, value in found.state.items())


OURS: list[Any] = [
    pytest.param({"groups": 8, "multipliers": (1, 2), "attention": (2,)}, {"tokens": 20}, id="text"),
    pytest.param({"attention": (1,), "depth": 0, "vector_layers": "none"}, {"vector": 64}, id="classes"),
    pytest.param({"attention": (), "middle_attention": False, "sines_first": True}, {"image": 2}, id="image"),
]


@pytest.mark.parametrize(("shape", "widths"), OURS)
def test_writing_what_was_trained_here(shape: dict[str, Any], widths: dict[str, int], tmp_path: Path) -> None:
    """Steps are numbered from 1 here and from 0 there: t = n/1000 is their step n - 1 all the same."""
    config = unet.Config(**{"channels": 16, "blocks": 1, "head_width": 8, "groups": 8, **shape})
    assert config.first_step == 1
    network: Any = enlivened(config.build(channels=3, **widths))
    extras = Extras()
    if "vector" in widths:
        extras = Extras(class_table=torch.randn(6, 64, generator=generator(2)))
    remarks = write_unet(tmp_path / "theirs", config, network, extras, passport={"made": "here"})
    assert (tmp_path / "theirs" / "passport.json").is_file()
    assert len(remarks) == ("tokens" in widths)
    said = json.loads((tmp_path / "theirs" / CONFIG).read_text())
    theirs, info = getattr(diffusers, said["_class_name"]).from_pretrained(
        tmp_path / "theirs", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(info.values()), info
    found = read_unet(tmp_path / "theirs")
    assert_same(network, theirs.eval(), config, 3, widths, found.extras, 1e-4 if remarks else 1e-5)


def test_older_names_and_a_pipelines_folder(tmp_path: Path) -> None:
    """Attention was written as convolutions, and under other names."""
    from safetensors.torch import load_file, save_file

    theirs = CASES["latent diffusion's"].build()
    theirs.save_pretrained(tmp_path / "unet")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for today, before in old.items():
            name = name.replace(f".{today}.", f".{before}.")
        return name

    save_file({renamed(name): value for name, value in load_file(file).items()}, file)
    found = read_unet(tmp_path)
    assert_same(found.network(), theirs, found.config, found.channels, found.widths, found.extras)


def test_weights_are_not_copied_and_not_held_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CASES["latent diffusion's"].build().save_pretrained(tmp_path)
    read: dict[str, Tensor] = {}
    monkeypatch.setattr(diffusers_unet, "modern", lambda given: read.update(modern(given)) or read)
    places: list[int] = []
    reading = read_tensors
    monkeypatch.setattr(
        diffusers_unet,
        "read_tensors",
        lambda folder: (given := reading(folder), places.extend(t.data_ptr() for t in given.values()))[0],
    )
    state = read_unet(tmp_path).state
    assert read.keys() == {"class_embedding.weight"}, "all others are given up as they are taken"
    copied = {name for name, value in state.items() if value.data_ptr() not in places}
    assert copied
    assert all(value.is_contiguous() for value in state.values())
    assert all("qkv" in name or "key_value" in name for name in copied), copied


# --- what has no form ---


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "said", "line"),
    [
        (CONDITIONAL, {"only_cross_attention": True}, "only_cross_attention True is not supported"),
        (CONDITIONAL, {"class_embeddings_concat": True}, "'class_embeddings_concat': True is not supported"),
        (CONDITIONAL, {"addition_embed_type": "image"}, "'addition_embed_type': 'image' is not supported"),
        (CONDITIONAL, {"encoder_hid_dim": 8}, "'encoder_hid_dim': 8 is not supported"),
        (CONDITIONAL, {"conv_in_kernel": 1}, "'conv_in_kernel': 1 is not supported"),
        (CONDITIONAL, {"cross_attention_dim": [8, 8, 9, 8]}, "Carrara has one width of tokens"),
        (CONDITIONAL, {"attention_head_dim": [8, 8]}, "attention_head_dim has 2 entries"),
        (
            CONDITIONAL,
            {"transformer_layers_per_block": [[1, 2], 1, 1, 1]},
            "transformer_layers_per_block [[1, 2], 1, 1, 1] is not supported; Carrara has one depth a level",
        ),
        (
            CONDITIONAL,
            {"transformer_layers_per_block": [1, 2, 1, 1], "reverse_transformer_layers_per_block": [1, 1, 1, 1]},
            "the same depths going up as going down",
        ),
        (
            CONDITIONAL,
            {"num_class_embeds": 3, "addition_embed_type": "text_time"},
            "num_class_embeds 3 beside addition_embed_type 'text_time' is not supported; Carrara has one vector",
        ),
        (PLAIN, {"time_embedding_type": "fourier"}, "'time_embedding_type': 'fourier' is not supported"),
        (PLAIN, {"act_fn": "mish"}, "'act_fn': 'mish' is not supported"),
        (PLAIN, {"mid_block_scale_factor": 2}, "'mid_block_scale_factor': 2.0 is not supported"),
        (PLAIN, {"out_channels": 5}, "out_channels is 5 and in_channels 3"),
        (PLAIN, {"attention_head_dim": 9}, "level 1 has 448 channels, no multiple of head_width 9"),
        (PLAIN, {"down_block_types": ["SkipDownBlock2D"] * 4}, "'SkipDownBlock2D' is not supported"),
        (PLAIN, {"up_block_types": ["UpBlock2D"] * 4}, "attend at other levels than down_block_types"),
        (PLAIN, {"norm_num_groups": 5}, "level 0 has 224 channels, no multiple of the 5 norm groups"),
        (PLAIN, {"addition_embed_type": "text"}, "unknown key 'addition_embed_type'"),
        ("UNet3DModel", {}, "_class_name 'UNet3DModel' is not supported; did you mean 'UNet2DModel'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_adopted_is_named(name: str, said: dict[str, Any], line: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"_class_name": name, **said}))
    assert line in refusal(lambda: read_unet(tmp_path))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    CASES["one level"].build().save_pretrained(tmp_path)
    said = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(said | {"layers_per_block": 2}))
    line = "down_blocks.0.attentions.1.group_norm.bias is nothing, expected (16,)"
    assert line in refusal(lambda: read_unet(tmp_path))
    assert "has no config.json" in refusal(lambda: read_unet(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("shape", "widths", "line"),
    [
        ({"patch": 2}, {}, "patch is 2, and its U-Nets have none"),
        ({}, {}, "transformers without tokens to attend to"),
        (
            {"channels": 24, "multipliers": (1, 4), "head_width": 24, "groups": None},
            {"tokens": 5},
            "norms of 8 and 32 groups",
        ),
        ({"depth": 0, "heads": (2, 2)}, {}, "attention heads of widths 8, 16, and UNet2DModel has one width"),
        (
            {"depth": 0, "blocks": (1, 2)},
            {},
            "blocks is [1, 2], and UNet2DModel has one number for all levels",
        ),
        (
            {"depth": 0, "middle_groups": 0, "scale_shift": False},
            {},
            "leaves that norm out with scale_shift only",
        ),
        ({"depth": (1, 0), "attention": (1,)}, {"tokens": 5}, "a middle of two blocks without a transformer"),
        ({"resample_blocks": True}, {"tokens": 5}, "resample_blocks at levels that attend"),
        ({"depth": (1, 2, 1)}, {"tokens": 5}, "depth of the middle differs from the last level's"),
    ],
)
def test_what_cannot_be_exported_is_named(
    shape: dict[str, Any], widths: dict[str, int], line: str, tmp_path: Path
) -> None:
    config = unet.Config(**{"channels": 16, "blocks": 1, "head_width": 16, "groups": 8, **shape})
    network = config.build(channels=3, **widths)
    assert line in refusal(lambda: write_unet(tmp_path / "theirs", config, network))
    assert not (tmp_path / "theirs").exists()


def test_defaults_are_those_of_diffusers() -> None:
    """A key that is absent means what it means there; but for dropped ones every argument is known."""
    import inspect

    for model in (UNet2DModel, UNet2DConditionModel):
        arguments = inspect.signature(getattr(diffusers, model.__name__).__init__).parameters
        ours = model().model_dump()
        for name, argument in arguments.items():
            if name not in ("self", "kwargs"):
                assert ours[name] == argument.default, (model.__name__, name)


def test_tables_hold_the_layers_of_the_classes() -> None:
    """Both directions of a level of no attention have the types that diffusers knows."""
    assert sides("", "Attn")["up_block_types"] == ("AttnUpBlock2D", "UpBlock2D")
    weights: dict[str, Tensor] = CASES["one level"].build().state_dict()
    assert "up_blocks.0.attentions.1.to_q.weight" in weights
