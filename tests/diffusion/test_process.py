"""Any parameterization, on any schedule, gives the latent back from a perfect output."""

import pytest
import torch
from torch import Tensor

from carrara.context import Context
from carrara.diffusion.parameterizations import PARAMETERIZATIONS
from carrara.diffusion.process import Diffusion, noised
from carrara.diffusion.schedules import SCHEDULES
from carrara.errors import UserError

LATENT = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TIMES = torch.tensor([0.03, 0.2, 0.5, 0.8, 0.97], dtype=torch.float64)


def perfect(name: str, schedule, seen: list[tuple[Tensor, Tensor]] | None = None):
    """A network that has been told the latent and the noise."""

    def network(z: Tensor, t: Tensor, context: Context) -> Tensor:
        if seen is not None:
            seen.append((z, t))
        a, b = PARAMETERIZATIONS[name](schedule.alpha(t.double()), schedule.sigma(t.double()))
        return (a.view(-1, 1, 1, 1) * LATENT + b.view(-1, 1, 1, 1) * NOISE).to(z.dtype)

    return network


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("path", SCHEDULES)
def test_the_latent_comes_back(name: str, path: str) -> None:
    schedule = SCHEDULES[path]()
    diffusion = Diffusion(perfect(name, schedule), schedule, PARAMETERIZATIONS[name])
    z = noised(schedule, LATENT, NOISE, TIMES)
    torch.testing.assert_close(diffusion.denoise(z, TIMES, Context()), LATENT, rtol=1e-7, atol=1e-7)
    assert diffusion.loss(LATENT, NOISE, TIMES, Context()).max() < 1e-20


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("path", SCHEDULES)
def test_both_ends_are_finite(name: str, path: str) -> None:
    """At t = 0 z is the latent; in pure noise eps says nothing and the estimate is 0, the mean."""
    schedule = SCHEDULES[path]()
    diffusion = Diffusion(perfect(name, schedule), schedule, PARAMETERIZATIONS[name])
    zero, one = (torch.tensor(end, dtype=torch.float64) for end in (0.0, 1.0))
    torch.testing.assert_close(diffusion.denoise(LATENT, zero, Context()), LATENT)
    estimate = diffusion.denoise(noised(schedule, LATENT, NOISE, one), one, Context())
    if name == "eps" and schedule.alpha(one) == 0:
        assert (estimate == 0).all()
    else:
        torch.testing.assert_close(estimate, LATENT, rtol=1e-6, atol=1e-6)


def test_edm_is_karras_preconditioning() -> None:
    """Table 1: c_skip, c_out and c_in, for data of deviation 1 and, but for c_in, of any."""
    schedule = SCHEDULES["edm"]()
    sigma = schedule.sigma(TIMES).view(-1, 1, 1, 1)
    for std in (1.0, 0.5):
        seen: list[Tensor] = []

        def network(z: Tensor, t: Tensor, context: Context, seen: list[Tensor] = seen) -> Tensor:
            seen.append(z)
            return torch.tanh(z)

        def edm(alpha: Tensor, sigma: Tensor, std: float = std) -> tuple[Tensor, Tensor]:
            return PARAMETERIZATIONS["edm"](alpha, sigma, data_std=std)

        z = noised(schedule, LATENT, NOISE, TIMES)
        mine = Diffusion(network, schedule, edm).denoise(z, TIMES, Context())
        c_skip, c_out = std**2 / (sigma**2 + std**2), sigma * std / (sigma**2 + std**2).sqrt()
        torch.testing.assert_close(mine, c_skip * z + c_out * torch.tanh(seen[0]))
        torch.testing.assert_close(seen[0], z / (1 + sigma**2).sqrt())


def test_edm_is_minus_v_for_unit_data() -> None:
    for path in ("linear", "flow", "edm"):
        schedule = SCHEDULES[path]()
        alpha, sigma = schedule.alpha(TIMES), schedule.sigma(TIMES)
        size = torch.hypot(alpha, sigma)
        (a, b), (va, vb) = (PARAMETERIZATIONS[n](alpha, sigma) for n in ("edm", "v"))
        torch.testing.assert_close(torch.stack([a, b]) * size, -torch.stack([va, vb]))


@pytest.mark.parametrize("path", ["linear", "flow", "shifted_cosine"])
def test_the_network_sees_z_itself(path: str) -> None:
    schedule = SCHEDULES[path]()
    seen: list[tuple[Tensor, Tensor]] = []
    z = noised(schedule, LATENT, NOISE, TIMES).float()
    diffusion = Diffusion(perfect("v", schedule, seen), schedule, PARAMETERIZATIONS["v"])
    x0 = diffusion.denoise(z, TIMES, Context())
    assert torch.equal(seen[0][0], z)
    assert torch.equal(seen[0][1], TIMES.float())
    assert x0.dtype == torch.float32


def test_low_precision_keeps_its_times() -> None:
    schedule = SCHEDULES["linear"]()
    seen: list[tuple[Tensor, Tensor]] = []
    diffusion = Diffusion(perfect("eps", schedule, seen), schedule, PARAMETERIZATIONS["eps"])
    x0 = diffusion.denoise(NOISE.bfloat16(), torch.tensor(0.501), Context())
    assert x0.dtype == torch.bfloat16
    assert seen[0][1].dtype == torch.float32
    assert diffusion.loss(LATENT.bfloat16(), NOISE.bfloat16(), TIMES, Context()).dtype == torch.float32


def test_loss_is_the_mean_square_and_has_a_gradient() -> None:
    schedule = SCHEDULES["flow"]()
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    diffusion = Diffusion(lambda z, t, context: weight * z, schedule, PARAMETERIZATIONS["flow"])
    loss = diffusion.loss(LATENT, NOISE, TIMES, Context())
    z = noised(schedule, LATENT, NOISE, TIMES)
    torch.testing.assert_close(loss, (0.3 * z - (NOISE - LATENT)).square().mean((1, 2, 3)))
    loss.sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs() > 0.1


def test_unknown_parameterization() -> None:
    with pytest.raises(UserError, match="no parameterization is called 'epsilon'"):
        PARAMETERIZATIONS["epsilon"]
