"""The lecture's DDPM against the general code, and its forward process against its closed form."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from carrara.context import Context
from carrara.diffusion.ddpm import DDPM
from carrara.diffusion.parameterizations import PARAMETERIZATIONS
from carrara.diffusion.process import Diffusion, noised
from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.schedules import SCHEDULES
from carrara.tensors import PictureNoise
from mixture import Mixture

LECTURE = DDPM.linear()
SCHEDULE = SCHEDULES["linear"]()


def predictor(z: Tensor, n: Tensor) -> Tensor:
    """The exact noise in z at steps n for the mixture, with n from 1 to 1000."""
    t = n.double() / 1000
    x0 = Mixture().denoiser(SCHEDULE)(z, t)
    alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
    return (z - alpha * x0) / sigma


def test_forward_in_coefficients() -> None:
    """Step by step, x_n = c * x_0 + noise of variance v; both recursions give the closed form's numbers."""
    picture, variance = torch.ones(1, 1, dtype=torch.float64), 0.0
    for n, x in enumerate(LECTURE.forward(picture, torch.zeros_like), start=1):
        variance = float((1 - LECTURE.betas[n - 1]) * variance + LECTURE.betas[n - 1])
        at_once = LECTURE.forward_at_once(picture, torch.tensor([n]), torch.zeros_like(picture))
        assert float(x) == pytest.approx(float(at_once), rel=1e-10)
        assert variance == pytest.approx(float(1 - LECTURE.alpha_bars[n - 1]), rel=1e-9)


def test_forward_in_distribution() -> None:
    """Samples of both ways to x_300 cannot be told apart (Kolmogorov-Smirnov), x_200 can."""
    stats = pytest.importorskip("scipy.stats")
    count = 20000
    latent = Mixture().sample(
        torch.rand(count, generator=torch.Generator().manual_seed(0)), torch.zeros(count)
    )
    latent = latent.double()[None]
    noise = PictureNoise(1, [0])
    x = next(islice(LECTURE.forward(latent, noise), 299, None))
    at_once = LECTURE.forward_at_once(latent, torch.tensor([300]), noise(latent))
    other = LECTURE.forward_at_once(latent, torch.tensor([200]), noise(latent))
    assert stats.ks_2samp(x[0].numpy(), at_once[0].numpy()).pvalue > 0.01
    assert stats.ks_2samp(x[0].numpy(), other[0].numpy()).pvalue < 1e-4


def test_closed_form_is_the_general_one() -> None:
    latent, noise = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    n = torch.tensor([1, 417, 1000])
    torch.testing.assert_close(
        LECTURE.forward_at_once(latent, n, noise),
        noised(SCHEDULE, latent, noise, n / 1000),
        rtol=1e-6,
        atol=1e-7,
    )


def test_algorithm_1_is_the_general_loss() -> None:
    latent, noise = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    n = torch.tensor([2, 300, 999])
    general = Diffusion(
        lambda z, t, context: predictor(z, (t * 1000).round()), SCHEDULE, PARAMETERIZATIONS["eps"]
    )
    mine = general.loss(latent, noise, n.double() / 1000, Context())
    lecture = LECTURE.training_loss(predictor, latent, n, noise)
    assert lecture.min() > 1e-5
    torch.testing.assert_close(mine, lecture, rtol=1e-8, atol=1e-10)


def test_algorithm_2_is_the_general_sampler() -> None:
    """All thousand steps, 1000 down to 1, with sigma_n^2 = beta_n."""
    general = Diffusion(lambda z, t, context: predictor(z, t * 1000), SCHEDULE, PARAMETERIZATIONS["eps"])
    z = PictureNoise(0, [0, 1]).draw((6,)).double()
    times = torch.arange(1000, -1, -1, dtype=torch.float64) / 1000
    mine = SAMPLERS["ancestral"](
        lambda z, t: general.denoise(z, t, Context()),
        z,
        times,
        SCHEDULE,
        noise=PictureNoise(1, [0, 1]),
        variance=1.0,
    )
    lecture = LECTURE.sample(predictor, z, PictureNoise(1, [0, 1]))
    numbers = []
    for a, b in zip(mine, lecture, strict=True):
        numbers.append(b.index)
        torch.testing.assert_close(a.z, b.z, rtol=1e-7, atol=1e-8)
    assert numbers == list(range(1000, 0, -1))
    assert 0.3 < a.z.std() < 2
