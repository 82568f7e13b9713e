"""A picture in tiles is the picture in one: to a stated tolerance, whatever the network, with no seam to be seen."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carrara.autoencoders import kl, tiling
from carrara.autoencoders.tiling import decode, decode_any_size, encode, encode_any_size, grid
from carrara.config import component, kinds
from carrara.errors import UserError
from carrara.tensors import generator

SMALL: dict[str, dict[str, Any]] = {
    "kl": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "latent_channels": 3},
    "vq": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "latent_channels": 3, "codes": 16},
    "fsq": {"channels": 8, "multipliers": (1, 2), "blocks": 1},
    "tiny": {"encoder_width": 16, "decoder_width": 12, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1)},
}


def network(kind: str = "kl", **changes: Any) -> Any:
    torch.manual_seed(0)
    return component("autoencoders", kind).Config(**SMALL.get(kind, {}) | changes).build().eval()


def picture(height: int, width: int, channels: int = 3) -> Tensor:
    """A slope from corner to corner, its lower half darker, with a disc and a little noise on the right."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    image = torch.stack([x, y, 1 - x, x * y][:channels]) * 1.2 - 0.5
    image[:, height // 2 :] *= 0.4
    image[:, (x - 0.3).square() + (y - 0.4).square() < 0.03] = -0.9
    image[:, :, width // 2 :] += 0.1 * torch.randn(
        channels, height, width - width // 2, generator=generator(1)
    )
    return image[None]


def signal_to_noise(a: Tensor, b: Tensor) -> float:
    """How far ``b`` is below the spread of ``a``, in dB."""
    return float(10 * torch.log10(a.double().var() / (a.double() - b.double()).square().mean()))


def seam(image: Tensor, step: int, tile: int, overlap: int) -> float:
    """Mean absolute difference across the tiles' borders, relative to that between all neighbours."""
    tiles = grid(*image.shape[-2:], step, tile, overlap)
    columns = [span.last * step for span in tiles.columns[:-1]]
    across = (image[..., 1:] - image[..., :-1]).abs().mean((0, 1, 2))
    return float(across[[column - 1 for column in columns]].mean() / across.mean())


@pytest.mark.parametrize("kind", kinds("autoencoders"))
def test_tiles_give_what_the_whole_gives(kind: str) -> None:
    module = network(kind)
    image = picture(40 * module.factor, 72 * module.factor)
    with torch.no_grad():
        whole = module.encode(image)
        again = module.decode(whole.mode())
    options = {"tile": 32 * module.factor, "overlap": 20 * module.factor}
    moments = encode(module, image, **options)
    assert moments.mode().shape == whole.mode().shape
    assert signal_to_noise(whole.mode(), moments.mode()) > 40
    assert torch.equal(moments.logvar.isinf(), whole.logvar.isinf())
    assert signal_to_noise(again, decode(module, whole.mode(), **options)) > (20 if kind == "vq" else 40)
    noise = torch.randn(whole.mode().shape, generator=generator(2))
    assert signal_to_noise(whole.sample(noise), moments.sample(noise)) > 40


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("size", [(100, 100), (90, 134), (40, 202)])
def test_odd_sizes_with_and_without_attention(attention: bool, size: tuple[int, int]) -> None:
    module = network(middle_attention=attention)
    image = torch.cat([picture(*size), -picture(*size).flip(3)])
    with torch.no_grad():
        whole = module.encode(image)
        again = module.decode(whole.mean)
    moments = encode(module, image, tile=72, overlap=48)
    assert signal_to_noise(whole.mean, moments.mean) > 40
    assert signal_to_noise(whole.logvar, moments.logvar) > 40
    assert signal_to_noise(again, decode(module, whole.mean, tile=72, overlap=48)) > 40


def test_no_seam_where_naive_tiles_have_one() -> None:
    module = network(multipliers=(1, 2, 2))
    latent = torch.linspace(-1, 1, 96).expand(1, 3, 32, 96) * torch.tensor([1.0, -0.5, 2.0])[:, None, None]
    with torch.no_grad():
        whole = module.decode(latent)
        naive = torch.cat([module.decode(part) for part in latent.split(32, 3)], 3)
    tiled = decode(module, latent, tile=160, overlap=96)
    cut = {"step": 4, "tile": 160, "overlap": 96}
    assert seam(tiled, **cut) == pytest.approx(seam(whole, **cut), rel=0.05)
    assert seam(naive, step=4, tile=128, overlap=0) > 1.5 * seam(whole, step=4, tile=128, overlap=0)


def test_convolutions_alone_are_exact() -> None:
    """The tiny autoencoder has no norm and no attention: with enough overlap nothing differs but rounding."""
    module = network("tiny")
    image = picture(80, 96)
    with torch.no_grad():
        latent = module.encode(image).mode()
        again = module.decode(latent)
    torch.testing.assert_close(encode(module, image, 64, 48).mean, latent, rtol=0, atol=1e-5)
    torch.testing.assert_close(decode(module, latent, 64, 48), again, rtol=0, atol=1e-5)


def test_with_passes_enough_it_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlaps as wide as what a pixel can reach, and the iteration to its end: only rounding is left."""
    monkeypatch.setattr(tiling, "CLOSE", 0.0)
    monkeypatch.setattr(tiling, "PASSES", 12)
    module = network(multipliers=(1,), middle_attention=True)
    image = picture(48, 80)
    with torch.no_grad():
        latent = module.encode(image).mean
        again = module.decode(latent)
    assert signal_to_noise(latent, encode(module, image, 48, 32).mean) > 90
    assert signal_to_noise(again, decode(module, latent, 48, 32)) > 90


def test_attention_over_means_is_coarser_but_the_same_for_every_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    image = picture(96, 128)
    with torch.no_grad():
        whole = module.encode(image).mean
    monkeypatch.setattr(tiling, "KEYS", 64 * 48 - 1)
    pooled = encode(module, image, 96, 64).mean
    assert 8 < signal_to_noise(whole, pooled) < 40
    cut = {"step": 1, "tile": 48, "overlap": 32}
    assert seam(pooled, **cut) == pytest.approx(seam(whole, **cut), rel=0.15)
    monkeypatch.setattr(tiling, "KEYS", 64 * 48)
    assert signal_to_noise(whole, encode(module, image, 96, 64).mean) > 40


@pytest.mark.parametrize("kind", kinds("autoencoders"))
def test_one_tile_is_the_untiled_path(kind: str) -> None:
    module = network(kind)
    image = picture(8 * module.factor, 10 * module.factor)
    with torch.no_grad():
        latent = module.encode(image).mode()
        again = module.decode(latent)
    for tile in (10 * module.factor, 512):
        assert torch.equal(encode(module, image, tile).mode(), latent)
        assert torch.equal(decode(module, latent, tile), again)
    assert torch.equal(encode_any_size(module, image).mode(), latent)
    assert torch.equal(decode_any_size(module, latent), again)


def test_large_pictures_are_tiled_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    image = picture(64, 256)
    monkeypatch.setattr(tiling, "TILE", 192)
    at_most: list[int] = []
    convolution = module.encoder.conv_in
    convolution.register_forward_hook(lambda part, given, out: at_most.append(out.shape[3]))
    with torch.no_grad():
        whole = module.encode(image).mean
        assert at_most.pop() == 256
        few = encode_any_size(module, image, limit=64 * 256 - 1).mean
    assert max(at_most) == 192, "never all of it at once"
    assert signal_to_noise(whole, few) > 30
    assert torch.equal(encode_any_size(module, image, limit=64 * 256).mean, whole)
    latent = decode_any_size(module, whole, limit=64 * 256 - 1)
    assert latent.shape == image.shape
    assert not torch.equal(latent, decode_any_size(module, whole, limit=64 * 256))


def test_the_same_again_and_alone_or_in_a_batch() -> None:
    module = network()
    image = torch.cat([picture(60, 90), picture(60, 90).flip(2)])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    shape = repr(module)
    first = encode(module, image, 48, 16).mean
    assert torch.equal(first, encode(module, image, 48, 16).mean)
    torch.testing.assert_close(first[1:], encode(module, image[1:], 48, 16).mean, rtol=1e-5, atol=1e-5)
    assert repr(module) == shape
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [(100, 32, 8), (33, 32, 31), (64, 64, 8), (41, 20, 0), (7, 9, 3)]
)
def test_tiles_cover_every_pixel_once(size: int, tile: int, overlap: int) -> None:
    spans = grid(size, 5, 1, tile, overlap).rows
    assert [position for span in spans for position in range(span.first, span.last)] == list(range(size))
    assert {span.stop - span.start for span in spans} == {min(tile, size)}
    for before, after in itertools.pairwise(spans):
        assert before.stop - after.start >= overlap
        assert min(before.stop - before.last, after.first - after.start) >= overlap // 2
    assert all(0 <= span.start <= span.first < span.last <= span.stop <= size for span in spans)


def test_what_cannot_be() -> None:
    module = network()
    with pytest.raises(ValueError, match="multiples of 2"):
        encode(module, torch.zeros(1, 3, 64, 33), 16, 4)
    with pytest.raises(UserError, match=r"tiles of 8 pixels are too small to share 16 .* at least 18"):
        encode(module, torch.zeros(1, 3, 64, 64), 8, 16)
    with pytest.raises(UserError, match="at least 0"):
        decode(module, torch.zeros(1, 3, 64, 64), 16, -4)


def test_gradients_are_not_asked_for() -> None:
    module: nn.Module = kl.Config(**SMALL["kl"]).build()
    assert not encode(module, picture(64, 64), 32, 8).mean.requires_grad
