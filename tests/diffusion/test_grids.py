"""Every grid, for every schedule, falls from the noise to 0; published ones are what was published."""

import pytest
import torch

from carrara.diffusion.grids import GRIDS, STABLE_DIFFUSION_LEVELS, check_times
from carrara.diffusion.schedules import SCHEDULES
from carrara.errors import UserError


def levels(schedule, times):
    return schedule.sigma(times) / schedule.alpha(times)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_falls_from_noise_to_data(name: str, path: str, steps: int) -> None:
    times = GRIDS[name](steps, SCHEDULES[path]())
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    check_times(times)
    assert times[-1] == 0
    if name not in ("leading", "explicit"):  # these begin where they are told to
        assert times[0] == 1


def test_leading_and_trailing_are_steps_of_the_table() -> None:
    """The rows of Lin et al. 2023, table 2, for ten steps of a thousand, counted from 1."""
    schedule = SCHEDULES["linear"]()
    assert (GRIDS["leading"](10, schedule) * 1000).tolist()[:-1] == pytest.approx(list(range(901, 0, -100)))
    assert (GRIDS["trailing"](10, schedule) * 1000).tolist() == pytest.approx(list(range(1000, -1, -100)))
    assert float(GRIDS["leading"](10, schedule, offset=1)[0]) == pytest.approx(0.902)
    assert (GRIDS["trailing"](7, schedule) * 1000 % 1).clamp(max=0.5).max() < 1e-9


@pytest.mark.parametrize("path", ["scaled_linear", "edm"])
def test_karras(path: str) -> None:
    """Eq. 5, between a table's own ends or those given."""
    schedule = SCHEDULES[path]()
    low, high = (0.002, 80.0) if path == "edm" else (0.0291675, 14.6146)
    i = torch.arange(9, dtype=torch.float64)
    expected = (high ** (1 / 7) + i / 8 * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    torch.testing.assert_close(
        levels(schedule, GRIDS["karras"](9, schedule))[:-1], expected, rtol=3e-5, atol=0
    )
    some = levels(schedule, GRIDS["karras"](5, schedule, lowest=0.1, highest=9.0, rho=3.0))
    assert float(some[0]) == pytest.approx(9.0)
    assert float(some[-2]) == pytest.approx(0.1)


def test_log_snr_is_exponential() -> None:
    schedule = SCHEDULES["scaled_linear"]()
    times = GRIDS["log_snr"](12, schedule)
    assert torch.equal(times, GRIDS["exponential"](12, schedule))
    steps = levels(schedule, times)[:-1].log().diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-8, atol=0)


def test_shifted_and_quadratic() -> None:
    flow = SCHEDULES["flow"]()
    torch.testing.assert_close(
        levels(flow, GRIDS["shifted"](8, flow, shift=3.0))[1:-1],
        3 * levels(flow, GRIDS["uniform"](8, flow))[1:-1],
    )
    torch.testing.assert_close(GRIDS["quadratic"](4, flow), torch.tensor([16.0, 9, 4, 1, 0]).double() / 16)


def test_explicit_levels() -> None:
    schedule = SCHEDULES["scaled_linear"]()
    listed = torch.tensor(STABLE_DIFFUSION_LEVELS, dtype=torch.float64)
    torch.testing.assert_close(
        levels(schedule, GRIDS["explicit"](10, schedule))[:-1],
        listed[:-1].clamp(max=14.6146),
        rtol=1e-3,
        atol=0,
    )
    twice = levels(schedule, GRIDS["explicit"](20, schedule))[:-1]
    torch.testing.assert_close(twice[::2], levels(schedule, GRIDS["explicit"](10, schedule))[:-1])
    torch.testing.assert_close(twice[3], (listed[1] * listed[2]).sqrt())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [5, 12, 30])
def test_as_diffusers_spaces_them(steps: int) -> None:
    """Its own float32 sigmas, untouched: spacings by name, and the flow's shift (its last is 0 in both)."""
    diffusers = pytest.importorskip("diffusers")
    schedule = SCHEDULES["scaled_linear"]()
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    for mine, config in (
        (GRIDS["karras"](steps, schedule), {"use_karras_sigmas": True}),
        (GRIDS["exponential"](steps, schedule), {"use_exponential_sigmas": True}),
        (GRIDS["leading"](steps, schedule, offset=1), {"timestep_spacing": "leading", "steps_offset": 1}),
        (GRIDS["trailing"](steps, schedule), {"timestep_spacing": "trailing"}),
    ):
        theirs = diffusers.EulerDiscreteScheduler(**betas, **config)
        theirs.set_timesteps(steps)
        torch.testing.assert_close(levels(schedule, mine).float(), theirs.sigmas, rtol=2e-3, atol=0)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    flow.set_timesteps(
        sigmas=[float(t) for t in GRIDS["shifted"](steps, SCHEDULES["flow"](), shift=3.0)[:-1]]
    )
    torch.testing.assert_close(
        flow.sigmas, GRIDS["shifted"](steps, SCHEDULES["flow"](), shift=3.0).float(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("name", GRIDS)
def test_no_steps(name: str) -> None:
    for steps in (0, -3):
        with pytest.raises(UserError, match="number of steps must be 1 or more"):
            GRIDS[name](steps, SCHEDULES["linear"]())


def test_mistakes() -> None:
    schedule = SCHEDULES["linear"]()
    with pytest.raises(UserError, match="at most 1000 steps"):
        GRIDS["leading"](1001, schedule)
    with pytest.raises(UserError, match="0 < lowest < highest"):
        GRIDS["karras"](5, schedule, lowest=3.0, highest=1.0)
    with pytest.raises(UserError, match="rho must be greater"):
        GRIDS["karras"](5, schedule, rho=0.0)
    with pytest.raises(UserError, match="falling positive"):
        GRIDS["explicit"](5, schedule, levels=[1.0, 2.0])
    with pytest.raises(UserError, match="did you mean 'karras'"):
        GRIDS["karas"]
    with pytest.raises(UserError, match="has no option 'rho'"):
        GRIDS["uniform"](5, schedule, rho=3.0)
