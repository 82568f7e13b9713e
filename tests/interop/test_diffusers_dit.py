"""DiT of diffusers, adopted and exported: the same numbers there and here, and clear words where there is no form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_cases import diffusers, enlivened
from safetensors.torch import load_file, save_file
from torch import Tensor

from carrara.context import Context
from carrara.denoisers import dit
from carrara.errors import UserError
from carrara.interop.diffusers.dit import AdoptedDiT, read_dit, write_dit
from carrara.interop.diffusers.files import CONFIG, WEIGHTS
from carrara.tensors import generator

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 3, "num_embeds_ada_norm": 7, "sample_size": 8
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "published": {"out_channels": 8, "activation_fn": "gelu-approximate", "norm_eps": 1e-5},
    "affine, no bias": {"norm_elementwise_affine": True, "attention_bias": False, "norm_eps": 1e-3},
    "a picture beside z": {"in_channels": 6, "out_channels": 4, "patch_size": 4, "sample_size": 17},
    "both": {
        "in_channels": 5,
        "out_channels": 8,
        "patch_size": 1,
        "sample_size": 5,
        "upcast_attention": True,
    },
    "one block": {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 20, "in_channels": 3},
    "gelu": {"activation_fn": "gelu", "dropout": 0.1},
    "geglu": {"activation_fn": "geglu"},
    "geglu-approximate": {"activation_fn": "geglu-approximate"},
    "swiglu": {"activation_fn": "swiglu"},
    "linear-silu": {"activation_fn": "linear-silu", "num_attention_heads": 6, "attention_head_dim": 2},
}


def drawn(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.DiTTransformer2DModel(**{**SMALL, **arguments})


def alike(theirs: Any) -> Any:
    """What every block embeds for itself, the same in all: as released weights are."""
    first = theirs.transformer_blocks[0].norm1.emb.state_dict()
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return theirs


def network(adopted: AdoptedDiT) -> dit.DiT:
    built = adopted.config.build(channels=adopted.channels, **adopted.roles)
    built.load_state_dict(adopted.state)
    return built.eval()


def both(
    ours: dit.DiT, theirs: Any, vectors: Tensor | None, channels: int, side: int
) -> tuple[Tensor, Tensor]:
    """Outputs at several steps and classes, the null among them. ``vectors`` is our class table."""
    draw = generator(side)
    classes, steps = torch.tensor([0, 3, 6, 7]), torch.tensor([0, 999, 1, 501])
    z = torch.randn(4, theirs.config.in_channels, side, side, generator=draw)
    beside = z[:, channels:] if z.shape[1] > channels else None
    context = Context(vector=None if vectors is None else vectors[classes], image=beside)
    with torch.no_grad():
        expected = theirs(z, timestep=steps, class_labels=classes * (vectors is not None)).sample
        return ours(z[:, :channels], (steps + 1) / 1000, context), expected


def assert_agree(found: Tensor, expected: Tensor) -> None:
    scale = expected.std()
    assert 0.1 < scale < 10
    assert expected.std(0).max() > 0.1
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("same", [True, False], ids=["released", "drawn"])
def test_reading_and_writing_back(name: str, same: bool, tmp_path: Path) -> None:
    theirs = enlivened(drawn(**CASES[name]))
    if same:
        theirs = alike(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    adopted = read_dit(tmp_path / "theirs")
    ours, blocks = network(adopted), theirs.config.num_layers
    assert adopted.config.own_embeddings == (not same and blocks > 1)
    assert adopted.table.shape == (8, ours.config.width * (blocks if adopted.config.own_embeddings else 1))
    assert adopted.config.learnt_variance == (name in ("published", "both"))
    for side in (adopted.size // ours.factor * ours.factor, 3 * ours.factor):
        assert_agree(*both(ours, theirs, adopted.table, adopted.channels, side))

    write_dit(tmp_path / "back", ours, size=adopted.size, table=adopted.table)
    back, info = diffusers.DiTTransformer2DModel.from_pretrained(
        tmp_path / "back", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(info.values()), info
    assert_agree(
        *both(ours, back.eval(), adopted.table, adopted.channels, adopted.size // ours.factor * ours.factor)
    )
    again = read_dit(tmp_path / "back")
    assert again.config == adopted.config
    assert all(torch.equal(value, adopted.state[key]) for key, value in again.state.items())
    assert torch.equal(again.table, adopted.table)


def test_as_it_is_drawn_there(tmp_path: Path) -> None:
    """Without a hand on its weights: each block has other embeddings."""
    theirs = drawn(out_channels=8).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    adopted = read_dit(tmp_path / "theirs")
    assert adopted.config.own_embeddings
    assert_agree(*both(network(adopted), theirs, adopted.table, 4, 8))


OURS: dict[str, dict[str, Any]] = {
    "plain": {"vector_layers": "none"},
    "layers for the vector": {"feed_forward": "swiglu", "ratio": 6.0, "learnt_variance": True},
    "one steering layer, bottleneck": {"adaln": "shared", "bottleneck": 5, "patch": 4},
    "no classes": {"qkv_bias": False},
}


@pytest.mark.parametrize("name", OURS)
def test_writing_what_was_trained_here(name: str, tmp_path: Path) -> None:
    config = dit.Config(width=16, depth=2, heads=2, frequency_shift=1, first_step=0, **OURS[name])
    classes = name != "no classes"
    ours = enlivened(config.build(channels=3, vector=16 if classes else None))
    table = torch.randn(8, 16, generator=generator(2)) if classes else None
    remarks = write_dit(tmp_path / "theirs", ours, size=16, table=table, passport={"licences": ["CC0-1.0"]})
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "theirs", low_cpu_mem_usage=False)
    assert_agree(*both(ours, theirs.eval(), table, 3, 16))
    assert [word in " ".join(remarks) for word in ("without classes", "variance", "bottleneck")] == [
        not classes, config.learnt_variance, bool(config.bottleneck)
    ]  # fmt: skip
    assert json.loads((tmp_path / "theirs" / "passport.json").read_text()) == {"licences": ["CC0-1.0"]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"norm": "rms"},
            "norm is 'rms', and its DiT has 'layer'; to export, .* model.denoiser.norm=layer",
        ),
        ({"positions": "both"}, "positions is 'both'"),
        ({"qk_norm": True}, "model.denoiser.qk_norm=false"),
        ({"frequency_shift": 0.0}, "model.denoiser.frequency_shift=1.0"),
        ({"first_step": 1}, "model.denoiser.first_step=0"),
        ({"feed_forward": "swiglu"}, "feed-forward is 40 wide, and its DiT has 64; .*denoiser.ratio=6"),
        ({}, "its vector comes from another condition than one class"),
    ],
)
def test_what_diffusers_cannot_express(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    shape = {"width": 16, "depth": 1, "heads": 2, "frequency_shift": 1, "first_step": 0}
    network = dit.Config(**shape | values).build(channels=3, vector=4)
    with pytest.raises(UserError, match=said):
        write_dit(tmp_path / "theirs", network, size=16)
    with pytest.raises(UserError, match="it reads tokens"):
        write_dit(tmp_path / "theirs", dit.Config(**shape).build(channels=3, tokens=4), size=16)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    drawn(num_layers=1).save_pretrained(tmp_path / "pipeline" / "transformer")
    return tmp_path / "pipeline" / "transformer"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm_type": "ada_norm_single"}, "'norm_type': 'ada_norm_single' is not supported; Carrara has"),
        ({"activation_fn": "relu"}, "'activation_fn': 'relu' is not supported; Carrara has 'gelu-approximate' or "),
        ({"out_channels": 9}, "out_channels 9 is not supported with in_channels 4"),
        ({"attention_head_dim": 9}, "width 18 is no multiple of 4"),
        ({"sample_size": 1}, "sample_size 1 is less than patch_size 2"),
        ({"num_layers": 2}, r"the weights do not fit config.json: transformer_blocks.1.\S+ is nothing, expected"),
        ({"num_embeds_ada_norm": 9}, r"embedding_table.weight is \(8, 24\), expected \(10, 24\)"),
        ({"interpolation": "cubic"}, "unknown key 'interpolation'"),
        ({"_class_name": "DiTTransformer3DModel"}, "did you mean 'DiTTransformer2DModel'"),
        ({"_class_name": None}, "names no _class_name"),
    ],
)  # fmt: skip
def test_what_carrara_has_no_form_for(change: dict[str, Any], said: str, folder: Path) -> None:
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | change))
    with pytest.raises(UserError, match=said) as caught:
        read_dit(folder)
    assert "\n" not in str(caught.value)


def test_a_pipeline_an_older_class_and_half_precision(folder: Path) -> None:
    adopted = read_dit(folder)
    weights = {name: value.half() for name, value in load_file(folder / WEIGHTS).items()}
    save_file(
        weights | {"pos_embed.pos_embed": torch.zeros(1, 16, 24)}, folder / WEIGHTS
    )  # once kept, now computed
    said = json.loads((folder / CONFIG).read_text()) | {
        "_class_name": "Transformer2DModel", "attention_type": "default", "caption_channels": None,
        "double_self_attention": False,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(said))
    again = read_dit(folder.parent)
    assert again.config == adopted.config
    assert {value.dtype for value in again.state.values()} == {torch.float32}
    torch.testing.assert_close(again.table, adopted.table, rtol=1e-3, atol=1e-3)
    del said["norm_type"]
    (folder / CONFIG).write_text(json.dumps(said))
    with pytest.raises(UserError, match="'norm_type': 'layer_norm' is not supported"):
        read_dit(folder)


def test_only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"has only diffusion_pytorch_model\.bin, a pickle"):
        read_dit(folder)
