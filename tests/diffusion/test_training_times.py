"""Training times and weightings: their densities, and weights against the papers' own formulas."""

import math

import pytest
import torch

from carrara.diffusion.parameterizations import PARAMETERIZATIONS
from carrara.diffusion.schedules import SCHEDULES, logsnr
from carrara.diffusion.times import TIMES
from carrara.diffusion.weightings import WEIGHTINGS, output_weight
from carrara.errors import UserError

U = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
"""Evenly spread uniform numbers: quantiles instead of samples."""

T = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("path", SCHEDULES)
def test_within_the_path(name: str, path: str) -> None:
    for dtype in (torch.float32, torch.float64):
        t = TIMES[name](U.to(dtype), SCHEDULES[path]())
        assert t.dtype == dtype
        assert t.shape == U.shape
        assert ((t >= 0) & (t <= 1)).all()
        assert t.std() > 0.04


def test_discrete_times_are_the_steps() -> None:
    t = TIMES["discrete"](U, SCHEDULES["linear"]())
    steps, counts = (t * 1000).round().long().unique(return_counts=True)
    assert steps.tolist() == list(range(1, 1001))
    assert (counts == 20).all()


def test_logit_normal() -> None:
    place = TIMES["logit_normal"](U, SCHEDULES["flow"](), mean=-0.5, std=0.8).logit()
    assert float(place.mean()) == pytest.approx(-0.5, abs=1e-3)
    assert float(place.std()) == pytest.approx(0.8, abs=2e-3)


@pytest.mark.parametrize("path", ["edm", "flow", "shifted_cosine", "linear"])
def test_lognormal_is_normal_in_log_level(path: str) -> None:
    schedule = SCHEDULES[path]()
    level = -logsnr(schedule, TIMES["lognormal"](U, schedule)) / 2
    quantiles = level.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    expected = [-1.2 + 1.2 * q for q in (-1.28155, 0.0, 1.28155)]
    assert quantiles.tolist() == pytest.approx(expected, abs=2e-3)


def test_mode_and_cosmap() -> None:
    flow = SCHEDULES["flow"]()
    middle = torch.tensor([0.5], dtype=torch.float64)
    assert float(TIMES["mode"](middle, flow)) == pytest.approx(0.5)
    assert float(TIMES["cosmap"](middle, flow)) == pytest.approx(0.5)
    assert TIMES["mode"](U, flow).std() < U.std()  # heavier in the middle
    t = TIMES["cosmap"](U, flow)
    cosine = SCHEDULES["shifted_cosine"]()
    torch.testing.assert_close(logsnr(flow, t), logsnr(cosine, U), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("path", ["linear", "scaled_linear", "shifted_cosine"])
def test_min_snr_in_each_currency(path: str) -> None:
    """Hang et al. 2023, section 3.4: on x0, eps and v of a variance-preserving path."""
    schedule = SCHEDULES[path]()
    snr = logsnr(schedule, T).exp()
    capped = snr.clamp(max=5)
    for name, expected in (("x0", capped), ("eps", capped / snr), ("v", capped / (snr + 1))):
        weight = output_weight(WEIGHTINGS["min_snr"](T, schedule), T, schedule, PARAMETERIZATIONS[name])
        torch.testing.assert_close(weight, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("path", ["edm", "linear", "flow"])
def test_uniform_losses_weigh_one_in_their_own_currency(path: str) -> None:
    schedule = SCHEDULES[path]()
    pairs = (("eps", "eps"), ("x0", "x0"), ("velocity", "flow"), ("edm", "edm"))
    for weighting, parameterization in pairs:
        weight = output_weight(
            WEIGHTINGS[weighting](T, schedule), T, schedule, PARAMETERIZATIONS[parameterization]
        )
        torch.testing.assert_close(weight, torch.ones_like(T), rtol=1e-8, atol=0)


def test_edm_weight_on_the_latent() -> None:
    schedule = SCHEDULES["edm"]()
    level = schedule.sigma(T)
    weight = output_weight(WEIGHTINGS["edm"](T, schedule, data_std=0.5), T, schedule, PARAMETERIZATIONS["x0"])
    torch.testing.assert_close(weight, (level**2 + 0.25) / (level * 0.5) ** 2)


def test_bound_is_ddpms() -> None:
    """Ho et al. 2020, eq. 12, with the posterior's variance, for steps 2 ... 1000."""
    schedule = SCHEDULES["linear"]()
    n = torch.arange(2, 1001)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = (1 - betas).cumprod(0)
    beta, bar, before = betas[n - 1], bars[n - 1], bars[n - 2]
    posterior = (1 - before) / (1 - bar) * beta
    expected = beta**2 / (2 * posterior * (1 - beta) * (1 - bar))
    torch.testing.assert_close(
        WEIGHTINGS["variational_bound"](n / 1000.0, schedule).double(), expected, rtol=2e-2, atol=0
    )
    torch.testing.assert_close(
        WEIGHTINGS["variational_bound"](n.double() / 1000, schedule), expected, rtol=1e-7, atol=0
    )
    first = torch.tensor(
        [0.001]
    ).double()  # as training has it: a float32 that is a little more than one step
    assert WEIGHTINGS["variational_bound"](first, schedule) == 0.5


def test_p2_soft_min_snr_and_sigmoid() -> None:
    schedule = SCHEDULES["shifted_cosine"]()
    snr = logsnr(schedule, T).exp()
    torch.testing.assert_close(WEIGHTINGS["p2"](T, schedule, k=2.0, gamma=0.5), 1 / (2 + snr).sqrt())
    on_x0 = output_weight(WEIGHTINGS["soft_min_snr"](T, schedule), T, schedule, PARAMETERIZATIONS["x0"])
    torch.testing.assert_close(on_x0, 5 * snr / (snr + 5))
    sigmoid = WEIGHTINGS["sigmoid"](T, schedule, bias=-1.0)
    torch.testing.assert_close(sigmoid, 1 / (1 + snr * math.e))


PURE = {"zero terminal": SCHEDULES["linear"](zero_terminal=True)} | {
    name: schedule
    for name in SCHEDULES
    if (schedule := SCHEDULES[name]()).alpha(torch.ones((), dtype=torch.float64)) == 0
}
"""Paths that end in pure noise."""

# What each weighting comes to at alpha = 0 for eps and for any other output, at sigma = 0 for x0 and for any other
# output; 0 also where the limit is infinite, for there nothing is learnt of the latent.
LIMITS = {
    "eps": (1, 0, 0, 1),
    "x0": (0, 1, 1, 0),
    "velocity": (0, 1, 0, 1),
    "min_snr": (1, 0, 5, 0),
    "soft_min_snr": (1, 0, 5, 0),
    "p2": (1, 0, 1, 0),
    "edm": (0, 1, 0, 1),
    "sigmoid": (1, 0, math.exp(-1), 0),
    "variational_bound": (0, None, 0, 0.5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_limits_at_both_ends(weighting: str, parameterization: str, dtype: torch.dtype) -> None:
    def at(t: float, schedule) -> float:
        t = torch.tensor([t], dtype=dtype)
        weight = WEIGHTINGS[weighting](t, schedule)
        return float(output_weight(weight, t, schedule, PARAMETERIZATIONS[parameterization]))

    eps_noise, noise, x0_data, data = LIMITS[weighting]
    for path in SCHEDULES:
        expected = x0_data if parameterization == "x0" else data
        assert at(0.0, SCHEDULES[path]()) == pytest.approx(expected, rel=1e-4, abs=1e-12), path
    for path, schedule in PURE.items():
        expected = eps_noise if parameterization == "eps" else noise
        if expected is None:  # of the bound: half the signal-to-noise ratio one step before
            expected = logsnr(schedule, torch.tensor(0.999, dtype=torch.float64)).exp() / 2
        assert at(1.0, schedule) == pytest.approx(float(expected), rel=1e-3, abs=1e-12), path
    assert len(PURE) == 5
    for path in SCHEDULES.keys() - PURE.keys():
        assert 0 < at(1.0, SCHEDULES[path]()) < math.inf


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("path", SCHEDULES)
def test_weights_are_positive(name: str, path: str) -> None:
    weight = WEIGHTINGS[name](T.float(), SCHEDULES[path]())
    assert weight.dtype == torch.float32
    assert weight.isfinite().all()
    assert (weight > 0).all()


def test_mistakes() -> None:
    with pytest.raises(UserError, match="did you mean 'min_snr'"):
        WEIGHTINGS["min-snr"]
    with pytest.raises(UserError, match="did you mean 'logit_normal'"):
        TIMES["logitnormal"]
    with pytest.raises(UserError, match="has no option 'gama'; did you mean 'gamma'"):
        WEIGHTINGS["min_snr"](T, SCHEDULES["linear"](), gama=3.0)
