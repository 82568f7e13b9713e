"""The shared layers against PyTorch's own, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara import layers
from carrara.layers import GroupNorm, _ChannelsLastGroupNorm, attend, zero
from carrara.tensors import generator

ADAPTIVE = [False, True]


def reference(x: Tensor, norm: GroupNorm, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """In double precision, by PyTorch's own function."""
    out = F.group_norm(x.double(), norm.groups, norm.weight.double(), norm.bias.double(), norm.eps)
    if scale is None or shift is None:
        return out
    return out * (1 + scale.double())[..., None, None] + shift.double()[..., None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_activation_is_part_of_the_norm(dtype: torch.dtype) -> None:
    """One function of both keeps x alone for the gradient."""
    norm, x, _ = case(dtype, False, True)
    weight = torch.randn(x.shape, generator=generator(2))
    together, apart = norm(x, silu=True), F.silu(norm(x))
    torch.testing.assert_close(together, apart, rtol=0, atol=0)
    got, wanted = (
        torch.autograd.grad((out.float() * weight).sum(), [x, norm.weight, norm.bias])
        for out in (together, apart)
    )
    for a, b in zip(got, wanted, strict=True):
        assert b.abs().max() > 0.1
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def case(dtype: torch.dtype, adaptive: bool, last: bool) -> tuple[GroupNorm, Tensor, list[Tensor]]:
    """A norm away from its start, x off centre and [3 16 5 7], and what adapts it."""
    draw = generator(1)
    norm = GroupNorm(16, 4)
    with torch.no_grad():
        norm.weight.add_(0.3 * torch.randn(16, generator=draw))
        norm.bias.add_(0.3 * torch.randn(16, generator=draw))
    x = (torch.randn(3, 16, 5, 7, generator=draw) * torch.arange(1, 17)[:, None, None] / 4 + 0.7).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    pair = [0.5 * torch.randn(3, 16, generator=draw) for _ in range(2)] if adaptive else []
    return norm, x.requires_grad_(), [p.requires_grad_() for p in pair]


@pytest.mark.parametrize("adaptive", ADAPTIVE)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.02)])
def test_group_norm_is_pytorch_s(dtype: torch.dtype, tolerance: float, adaptive: bool, last: bool) -> None:
    norm, x, pair = case(dtype, adaptive, last)
    weight = torch.randn(x.shape, generator=generator(2))
    leaves = [x, norm.weight, norm.bias, *pair]
    scale, shift = pair or (None, None)
    out = norm(x, scale, shift)
    assert out.shape == x.shape
    assert out.dtype == dtype
    got = torch.autograd.grad((out.float() * weight).sum(), leaves)
    exact = reference(x, norm, scale, shift)
    wanted = torch.autograd.grad((exact * weight).sum(), leaves)
    assert exact.std() > 0.5
    assert (out.double() - exact).abs().max() < tolerance * exact.abs().max()
    for name, a, b in zip(("x", "weight", "bias", "scale", "shift"), got, wanted, strict=False):
        assert a.shape == b.shape, name
        assert b.abs().max() > 0.1, name
        error = (a.double() - b.double()).square().mean().sqrt() / b.double().square().mean().sqrt()
        assert error < tolerance, (name, error)


@pytest.mark.parametrize(("pairs", "silu"), [(1, False), (2, False), (2, True)])
def test_the_fast_norm_s_gradient_is_that_of_its_forward(
    pairs: int, silu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By finite differences in double precision (its sums, kept in float32 for speed, in double here)."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    draw = generator(4)
    x = torch.randn(2, 6, 8, generator=draw, dtype=torch.float64) + 0.3
    scale = torch.randn(pairs, 8, generator=draw, dtype=torch.float64)
    shift = torch.randn(pairs, 8, generator=draw, dtype=torch.float64)
    leaves = tuple(v.requires_grad_() for v in (x, scale, shift))
    assert torch.autograd.gradcheck(lambda *a: _ChannelsLastGroupNorm.apply(*a, 2, 1e-5, silu), leaves)


def test_group_norm_needs_whole_groups() -> None:
    with pytest.raises(ValueError, match="12 channels do not divide into 8 groups"):
        GroupNorm(12, 8)


def test_group_norm_of_a_flat_picture_is_its_bias() -> None:
    """No variance: nothing is divided by zero."""
    norm = GroupNorm(8, 2)
    with torch.no_grad():
        norm.bias.copy_(torch.arange(8.0))
    torch.testing.assert_close(
        norm(torch.full((1, 8, 4, 4), 3.0))[0, :, 2, 2], torch.arange(8.0), atol=0.01, rtol=0
    )
    assert norm(torch.full((1, 8, 4, 4), 3.0, dtype=torch.bfloat16)).isfinite().all()


@pytest.mark.parametrize("off", [0.0, 1.0, 10.0])
def test_the_fast_norm_far_from_zero(off: float) -> None:
    """Its arithmetic is in bfloat16: the error grows as the mean does against the spread, and no faster."""
    norm = GroupNorm(8, 2)
    x = (torch.randn(2, 8, 16, 16, generator=generator(6)) + off).to(torch.bfloat16)
    error = norm(x).double() - reference(x, norm, None, None)
    assert error.square().mean().sqrt() < 2**-8 * (1 + off)


def attention_case(queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    draw = generator(queries, keys)
    shapes = [(3, queries, 24), (3, keys, 24), (3, keys, 24)]
    return [torch.randn(s, generator=draw).mul(1.5).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize(("queries", "keys"), [(7, 5), (1, 9), (150, 140)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_attention_is_pytorch_s(
    queries: int, keys: int, masked: bool, dtype: torch.dtype, tolerance: float
) -> None:
    leaves = attention_case(queries, keys, dtype)
    mask = (torch.arange(keys) < torch.tensor([[keys], [max(1, keys // 2)], [1]])) if masked else None
    out = attend(*leaves, heads=4, mask=mask)
    split = (x.double().unflatten(-1, (4, 6)).transpose(1, 2) for x in leaves)
    exact = F.scaled_dot_product_attention(*split, mask[:, None, None] if mask is not None else None)
    exact = exact.transpose(1, 2).flatten(2)
    assert out.shape == exact.shape == (3, queries, 24)
    assert out.dtype == dtype
    assert (out - exact).abs().max() < tolerance * exact.abs().max()
    weight = torch.randn(out.shape, generator=generator(9))
    got = torch.autograd.grad((out.float() * weight).sum(), leaves)
    wanted = torch.autograd.grad((exact * weight).sum(), leaves)
    for a, b in zip(got, wanted, strict=True):
        size = b.double().square().mean().sqrt()
        assert size > 0.01
        assert (a.double() - b.double()).square().mean().sqrt() < 2 * tolerance * size


@pytest.mark.parametrize("at_once", [200, 1500, 1 << 20], ids=["rows of a head", "a head", "several heads"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_part_by_part_is_the_same(
    at_once: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 the scores are computed in parts, whose sizes change nothing but the rounding."""
    mask = (torch.arange(33) < torch.tensor([[33], [20], [1]])) if masked else None
    weight = torch.randn(3, 41, 24, generator=generator(9))

    def run() -> list[Tensor]:
        leaves = attention_case(41, 33, torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            out = attend(*leaves, heads=4, mask=mask)
        return [out, *torch.autograd.grad((out.float() * weight).sum(), leaves)]

    whole = run()
    monkeypatch.setattr(layers, "_AT_ONCE", at_once)
    for a, b in zip(run(), whole, strict=True):
        assert a.dtype == torch.bfloat16
        assert b.float().std() > 0.01
        assert (a.float() - b.float()).square().mean().sqrt() < 0.005 * b.float().square().mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "keys"), [(7, 5), (150, 140)])
def test_attention_sees_nothing_behind_the_mask(queries: int, keys: int, dtype: torch.dtype) -> None:
    q, k, v = (x.detach() for x in attention_case(queries, keys, dtype))
    mask = torch.arange(keys) < torch.tensor([[3], [2], [1]])
    hidden = torch.where(mask[..., None], v, 1e4)
    torch.testing.assert_close(attend(q, k, hidden, 4, mask), attend(q, k, v, 4, mask))
    torch.testing.assert_close(
        attend(q, k, v, 4, mask)[2], v[2, :1].expand(queries, -1), msg="one key: its value"
    )


def test_a_zeroed_branch_gives_nothing() -> None:
    module = zero(nn.Conv2d(3, 4, 3))
    assert all((p == 0).all() for p in module.parameters())
    assert module(torch.randn(1, 3, 5, 5)).abs().max() == 0
