"""What autograd saves, counted: by hand, on the meta device, and less of it where blocks are computed twice."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from toy import Net, Toy, activation_bytes, config, state_of

from carrara.context import Context
from carrara.denoisers import unet


def test_by_hand() -> None:
    """x (saved for the weight's gradient) and sin's input, each once; neither weights nor what needs no gradient."""
    layer, x = nn.Linear(16, 32), torch.randn(8, 16)

    def step() -> Tensor:
        h = layer(x)
        return (h.sin() + h.cos()).sum()

    assert activation_bytes(step) == 4 * (8 * 16 + 8 * 32)
    with torch.no_grad():
        assert activation_bytes(step) == 0
    layer.requires_grad_(False)
    assert activation_bytes(step) == 0


def test_views_and_casts() -> None:
    weight, x = nn.Parameter(torch.randn(4, 4)), torch.randn(4, 4)
    assert activation_bytes(lambda: (x[:2] @ weight.T + x[2:] @ weight).sum()) == x.nbytes
    y = 1 * x.requires_grad_()
    cast = activation_bytes(lambda: (y @ weight.bfloat16().float()).sum())
    assert cast == x.nbytes + weight.nbytes


@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_imagined_needs_what_is_real(bf16: bool) -> None:
    shape: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "head_width": 8}

    def needed() -> int:
        network = unet.Config(**shape).build(channels=4, tokens=6)
        z, t = torch.randn(3, 4, 8, 8), torch.rand(3)
        context = Context(tokens=torch.randn(3, 5, 6), mask=torch.ones(3, 5, dtype=torch.bool))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return activation_bytes(lambda: network(z, t, context).square().mean())

    real = needed()
    with FakeTensorMode():
        assert needed() == pytest.approx(real, rel=0.02)
    assert real > 500_000
    with FakeTensorMode():  # two terabytes
        vast = nn.Linear(500_000, 1_000_000)
        assert activation_bytes(lambda: vast(torch.zeros(8, 500_000)).square().mean()) == 4 * 8 * 1_500_000


def test_the_meta_device_will_do_where_layers_do_not_ask_for_it() -> None:
    def needed(device: str) -> int:
        with torch.device(device):
            net, x = Net(width=64), torch.randn(32, 6)
            return activation_bytes(lambda: net(x).square().mean())

    assert needed("meta") == needed("cpu") > 0


def test_blocks_computed_twice_save_only_what_enters_them() -> None:
    x = torch.randn(64, 6)

    def needed(**given: Any) -> int:
        net = state_of(Toy(), config(**given)).modules["m"]
        assert isinstance(net, Net)
        return activation_bytes(lambda: net(x).square().mean())

    plain, twice = needed(), needed(checkpointing=True)
    entering = 4 * 64 * (6 + 8 + 8 + 8 + 6)  # each layer's and block's input, and what is squared
    assert entering <= twice < 1.2 * entering
    assert plain > 3 * twice
