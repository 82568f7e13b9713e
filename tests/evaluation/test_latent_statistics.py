"""Statistics of latents: running sums say what all latents at once would say."""

import math

import pytest
import torch
import torch.nn.functional as F

from carrara.autoencoders.kl import Encoding
from carrara.autoencoders.scale import LatentScale
from carrara.metrics.latent_statistics import CodebookUse, LatentStatistics

SHIFT, SCALE = torch.tensor([5.0, -300.0, 0.0, 0.1]), torch.tensor([1.0, 20.0, 0.3, 2.0])


def latents(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior means and logarithms of variances: channel 0 smooth, 1 rough, 2 smooth, 3 partly as 0."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(count, 4, 12, 10, generator=draw)
    z[:, ::2] = F.avg_pool2d(F.pad(z[:, ::2], (2, 2, 2, 2), mode="circular"), 5, 1) * 5
    z[:, 3] = 0.6 * z[:, 0] + 0.8 * z[:, 3]
    logvar = torch.randn(count, 4, 12, 10, generator=draw) - 2
    return z * SCALE[:, None, None] + SHIFT[:, None, None], logvar


def statistics(mean: torch.Tensor, logvar: torch.Tensor, batch: int) -> LatentStatistics:
    running = LatentStatistics(mean.shape[1])
    for part, its in zip(mean.split(batch), logvar.split(batch), strict=True):
        running.add(part, its)
    return running


@pytest.mark.parametrize("batch", [7, 60])
def test_running_sums_are_those_of_all_at_once(batch: int) -> None:
    mean, logvar = latents()
    running = statistics(mean, logvar, batch)
    scale = LatentScale.measure([torch.cat([mean, torch.exp(0.5 * logvar)], 1)])
    kl = Encoding(mean.double(), logvar.double())
    total = 0.0
    for index, channel in enumerate(running.found):
        assert channel.mean == pytest.approx(float(scale.mean[index]), rel=1e-5)
        assert channel.std == pytest.approx(float(scale.std[index]), rel=1e-5)
        assert channel.kl is not None
        assert channel.spread == pytest.approx(float(logvar[:, index].exp().mean().sqrt()), rel=1e-5)
        assert channel.noise_share == pytest.approx((channel.spread / channel.std) ** 2, rel=1e-5)
        for lag, found in zip((1, 2, 4), channel.correlation, strict=True):
            z = mean[:, index]
            one = torch.cat([z[:, lag:].flatten(), z[..., lag:].flatten()])
            other = torch.cat([z[:, :-lag].flatten(), z[..., :-lag].flatten()])
            assert found == pytest.approx(float(torch.corrcoef(torch.stack([one, other]))[0, 1]), abs=1e-4)
        total += channel.kl * 12 * 10
    assert total == pytest.approx(float(kl.penalty().mean()), rel=1e-6)
    wanted = torch.corrcoef(mean.movedim(1, 0).flatten(1).double())
    torch.testing.assert_close(running.across, wanted, atol=1e-6, rtol=1e-6)
    assert running.across[0, 3] > 0.4


def test_smooth_and_rough_channels_are_told_apart() -> None:
    smooth, rough = statistics(*latents(), batch=20).found[:2]
    assert [round(c or 0, 1) for c in smooth.correlation] == [
        0.8,
        0.6,
        0.2,
    ]  # 4/5, 3/5, 1/5 of the window shared
    assert all(abs(c or 0) < 0.05 for c in rough.correlation)


def test_histograms_are_densities() -> None:
    for channel in statistics(*latents(), batch=20).found:
        low, high = channel.edges
        assert sum(channel.histogram) * (high - low) / len(channel.histogram) == pytest.approx(1)
        centre = channel.histogram[len(channel.histogram) // 2]
        spread = (high - low) / 8
        assert centre == pytest.approx(1 / math.sqrt(2 * math.pi) / spread, rel=0.15)  # these are Gaussian


def test_points_have_no_spread() -> None:
    mean, logvar = latents(4)
    for channel in statistics(mean, torch.full_like(logvar, -torch.inf), 2).found:
        assert channel.kl is channel.spread is channel.noise_share is None
    flat = statistics(mean, torch.full_like(logvar, -torch.inf), 2).found[0]
    assert flat.std == pytest.approx(float(mean[:, 0].std(correction=0)), rel=1e-5)


def test_a_constant_channel_and_a_tiny_latent() -> None:
    mean = torch.zeros(3, 2, 2, 2)
    mean[:, 1] = torch.arange(12.0).reshape(3, 2, 2)
    running = statistics(mean, torch.zeros_like(mean), 1)
    dead = running.found[0]
    assert (dead.std, dead.kl, dead.noise_share) == (1.0, 0.0, 1.0)  # the prior itself
    assert dead.correlation == (0.0, None, None)
    assert running.across.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert running.across.isfinite().all()
    with pytest.raises(ValueError, match="no latents"):
        _ = LatentStatistics(2).found


def test_use_of_a_codebook() -> None:
    even = CodebookUse.of(torch.full((64,), 100))
    assert (even.used, even.positions) == (64, 6400)
    assert even.perplexity == pytest.approx(64)
    assert even.expected == pytest.approx(64)
    half = CodebookUse.of(torch.tensor([30, 30, 0, 0]))
    assert half.used == 2
    assert half.perplexity == pytest.approx(2)
    draws = torch.randint(0, 1000, (200, 500), generator=torch.Generator().manual_seed(0))
    met = sum(len(row.unique()) for row in draws) / 200
    assert CodebookUse.of(draws[0].bincount(minlength=1000)).expected == pytest.approx(met, rel=0.01)
