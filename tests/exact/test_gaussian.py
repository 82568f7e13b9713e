"""A Gaussian target, where everything is known in closed form: the flow and its marginals."""

import pytest
import torch

from carrara.diffusion.grids import GRIDS
from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.schedules import SCHEDULES, NoiseSchedule
from carrara.tensors import PictureNoise
from mixture import Mixture

MEAN, STD = 0.4, 0.6
TARGET = Mixture((1.0,), (MEAN,), (STD,))
NOISY = ["ancestral", "euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"]


def flowed(z: torch.Tensor, schedule: NoiseSchedule, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Where the probability flow takes z from t to s: quantiles stay quantiles."""
    spread = [torch.hypot(schedule.alpha(time) * STD, schedule.sigma(time)) for time in (t, s)]
    return schedule.alpha(s) * MEAN + spread[1] / spread[0] * (z - schedule.alpha(t) * MEAN)


@pytest.mark.parametrize("name", ["linear", "flow", "edm", "laplace"])
@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm2", "dpmpp_2m", "unipc", "lms", "deis", "plms"])
def test_flow(name: str, sampler: str) -> None:
    """Every stop lies on the exact path, not only the last; Euler's rule comes less close."""
    schedule = SCHEDULES[name]()
    times = schedule.time(torch.linspace(-4, 6, 201, dtype=torch.float64))
    z = schedule.alpha(times[0]) * MEAN + schedule.sigma(times[0]) * torch.linspace(-2, 2, 9).double()[None]
    last = z
    for step in SAMPLERS[sampler](TARGET.denoiser(schedule), z, times, schedule, noise=torch.randn_like):
        exact = flowed(z, schedule, times[0], times[step.index + 1])
        size = torch.hypot(schedule.alpha(times[step.index + 1]), schedule.sigma(times[step.index + 1]))
        assert ((step.z - exact) / size).abs().max() < (2e-2 if sampler == "ddim" else 1e-3)
        last = step.z
    assert last.std() > 0.3


@pytest.mark.parametrize("sampler", [*NOISY, "restart", "ddim", "heun", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("name", ["scaled_linear", "flow", "edm"])
def test_marginal(name: str, sampler: str) -> None:
    """From noise to samples of the target: mean and deviation of 40000 numbers."""
    schedule = SCHEDULES[name]()
    times = GRIDS["karras"](120, schedule)
    noise = PictureNoise(3, range(4))
    z = noise.draw((10000,)).double() * torch.hypot(schedule.sigma(times[0]), schedule.alpha(times[0]))
    *_, last = SAMPLERS[sampler](TARGET.denoiser(schedule), z, times, schedule, noise=noise)
    assert last.z.mean() == pytest.approx(MEAN, abs=0.02)
    assert last.z.std() == pytest.approx(STD, abs=0.035)


@pytest.mark.parametrize("variance", [0.0, 1.0, 0.5])
def test_ancestral_variances_meet_for_small_steps(variance: float) -> None:
    schedule = SCHEDULES["linear"]()
    noise = PictureNoise(4, range(4))
    times = GRIDS["uniform"](500, schedule)
    z = noise.draw((5000,)).double()
    *_, last = SAMPLERS["ancestral"](
        TARGET.denoiser(schedule), z, times, schedule, noise=noise, variance=variance
    )
    assert last.z.std() == pytest.approx(STD, abs=0.03)


def test_consistency_model_of_a_gaussian() -> None:
    """The flow's own map to t = 0 is a perfect consistency model: any number of steps gives the target."""
    schedule = SCHEDULES["flow"]()
    zero = torch.zeros((), dtype=torch.float64)
    noise = PictureNoise(5, range(4))
    for steps in (1, 3):
        times = GRIDS["uniform"](steps, schedule)
        z = noise.draw((10000,)).double()
        *_, last = SAMPLERS["consistency"](
            lambda z, t: flowed(z, schedule, t, zero), z, times, schedule, noise=noise
        )
        assert last.z.mean() == pytest.approx(MEAN, abs=0.015)
        assert last.z.std() == pytest.approx(STD, abs=0.015)
