"""Measures of reconstruction: against closed forms and torchmetrics, in both depths."""

import math

import pytest
import torch
import torch.nn.functional as F

from carrara.autoencoders import identity
from carrara.autoencoders.point import PointEncoding
from carrara.metrics.reconstruction import batches, colour_shift, psnr, reconstruct, ssim
from carrara.tensors import from_pixels, to_pixels


def pictures(channels: int = 3, side: int = 24) -> torch.Tensor:
    return torch.randint(40, 200, (4, channels, side, side), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


def test_psnr_of_a_known_error() -> None:
    a = pictures()
    found = psnr(a, a + 5)
    torch.testing.assert_close(found, torch.full((4,), 20 * math.log10(255 / 5), dtype=torch.float64))
    assert torch.isinf(psnr(a, a)).all()
    from torchmetrics.functional.image import peak_signal_noise_ratio

    b = pictures().flip(0)
    wanted = peak_signal_noise_ratio(a[:1].float(), b[:1].float(), data_range=255.0)
    assert float(psnr(a, b)[0]) == pytest.approx(float(wanted), abs=1e-4)


def test_psnr_takes_the_peak_from_the_depth() -> None:
    a, b = pictures(), pictures().flip(0)
    deep, deep_b = (to_pixels(from_pixels(x), bits=16) for x in (a, b))
    torch.testing.assert_close(psnr(deep, deep_b), psnr(a, b), rtol=1e-9, atol=0)
    one_step = deep.to(torch.int32).add(1).to(torch.uint16)
    assert float(psnr(deep, one_step)[0]) == pytest.approx(20 * math.log10(65535))
    with pytest.raises(ValueError, match=r"two uint8 or two uint16 sets of pictures, not torch\.uint8 and"):
        psnr(a, deep)
    with pytest.raises(ValueError, match="float32"):
        psnr(from_pixels(a), from_pixels(a))


def test_ssim_is_the_formula() -> None:
    """Every window of 11 pixels cut out and weighted by hand."""
    line = torch.exp(-0.5 * ((torch.arange(11) - 5) / 1.5).double().square())
    window = (torch.outer(line, line) / line.sum() ** 2).reshape(1, 121, 1)
    a, b = (
        F.unfold(F.pad(x.double() / 255, (5, 5, 5, 5), mode="reflect"), 11)
        for x in (pictures(1, 16), pictures(1, 16).flip(0))
    )
    mean_a, mean_b = (window * a).sum(1), (window * b).sum(1)
    var_a, var_b = (window * a * a).sum(1) - mean_a**2, (window * b * b).sum(1) - mean_b**2
    both = (window * a * b).sum(1) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mean_a * mean_b + c1) * (2 * both + c2) / (mean_a**2 + mean_b**2 + c1) / (var_a + var_b + c2)
    wanted = alike.mean(1)
    assert wanted.std() > 0.005
    found = ssim(pictures(1, 16), pictures(1, 16).flip(0))
    torch.testing.assert_close(found, wanted.float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_ssim_in_both_depths(channels: int) -> None:
    a, b = pictures(channels), pictures(channels) // 2
    deep = ssim(*(to_pixels(from_pixels(x), bits=16) for x in (a, b)))
    found, same = ssim(a, b), ssim(a, a)
    assert found.shape == (4,)
    torch.testing.assert_close(same, torch.ones(4))
    assert ((found > 0.2) & (found < 0.95)).all()
    torch.testing.assert_close(deep, found, rtol=0, atol=2e-6)


def test_colour_shift_is_signed_and_in_steps_of_8_bits() -> None:
    a = pictures()
    b = a.clone()
    b[:, 0] += 3
    b[:, 2] -= 2
    wanted = torch.tensor([3.0, 0.0, -2.0], dtype=torch.float64).expand(4, 3)
    torch.testing.assert_close(colour_shift(a, b), wanted)
    deep = colour_shift(*(to_pixels(from_pixels(x), bits=16) for x in (a, b)))
    torch.testing.assert_close(deep, wanted, rtol=1e-9, atol=1e-9)


class Counted(identity.Autoencoder):
    """Gives pictures back as they are, and keeps how many there were at once."""

    def __init__(self) -> None:
        super().__init__(identity.Config())
        self.counts: list[int] = []

    def encode(self, image: torch.Tensor) -> PointEncoding:
        self.counts.append(len(image))
        return super().encode(image)


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [(24, 150, [64, 64, 22]), (128, 65, [64, 1]), (512, 6, [4, 2]), (2048, 2, [1, 1])],
)
def test_the_larger_the_pictures_the_fewer_at_once(size: int, count: int, expected: list[int]) -> None:
    pixels = pictures(1, 24).repeat(40, 1, 1, 1)[:count]
    assert [len(part) for part in batches(pixels, size)] == expected
    assert torch.cat(list(batches(torch.arange(count), size))).tolist() == list(range(count))


def test_reconstruction_is_batch_by_batch_and_complete() -> None:
    pixels = pictures(1, 512).repeat(2, 1, 1, 1)[:6]
    module = Counted()
    again = reconstruct(module, pixels, torch.device("cpu"))
    assert module.counts == [4, 2]
    assert torch.equal(again, pixels)
    deep = to_pixels(from_pixels(pixels[:1]), bits=16)
    assert torch.equal(reconstruct(module, deep, torch.device("cpu")), deep)
