"""U-Net: what its configuration expresses is what the network does, and what cannot hold is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from carrara.context import Context
from carrara.denoisers import unet
from carrara.denoisers.time_features import frequencies, time_features
from carrara.denoisers.unet_blocks import Resample, ResidualBlock, SelfAttention, SpatialTransformer
from carrara.errors import UserError
from carrara.tensors import generator

SMALL: dict[str, Any] = {"channels": 8, "blocks": 1, "head_width": 8}


def built(widths: dict[str, int] | None = None, seed: int = 3, **shape: Any) -> unet.UNet:
    """A small network away from its zeros."""
    torch.manual_seed(seed)
    draw = generator(seed)
    network = unet.Config(**SMALL | shape).build(channels=3, **(widths or {}))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return network.eval()


def given(network: unet.UNet, widths: dict[str, int] | None = None) -> tuple[Tensor, Tensor, Context]:
    draw = generator(7)
    widths = widths or {}
    z = torch.randn(2, 3, 2 * network.factor, 4 * network.factor, generator=draw)
    context = Context(
        tokens=torch.randn(2, 5, widths["tokens"], generator=draw) if "tokens" in widths else None,
        vector=torch.randn(2, widths["vector"], generator=draw) if "vector" in widths else None,
        image=torch.randn(2, widths["image"], *z.shape[2:], generator=draw) if "image" in widths else None,
    )
    return z, torch.tensor([0.2, 0.7]), context


VARIANTS: list[tuple[dict[str, Any], dict[str, int]]] = [
    ({"depth": 0, "resample_blocks": True, "asymmetric": True}, {"image": 4}),
    ({"depth": (2, 0), "resample_blocks": (True, False), "learnt_variance": True}, {"tokens": 6, "image": 1}),
    ({"depth": (1, 0, 2), "heads": (1, 2, 4), "projections": "convolution"}, {"tokens": 6, "vector": 5}),
    (
        {"middle_blocks": 1, "vector_layers": "linear", "patch": 2, "blocks": (1, 2)},
        {"vector": 5, "tokens": 6},
    ),
    ({"middle_blocks": 0, "vector_layers": "none", "embedding": 12, "scale_shift": False}, {"vector": 12}),
    ({"attention": (), "middle_attention": True, "depth": 0, "middle_groups": 0, "groups": 4}, {}),
    ({"multipliers": (1, 1.5), "groups": 4, "head_width": 4, "unit_input": True, "sines_first": True}, {}),
]


@pytest.mark.parametrize(("shape", "widths"), VARIANTS)
def test_every_weight_moves_the_output_and_every_role_is_read(
    shape: dict[str, Any], widths: dict[str, int]
) -> None:
    network = built(widths, **shape)
    assert widths.keys() <= network.config.roles
    z, t, context = given(network, widths)
    out = network(z, t, context)
    assert out.shape == (2, 6 if shape.get("learnt_variance") else 3, *z.shape[2:])
    out.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    with torch.no_grad():
        for name, value in context.roles().items():
            other = network(z, t, Context(**context.roles() | {name: value + 1}))
            assert (other - out).abs().max() > 1e-4, name


def test_blocks_are_the_layers_between_the_ends_in_their_order() -> None:
    network = built({"tokens": 6}, depth=(0, 1), resample_blocks=(True, False), attention=(1, 2))
    ran: list[nn.Module] = []
    for block in network.blocks():
        block.register_forward_hook(lambda module, *_: ran.append(module))
    z, t, context = given(network, {"tokens": 6})
    network(z, t, context)
    assert ran == network.blocks()
    kinds = {type(block) for block in ran}
    assert kinds == {ResidualBlock, SelfAttention, SpatialTransformer, Resample}
    inside = {id(p) for block in ran for p in block.parameters()}
    outside = [n.split(".")[0] for n, p in network.named_parameters() if id(p) not in inside]
    assert set(outside) == {"time", "conv_in", "norm_out", "conv_out"}


def test_projections_are_the_same_mathematics() -> None:
    linear, convolution = (built({"tokens": 6}, projections=kind) for kind in ("linear", "convolution"))
    state = {
        name: value[..., None, None] if ("inward" in name or "outward" in name) and value.ndim == 2 else value
        for name, value in linear.state_dict().items()
    }
    convolution.load_state_dict(state)
    z, t, context = given(linear, {"tokens": 6})
    torch.testing.assert_close(convolution(z, t, context), linear(z, t, context), rtol=1e-5, atol=1e-6)


def test_a_size_that_changes_inside_a_block() -> None:
    """Dhariwal & Nichol 2021: both ways are pooled, or repeated, before the first convolution."""
    draw = generator(5)
    x, e = torch.randn(2, 8, 6, 10, generator=draw), torch.randn(2, 12, generator=draw)
    for change, shape in (("down", (3, 5)), ("up", (12, 20))):
        block = ResidualBlock(8, 8, 12, True, change=change)  # type: ignore[arg-type]
        torch.testing.assert_close(
            block(x, e, Context()),
            F.avg_pool2d(x, 2) if change == "down" else x.repeat_interleave(2, 2).repeat_interleave(2, 3),
            msg="its last convolution starts at zero",
        )
        assert block(x, e, Context()).shape[2:] == shape


def test_tensorflow_s_padding() -> None:
    """A kernel that copies its middle tap reads odd positions, where the usual padding reads even ones."""
    x = torch.arange(16.0).view(1, 1, 4, 4)
    for asymmetric, expected in ((True, x[..., 1::2, 1::2]), (False, x[..., ::2, ::2])):
        layer = Resample(1, up=False, asymmetric=asymmetric)
        with torch.no_grad():
            layer.conv.weight.copy_(F.one_hot(torch.tensor(4), 9).view(1, 1, 3, 3))
            layer.conv.bias.zero_()  # type: ignore[union-attr]
        torch.testing.assert_close(layer(x, x, Context()), expected)


def test_input_from_0_to_1() -> None:
    plain, stretched = built(), built(unit_input=True)
    z, t, context = given(plain)
    torch.testing.assert_close(stretched(z, t, context), plain(2 * z - 1, t, context), rtol=0, atol=0)


@pytest.mark.parametrize("first", [0, 1])
def test_times_are_exact_at_every_step(first: int) -> None:
    """From float32 and float64 alike the waves are those of whole numbers."""
    step = torch.arange(first, 1000 + first)
    for dtype in (torch.float32, torch.float64):
        t = torch.arange(1, 1001, dtype=torch.float64).div(1000).to(dtype)
        waves = time_features(t, 32, first_step=first, frequency_shift=1.0)
        angles = step[:, None].float() * frequencies(32, 1.0)
        assert torch.equal(waves, torch.cat([angles.cos(), angles.sin()], 1))
        assert torch.equal(
            time_features(t, 32, first_step=first, frequency_shift=1.0, sines_first=True),
            torch.cat([angles.sin(), angles.cos()], 1),
        )
    assert frequencies(32, 1.0)[-1].item() == pytest.approx(1e-4, rel=1e-5)
    assert frequencies(32)[-1].item() == pytest.approx(1e-4 ** (15 / 16), rel=1e-5)


def test_times_between_steps_differ_and_have_a_gradient() -> None:
    t = torch.tensor([0.5, 0.5004], requires_grad=True)
    waves = time_features(t, 8)
    assert (waves[0] - waves[1]).abs().max() > 0.1
    (slope,) = torch.autograd.grad(waves[:, 4].sum(), t)  # sine of 1000 t
    torch.testing.assert_close(
        slope.double(), 1000 * torch.cos(1000 * t.detach().double()), rtol=1e-2, atol=1.0
    )


def test_dropout_is_of_training_alone() -> None:
    network = built(dropout=0.5)
    z, t, context = given(network)
    assert torch.equal(network(z, t, context), network(z, t, context))
    network.train()
    assert not torch.equal(network(z, t, context), network(z, t, context))


def test_what_is_given_must_fit() -> None:
    network = built({"image": 2})
    z, t, context = given(network, {"image": 2})
    with pytest.raises(ValueError, match="reads an image of 2 channels beside z"):
        network(z, t, Context())
    with pytest.raises(ValueError, match="not multiples of 2"):
        network(z[..., :-1], t, context)
    with pytest.raises(UserError, match="as wide as the time embedding, 32; the conditions give 7"):
        unet.Config(**SMALL, vector_layers="none").build(channels=3, vector=7)


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ({"depth": (1, 2, 3, 4)}, "depth has 4 entries for 2 levels"),
        ({"blocks": (1,)}, "blocks has 1 entries for 2 levels"),
        ({"resample_blocks": (True,)}, "resample_blocks has 1 entries for 2 changes of size"),
        ({"heads": 3}, "level 0 has 8 channels, no multiple of its 3 heads"),
        ({"heads": (2, 4, 5)}, "level 1 has 16 channels, no multiple of its 5 heads"),
        ({"head_width": 7}, "level 0 has 8 channels, no multiple of head_width 7"),
        ({"groups": 3}, "level 0 has 8 channels, no multiple of the 3 norm groups"),
        ({"multipliers": (1, 1.3)}, "8 channels times 1.3 is no width of a level"),
        ({"channels": 6, "multipliers": (4,)}, "the first layer has 6 channels, no multiple of 8"),
        ({"middle_attention": True, "middle_blocks": 1}, "middle_attention stands between two blocks"),
        ({"middle_groups": 3}, "the middle has 16 channels, no multiple of 3"),
        ({"dropout": 1.0}, "less than 1"),
        ({"attention": (16, 8)}, "attention 16, 8 is no level; the levels are 1, 2 .*the nearest is 2"),
    ],
)
def test_what_cannot_hold_is_refused(shape: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        unet.Config(**SMALL | shape)


def test_factors_beyond_a_small_network_are_left_out() -> None:
    """The default names two levels, and models with one of them were saved so."""
    assert unet.Config(multipliers=(1,)).attends(0)
    with pytest.raises(ValidationError, match=r"attention 2 is no level; the levels are 1 .*nearest is 1"):
        unet.Config(multipliers=(1,), attention=(2,))


def test_roles_are_what_can_be_read() -> None:
    assert unet.Config().roles == {"tokens", "vector", "image"}
    assert unet.Config(depth=0).roles == {"vector", "image"}
    assert unet.Config(depth=(0, 1), attention=(1,)).roles == {"tokens", "vector", "image"}, "the middle"
    assert unet.Config(depth=(1, 0), attention=(2,)).roles == {"vector", "image"}
    assert unet.Config(attention=(), middle_attention=False).roles == {"vector", "image"}


def test_keys_and_values_are_computed_once_for_a_prompt() -> None:
    network = built({"tokens": 6})
    z, t, context = given(network, {"tokens": 6})
    counted: list[int] = []
    layers = [m.key_value for m in network.modules() if hasattr(m, "key_value")]
    for layer in layers:
        layer.register_forward_hook(lambda *_: counted.append(1))  # type: ignore[union-attr]
    remembering = context.remembering()
    with torch.no_grad():
        outs = [network(z, t, remembering) for _ in range(3)]
    assert len(counted) == len(layers) > 0
    assert torch.equal(outs[0], outs[2])
