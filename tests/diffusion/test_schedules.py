"""Every schedule is a path: monotone, invertible, exact at its ends, in the dtype it is asked in."""

import pytest
import torch

from carrara.diffusion.schedules import SCHEDULES, logsnr, time_of_level
from carrara.errors import UserError

VARIANTS = [
    *((name, {}) for name in SCHEDULES),
    ("flow", {"shift": 3.0}),
    ("shifted_cosine", {"shift": 4.0}),
    ("linear", {"zero_terminal": True}),
    ("scaled_linear", {"zero_terminal": True}),
    ("edm", {"sigma_max": 500.0, "rho": 3.0}),
    ("sigmoid", {"temperature": 0.5, "start": 0.0}),
    ("laplace", {"mean": 1.0, "width": 1.0}),
]


@pytest.fixture(params=VARIANTS, ids=str)
def schedule(request):
    name, options = request.param
    return SCHEDULES[name](**options)


def test_path(schedule) -> None:
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    alpha, sigma, lam = schedule.alpha(t), schedule.sigma(t), logsnr(schedule, t)
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert lam[0] == torch.inf
    assert (lam.diff()[1:] < 0).all()
    assert (alpha.diff() <= 0).all()
    assert (sigma.diff() >= 0).all()
    assert alpha.isfinite().all()
    assert sigma.isfinite().all()
    assert alpha[-1] < 0.07 or (alpha == 1).all()


def test_inverse(schedule) -> None:
    t = torch.linspace(0, 1, 777, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(logsnr(schedule, t)), t, rtol=0, atol=1e-9)
    levels = torch.tensor([0.0, 0.03, 0.5, 1.0, 9.0], dtype=torch.float64)
    back = time_of_level(schedule, levels)
    torch.testing.assert_close(schedule.sigma(back) / schedule.alpha(back), levels, rtol=1e-8, atol=1e-12)


def test_beyond_the_path_is_its_end(schedule) -> None:
    far = torch.tensor([-300.0, 300.0], dtype=torch.float64)
    end, begin = schedule.time(far)
    assert 0.999 < end <= 1
    assert 0 <= begin < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_shape_and_dtype(schedule, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    t = torch.rand(shape, dtype=dtype)
    for answer in (schedule.alpha(t), schedule.sigma(t), schedule.time(t), logsnr(schedule, t)):
        assert answer.shape == shape
        assert answer.dtype == dtype
    torch.testing.assert_close(schedule.sigma(t).double(), schedule.sigma(t.double()), rtol=1e-6, atol=1e-7)


def test_variance_preserving_or_straight() -> None:
    t = torch.linspace(0, 1, 100, dtype=torch.float64)
    for name in SCHEDULES:
        alpha, sigma = SCHEDULES[name]().alpha(t), SCHEDULES[name]().sigma(t)
        kept = {"flow": alpha + sigma, "edm": alpha**2}.get(name, alpha**2 + sigma**2)
        torch.testing.assert_close(kept, torch.ones_like(t), rtol=0, atol=1e-12)


def test_shift_multiplies_the_level() -> None:
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for name in ("flow", "shifted_cosine"):
        plain, shifted = SCHEDULES[name](), SCHEDULES[name](shift=3.0)
        ratio = (shifted.sigma(t) / shifted.alpha(t)) / (plain.sigma(t) / plain.alpha(t))
        torch.testing.assert_close(ratio, torch.full_like(t, 3.0), rtol=1e-9, atol=0)


def test_laplace_density() -> None:
    """Uniform times have Laplace-distributed log-SNRs: half lie within width * log 2 of the mean."""
    lam = logsnr(SCHEDULES["laplace"](mean=0.3, width=0.7), (torch.arange(10000).double() + 0.5) / 10000)
    assert float(((lam - 0.3).abs() < 0.7 * 0.6931).double().mean()) == pytest.approx(0.5, abs=1e-3)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="did you mean 'scaled_linear'"):
        SCHEDULES["scaled_liner"]
    with pytest.raises(UserError, match="did you mean 'shift'"):
        SCHEDULES["flow"](shfit=2.0)
    with pytest.raises(UserError, match="shift must be greater than 0"):
        SCHEDULES["flow"](shift=0.0)
    with pytest.raises(UserError, match="steps must be greater than 0"):
        SCHEDULES["linear"](steps=0)
