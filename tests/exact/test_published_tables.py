"""The discrete schedules against published figures (T = 1000); what zero terminal SNR does to them."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from carrara.diffusion.schedules import SCHEDULES

# name, options, last alpha_bar, its root, smallest and largest sigma / alpha
PUBLISHED = [
    ("linear", {}, 4.03583e-5, 0.006353, 0.0100, 157.41),
    ("scaled_linear", {"start": 0.0015, "end": 0.0195}, 1.42304e-4, 0.011929, 0.03876, 83.82),
    ("scaled_linear", {}, 0.0046601, 0.068265, 0.02917, 14.6146),
    ("cosine", {}, 2.43e-9, 4.9e-5, 0.0064, 20291),
]


def at(step: int) -> Tensor:
    return torch.tensor(step / 1000, dtype=torch.float64)


@pytest.mark.parametrize(("name", "options", "bar", "root", "low", "high"), PUBLISHED)
def test_ends(name: str, options: dict[str, float], bar: float, root: float, low: float, high: float) -> None:
    schedule = SCHEDULES[name](**options)
    digits = 3e-3 if name == "cosine" else 5e-6  # as many as were published
    assert float(schedule.alpha(at(1000))) ** 2 == pytest.approx(bar, rel=digits)
    assert float(schedule.alpha(at(1000))) == pytest.approx(root, rel=6e-3 if name == "cosine" else 1e-4)
    assert float(schedule.sigma(at(1)) / schedule.alpha(at(1))) == pytest.approx(low, rel=6e-3)
    assert float(schedule.sigma(at(1000)) / schedule.alpha(at(1000))) == pytest.approx(high, rel=5e-5)


def written_out(name: str) -> np.ndarray:
    """alpha_bar of steps 1 ... 1000, by a loop."""
    bars, bar = [], 1.0
    for n in range(1, 1001):
        if name == "linear":
            beta = 1e-4 + (0.02 - 1e-4) * (n - 1) / 999
        elif name == "scaled_linear":
            beta = (math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * (n - 1) / 999) ** 2
        else:
            f = [math.cos((m / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for m in (n - 1, n)]
            beta = min(1 - f[1] / f[0], 0.999)
        bar *= 1 - beta
        bars.append(bar)
    return np.array(bars)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_every_step(name: str) -> None:
    schedule = SCHEDULES[name]()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    bars = written_out(name)
    np.testing.assert_allclose(schedule.alpha(t).numpy() ** 2, bars, rtol=1e-10)
    np.testing.assert_allclose(schedule.sigma(t).numpy() ** 2, 1 - bars, rtol=1e-9)
    np.testing.assert_allclose(schedule.alpha(t.float()).numpy() ** 2, bars, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_zero_terminal(name: str) -> None:
    plain, zero = SCHEDULES[name](), SCHEDULES[name](zero_terminal=True)
    assert zero.alpha(at(1000)) == 0
    assert zero.sigma(at(1000)) == 1
    assert float(zero.alpha(at(1))) == pytest.approx(float(plain.alpha(at(1))), rel=1e-12)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert (zero.alpha(t).diff() < 0).all()
    # Lin et al. 2023, Algorithm 1, written out for one step in the middle
    first, middle, last = (float(plain.alpha(at(n))) for n in (1, 400, 1000))
    assert float(zero.alpha(at(400))) == pytest.approx((middle - last) * first / (first - last), rel=1e-12)
