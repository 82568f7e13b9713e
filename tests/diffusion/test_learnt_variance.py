"""The learnt variance: its bound is the KL of two Gaussians, it goes to the right v, and sampling uses it."""

import pytest
import torch
from torch import Tensor

from carrara.context import Context
from carrara.diffusion.learnt_variance import variance_loss, with_variance
from carrara.diffusion.parameterizations import PARAMETERIZATIONS
from carrara.diffusion.process import Diffusion
from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.schedules import SCHEDULES

LINEAR = SCHEDULES["linear"]()
G = torch.Generator().manual_seed(0)
LATENT, NOISE = (torch.randn(4, 2, 3, 3, generator=G, dtype=torch.float64) for _ in range(2))
N = torch.tensor([1, 2, 300, 1000])


def with_v(value: float) -> Diffusion:
    """Predicts 0.9 of the latent and one v everywhere."""

    def network(z: Tensor, t: Tensor, context: Context) -> Tensor:
        return torch.cat([0.9 * LATENT[: len(z)], torch.full_like(z, 2 * value - 1)], 1)

    return Diffusion(network, LINEAR, PARAMETERIZATIONS["x0"])


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_kl_of_two_gaussians(value: float) -> None:
    """Against torch's KL of the posterior (Ho et al. 2020, eq. 6 and 7) and the model's step, written out."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])
    loss = variance_loss(with_v(value), LATENT, NOISE, N.double() / 1000, Context())
    assert loss[0] == 0
    for place in (1, 2, 3):
        n = int(N[place])
        beta, bar, before = betas[n - 1], bars[n], bars[n - 1]
        posterior = (1 - before) / (1 - bar) * beta
        z = bar.sqrt() * LATENT[place] + (1 - bar).sqrt() * NOISE[place]

        def mean(x0: Tensor, z: Tensor = z, beta=beta, bar=bar, before=before) -> Tensor:
            return before.sqrt() * beta / (1 - bar) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - bar) * z

        variance = torch.exp(value * beta.log() + (1 - value) * posterior.log())
        expected = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean(LATENT[place]), posterior.sqrt()),
            torch.distributions.Normal(mean(0.9 * LATENT[place]), variance.sqrt()),
        ).mean()
        assert float(loss[place]) == pytest.approx(float(expected), rel=1e-6)


def test_the_bound_is_finite_at_both_ends() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for schedule in (LINEAR, SCHEDULES["linear"](zero_terminal=True), SCHEDULES["flow"]()):
        diffusion = Diffusion(with_v(0.4).network, schedule, PARAMETERIZATIONS["x0"])
        loss = variance_loss(diffusion, LATENT[:2], NOISE[:2], ends, Context())
        assert loss[0] == 0
        assert 0 < loss[1] < 10


def test_only_v_gets_a_gradient() -> None:
    out = torch.zeros(4, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    diffusion = Diffusion(lambda z, t, context: out, LINEAR, PARAMETERIZATIONS["eps"])
    variance_loss(diffusion, LATENT, NOISE, N.double() / 1000, Context()).sum().backward()
    assert out.grad is not None
    assert (out.grad[:, :2] == 0).all()
    assert (out.grad[1:, 2:] != 0).all()


def test_sampling_asks_once_a_step_and_uses_v() -> None:
    calls = 0

    def network(z: Tensor, t: Tensor, context: Context) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.cat([0.1 * z, torch.full_like(z, 2 * 0.3 - 1)], 1)

    diffusion = Diffusion(network, LINEAR, PARAMETERIZATIONS["eps"])
    times = torch.linspace(1, 0, 6, dtype=torch.float64)
    learnt = with_variance(diffusion, Context())
    draws = [torch.randn(4, 2, 3, 3, generator=G, dtype=torch.float64) for _ in range(5)]

    def run(denoise, variance) -> list[Tensor]:
        queue = iter(draws)
        steps = SAMPLERS["ancestral"](
            denoise, NOISE, times, LINEAR, noise=lambda like: next(queue), variance=variance
        )
        return [step.z for step in steps]

    mine = run(learnt.denoise, learnt.variance)
    assert calls == 5
    for a, b in zip(mine, run(lambda z, t: diffusion.denoise(z, t, Context()), 0.3), strict=True):
        torch.testing.assert_close(a, b)


def test_a_network_without_it_is_told() -> None:
    diffusion = Diffusion(lambda z, t, context: z, LINEAR, PARAMETERIZATIONS["eps"])
    with pytest.raises(ValueError, match="takes 4 channels, the network gives 2"):
        variance_loss(diffusion, LATENT, NOISE, N.double() / 1000, Context())
