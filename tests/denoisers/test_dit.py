"""DiT: the published counts, what it starts as, and that its variants are what they claim to be."""

import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from carrara.context import Context
from carrara.denoisers import dit
from carrara.denoisers.positions import fixed, rotary, rotate
from carrara.errors import UserError
from carrara.recipes import class_dit
from carrara.recipes.catalogue import named
from carrara.tensors import generator

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2}
MODERN = SMALL | {
    "positions": "rotary", "qk_norm": True, "norm": "rms", "feed_forward": "swiglu", "qkv_bias": False,
}  # fmt: skip
VARIANTS = {
    "joint": MODERN | {"tokens": "joint"},
    "cross": MODERN | {"tokens": "cross", "learnt_variance": True},
    "shared": SMALL | {"adaln": "shared", "positions": "both", "bottleneck": 3, "feed_forward": "geglu", "patch": 4},
    "own": SMALL | {"own_embeddings": True, "vector_layers": "none", "feed_forward": "gelu_sigmoid", "spread": 3},
}  # fmt: skip


def alive(module: nn.Module, seed: int = 3) -> Any:
    """Away from its zeros."""
    draw = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return module.eval()


def built(values: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    vector = 32 if values.get("own_embeddings") else 12
    return alive(dit.Config(**values).build(channels=3, tokens=10, vector=vector, image=2))


def inputs(network: Any, rows: int = 4, columns: int = 3) -> tuple[Tensor, Tensor, Context]:
    draw, b = generator(5), 3
    sides = rows * network.factor, columns * network.factor
    context = Context(
        tokens=torch.randn(b, 5, 10, generator=draw),
        mask=torch.arange(5) < torch.tensor([[5], [2], [1]]),
        vector=torch.randn(b, 32 if network.config.own_embeddings else 12, generator=draw),
        image=torch.randn(b, 2, *sides, generator=draw),
    )
    return torch.randn(b, 3, *sides, generator=draw), torch.tensor([0.001, 0.5, 1.0]), context


PUBLISHED = {
    "S/2": ({"width": 384, "depth": 12, "heads": 6}, 32_963_360),
    "B/2": ({"width": 768, "depth": 12, "heads": 12}, 130_512_416),
    "L/2": ({"width": 1024, "depth": 24, "heads": 16}, 458_102_816),
    "XL/2": ({"width": 1152, "depth": 28, "heads": 16}, 675_129_632),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    """The class table (1000 and none) is a condition's here, and the 256 positions are computed."""
    shape, count = PUBLISHED[name]
    config = dit.Config(**shape, learnt_variance=True, vector_layers="none")
    with torch.device("meta"):
        network = config.build(channels=4, vector=config.width)
    ours = sum(p.numel() for p in network.parameters())
    assert ours + (1001 + 256) * config.width == count
    out = network(torch.zeros(1, 4, 32, 32, device="meta"), torch.zeros(1, device="meta"), Context())
    assert out.shape == (1, 8, 32, 32)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_block_starts_as_the_identity_and_the_network_as_zero(name: str) -> None:
    torch.manual_seed(0)
    config = dit.Config(**VARIANTS[name])
    network = config.build(channels=3, tokens=10, vector=32 if config.own_embeddings else 12, image=2)
    z, t, context = inputs(network)
    assert network(z, t, context).abs().max() == 0
    seen: list[tuple[Tensor, Tensor]] = []
    for block in network.blocks():
        block.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    network(z, t, context)
    assert len(seen) == config.depth
    assert all(torch.equal(before, after) and before.std() > 0.1 for before, after in seen)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_learn_on_any_sides_and_see_what_they_should(name: str) -> None:
    network = built(VARIANTS[name])
    z, t, context = inputs(network)
    out = network(z, t, context)
    assert out.shape == (3, 6 if network.config.learnt_variance else 3, *z.shape[2:])
    out.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = network(z, t, context)
    assert rough.dtype == torch.float32
    assert 0 < (rough - out).square().mean().sqrt() < 0.05 * out.std()

    assert context.tokens is not None
    assert context.mask is not None
    roles = context.roles()
    others = {
        "vector": roles["vector"].roll(1, 0), "image": roles["image"].flip(3), "tokens": roles["tokens"].roll(1, 0)
    }  # fmt: skip
    with torch.no_grad():
        for role, value in others.items():
            assert (network(z, t, Context(**{**roles, role: value})) - out).abs().amax((1, 2, 3)).min() > 1e-4
        hidden = torch.where(context.mask[..., None], context.tokens, 1e3)
        torch.testing.assert_close(network(z, t, Context(**{**roles, "tokens": hidden})), out)
        alone = network(z[1:2], t[1:2], Context(**{role: value[1:2] for role, value in roles.items()}))
        torch.testing.assert_close(alone[0], out[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["joint", "cross"])
def test_tokens_are_brought_in_once_a_prompt(name: str) -> None:
    network = built(VARIANTS[name])
    z, t, context = inputs(network)
    layers = [network.joint] if name == "joint" else [block.cross.key_value for block in network.blocks()]
    calls: list[nn.Module] = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: calls.append(layer))
    with torch.no_grad():
        expected = [network(z, time, context) for time in (t, t.flip(0))]
        assert len(calls) == 2 * len(layers)
        calls.clear()
        remembering = context.remembering()
        found = [network(z, time, remembering) for time in (t, t.flip(0))]
    assert len(calls) == len(layers)
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_joint_tokens_that_are_all_masked_are_not_there() -> None:
    network = built(VARIANTS["joint"])
    z, t, context = inputs(network)
    roles = context.roles()
    masked = Context(**{**roles, "mask": torch.zeros(3, 5, dtype=torch.bool)})
    without = Context(vector=roles["vector"], image=roles["image"])
    with torch.no_grad():
        torch.testing.assert_close(network(z, t, masked), network(z, t, without))


def test_rotary_products_depend_on_how_far_apart_patches_lie() -> None:
    query, key = torch.randn(2, 1, 1, 16, generator=generator(1)).expand(2, 1, 30, 16).unbind()
    rotation = rotary(5, 6, 16, None, device=CPU)
    assert torch.equal(rotate(query, rotation)[0, 0], query[0, 0])
    products = (rotate(query, rotation)[0] @ rotate(key, rotation)[0].mT).view(5, 6, 5, 6)
    for down in range(5):
        for right in range(6):
            pairs = torch.stack(
                [products[y, x, y + down, x + right] for y in range(5 - down) for x in range(6 - right)]
            )
            torch.testing.assert_close(pairs, pairs[:1].expand(len(pairs)), rtol=0, atol=1e-5)
    distances = products[0, 0].flatten()
    assert torch.cdist(distances[:, None], distances[:, None]).add(torch.eye(30)).min() > 1e-3


def test_fixed_positions_say_where_and_spread_over_any_size() -> None:
    rows = fixed(4, 6, 32, None, device=CPU)
    assert rows.shape == (24, 32)
    assert torch.cdist(rows, rows).add(10 * torch.eye(24)).min() > 0.5
    grid = rows.view(4, 6, 32)
    assert torch.equal(grid[0, :, :16], grid[3, :, :16]), "the first half tells the column"
    assert torch.equal(grid[:, 0, 16:], grid[:, 5, 16:]), "the second the row"
    torch.testing.assert_close(fixed(4, 4, 32, 4, device=CPU), fixed(4, 4, 32, None, device=CPU))
    fine = fixed(8, 8, 32, 4, device=CPU).view(8, 8, 32)
    torch.testing.assert_close(fine[::2, ::2].flatten(0, 1), fixed(4, 4, 32, None, device=CPU))


def test_one_steering_layer_and_a_bottleneck_are_special_cases() -> None:
    narrow = built(VARIANTS["shared"])
    full = built(VARIANTS["shared"] | {"adaln": "own", "bottleneck": None})
    state = narrow.state_dict()
    first, second = (state.pop(f"conv_in.{k}.weight") for k in (0, 1))
    weight, bias = (state.pop(f"modulation.{leaf}") for leaf in ("weight", "bias"))
    for k in range(2):
        state[f"trunk.{k}.modulation.weight"] = weight
        state[f"trunk.{k}.modulation.bias"] = bias + state.pop(f"trunk.{k}.offset")
    full.load_state_dict(state | {"conv_in.1.weight": second @ first})
    z, t, context = inputs(narrow)
    with torch.no_grad():
        torch.testing.assert_close(narrow(z, t, context), full(z, t, context), rtol=1e-4, atol=1e-5)


def test_a_gate_takes_as_many_weights() -> None:
    count = {}
    for feed_forward in ("gelu", "swiglu"):
        with torch.device("meta"):
            network = dit.Config(width=768, feed_forward=feed_forward).build(channels=4)
        count[feed_forward] = sum(p.numel() for p in network.parameters())
    assert count["swiglu"] == pytest.approx(count["gelu"], rel=1e-3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"width": 20, "heads": 3}, "width 20 does not divide into 3 heads"),
        ({"width": 18, "heads": 1}, "width 18 is no multiple of 4"),
        ({"width": 24, "heads": 4, "positions": "rotary"}, "heads of width 6 are no multiple of 4"),
        ({"own_embeddings": True}, "own_embeddings go with adaln = 'own' and vector_layers = 'none'"),
    ],
)
def test_what_cannot_hold_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        dit.Config(**values)


def test_inputs_that_do_not_fit_are_refused() -> None:
    network = built(VARIANTS["shared"])
    z, t, context = inputs(network)
    with pytest.raises(ValueError, match=r"sides of \(16, 11\) are not multiples of 4"):
        network(z[..., :-1], t, context)
    with pytest.raises(ValueError, match="reads an image of 2 channels beside z"):
        network(z, t, Context(tokens=context.tokens, vector=context.vector))


def test_tables_of_positions_are_kept_and_are_no_weights() -> None:
    """Of a sampling under inference_mode, too, after which training goes on with them."""
    for table in (fixed, rotary):
        table.cache_clear()
    for name in ("joint", "shared"):
        network = built(VARIANTS[name])
        names = list(network.state_dict())
        z, t, context = inputs(network)
        with FakeTensorMode(allow_non_fake_inputs=True):
            network(z + 0, t, context)
        with torch.inference_mode():
            sampled = network(z, t, context)
        with FakeTensorMode() as fake:
            roles = {name: fake.from_tensor(value) for name, value in context.roles().items()}
            imagined = dit.Config(**VARIANTS[name]).build(channels=3, tokens=10, vector=12, image=2)
            assert imagined(fake.from_tensor(z), fake.from_tensor(t), Context(**roles)).shape == z.shape
        trained = network(z, t, context)
        trained.square().mean().backward()
        assert torch.equal(trained.detach(), sampled)
        assert list(network.state_dict()) == names
        narrow = {**context.roles(), "image": context.image[..., :-4]}
        assert network(z[..., :-4], t, Context(**narrow)).shape == z[..., :-4].shape
    assert (fixed.cache_info().misses, rotary.cache_info().misses) == (2, 4), "one for each size"
    kept = rotary(2, 3, 8, None, 2, device=CPU)
    torch.testing.assert_close(kept[:, 2:], rotary(2, 3, 8, None, device=CPU))
    vectors = torch.randn(1, 8, 8, generator=generator(1))
    assert torch.equal(rotate(vectors, kept)[:, :2], vectors[:, :2])
    half = rotary(2, 3, 8, None, device=CPU, dtype=torch.bfloat16)
    assert torch.equal(half, rotary(2, 3, 8, None, device=CPU).bfloat16())
    assert rotary(2, 3, 8, None, device=torch.device("meta")).is_meta


def test_a_vector_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="must give 16 numbers together; they give 12"):
        dit.Config(**SMALL, vector_layers="none").build(channels=3, vector=12)
    with pytest.raises(UserError, match="must give 32 numbers together; they give 16"):
        dit.Config(**SMALL, vector_layers="none", own_embeddings=True).build(channels=3, vector=16)


def test_the_real_forms_that_the_recipe_tells() -> None:
    """The lines in its text are read as a user would give them."""
    _, latents, pixels = re.split(r"\n\n", class_dit.recipe.__doc__ or "")
    real: Any = named("class_dit", re.findall(r"--set ([^\s`]+)", latents))
    denoiser, count = real.model.denoiser, PUBLISHED["B/2"][1]
    with torch.device("meta"):
        network = denoiser.build(channels=4, vector=real.model.conditions["label"].width)
    variance = 4 * 2 * 2 * (768 + 1)
    assert sum(p.numel() for p in network.parameters()) + (1001 + 256) * 768 + variance == count
    assert (real.train.optimizer, real.train.lr, real.train.lr_schedule) == ("adamw", 1e-4, "constant")

    jit: Any = named("class_dit", re.findall(r"--set ([^\s`]+)", pixels))
    assert (jit.pixels.size, jit.model.parameterization, jit.weighting) == (32, "x0", "velocity")
    assert (jit.model.denoiser.patch, jit.model.denoiser.bottleneck) == (4, 32)
