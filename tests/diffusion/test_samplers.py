"""What every sampler promises: pictures free of their batch, finite from pure noise, errors in words."""

import inspect
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from carrara.context import Context
from carrara.diffusion.grids import GRIDS
from carrara.diffusion.parameterizations import PARAMETERIZATIONS
from carrara.diffusion.process import Diffusion
from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.schedules import SCHEDULES
from carrara.errors import UserError
from carrara.tensors import PictureNoise
from mixture import Mixture

SHAPE = (3, 5, 7)
DETERMINISTIC = ["ddim", "euler", "heun", "dpm2", "dpmpp_2m", "unipc", "lms", "deis", "plms"]


def run(name: str, schedule, times: Tensor, indices, *, dtype=torch.float64, **options) -> list:
    z = PictureNoise(0, indices).draw(SHAPE).to(dtype) * schedule.sigma(times[0]).to(dtype)
    noise = PictureNoise(1, indices)
    return list(SAMPLERS[name](Mixture().denoiser(schedule), z, times, schedule, noise=noise, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", ["scaled_linear", "flow", "edm"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_does_not_know_its_batch(name: str, path: str, dtype: torch.dtype) -> None:
    schedule = SCHEDULES[path]()
    times = GRIDS["karras"](6, schedule)
    together = run(name, schedule, times, [4, 7, 2], dtype=dtype)
    for place, index in enumerate([4, 7, 2]):
        alone = run(name, schedule, times, [index], dtype=dtype)
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a.z[place], b.z[0])
            assert torch.equal(a.x0[place], b.x0[0])
    assert together[-1].z.dtype == dtype
    assert 0.3 < together[-1].z.std() < 4  # 3M overshoots in six steps


PURE = [
    ("flow", {}),
    ("flow", {"shift": 5.0}),
    ("shifted_cosine", {}),
    ("cosine", {}),
    ("cosine", {"zero_terminal": True}),
    ("linear", {"zero_terminal": True}),
    ("scaled_linear", {"zero_terminal": True}),
    ("sigmoid", {}),
    ("laplace", {}),
    ("edm", {}),
]


@pytest.mark.parametrize("path", PURE, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_finite_from_pure_noise_to_the_data(name: str, path) -> None:
    schedule = SCHEDULES[path[0]](**path[1])
    for grid, steps in (("uniform", 1), ("uniform", 2), ("uniform", 9), ("karras", 5), ("trailing", 12)):
        steps = run(name, schedule, GRIDS[grid](steps, schedule), [0, 1])
        assert all(step.z.isfinite().all() and step.x0.isfinite().all() for step in steps)
        # 20291 is where cosine's table begins: what is extrapolated from there is large, as it should be.
        assert steps[-1].z.abs().max() < (1e5 if path[0] in ("cosine", "edm") else 6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_come_in_order_and_end_on_the_estimate(name: str) -> None:
    schedule = SCHEDULES["scaled_linear"]()
    steps = run(name, schedule, GRIDS["karras"](8, schedule), [0, 1])
    assert [step.index for step in steps] == list(range(len(steps)))
    assert len(steps) == 8 or name == "restart"
    if name not in ("lms", "plms"):
        torch.testing.assert_close(steps[-1].z, steps[-1].x0)
    else:  # their last slope is a mean with earlier ones
        assert (steps[-1].z - steps[-1].x0).abs().max() < 0.5


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_is_used_or_not(name: str) -> None:
    schedule = SCHEDULES["flow"]()
    times, z = GRIDS["uniform"](10, schedule), PictureNoise(0, [0]).draw(SHAPE)
    ends = []
    for seed in (1, 2):
        *_, last = SAMPLERS[name](
            Mixture().denoiser(schedule), z, times, schedule, noise=PictureNoise(seed, [0])
        )
        ends.append(last.z)
    assert torch.equal(*ends) == (name in DETERMINISTIC)


@pytest.mark.parametrize("path", SCHEDULES)
def test_one_method_under_several_names(path: str) -> None:
    schedule = SCHEDULES[path]()
    times = GRIDS["uniform"](12, schedule)
    for a, b in (
        (("euler", {}), ("ddim", {})),
        (("ddim", {"eta": 1.0}), ("ancestral", {})),
        (("euler_ancestral", {}), ("ancestral", {})),
        (("euler_ancestral", {"eta": 0.0}), ("ddim", {})),
        (("dpmpp_2m_sde", {"eta": 0.0}), ("dpmpp_2m", {})),
        (("dpmpp_sde", {"eta": 0.0}), ("dpmpp_2s_ancestral", {"eta": 0.0})),
        (("lms", {"order": 1}), ("ddim", {})),
        (("deis", {"order": 1}), ("ddim", {})),
    ):
        first, second = (run(name, schedule, times, [0, 1], **options) for name, options in (a, b))
        for x, y in zip(first, second, strict=True):
            torch.testing.assert_close(x.z, y.z, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rule", ["euler", "heun"])
def test_on_a_flow_they_are_the_plain_rules_in_t(rule: str) -> None:
    """dz/dt = (z - x0) / t, stepped as any textbook does."""
    schedule = SCHEDULES["flow"]()
    times, denoise = GRIDS["shifted"](7, schedule), Mixture().denoiser(schedule)

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        return (z - denoise(z, t)) / t

    z = PictureNoise(0, [0]).draw(SHAPE).double()
    for step, t, s in zip(run(rule, schedule, times, [0]), times[:-1], times[1:], strict=True):
        slope = velocity(z, t)
        if rule == "heun" and s > 0:
            slope = (slope + velocity(z + (s - t) * slope, s)) / 2
        z = z + (s - t) * slope
        torch.testing.assert_close(step.z, z)


def test_heun_is_karras_algorithm_1() -> None:
    schedule = SCHEDULES["edm"]()
    times, denoise = GRIDS["karras"](9, schedule), Mixture().denoiser(schedule)
    x = 80 * PictureNoise(0, [0]).draw(SHAPE).double()
    for step, t, s in zip(run("heun", schedule, times, [0]), times[:-1], times[1:], strict=True):
        high, low = schedule.sigma(t), schedule.sigma(s)
        d = (x - denoise(x, t)) / high
        there = x + (low - high) * d
        if low > 0:
            there = x + (low - high) * (d + (there - denoise(there, s)) / low) / 2
        x = there
        torch.testing.assert_close(step.z, x)


def test_restart_goes_back_up() -> None:
    schedule = SCHEDULES["edm"]()
    times = GRIDS["karras"](20, schedule)
    asked: list[float] = []
    exact = Mixture().denoiser(schedule)

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        asked.append(float(schedule.sigma(t)))
        return exact(z, t)

    z = 80 * PictureNoise(0, [0]).draw(SHAPE).double()
    noise = PictureNoise(1, [0])
    list(SAMPLERS["restart"](denoise, z, times, schedule, noise=noise, low=0.1, high=2.0, repeats=2))
    ups = [(a, b) for a, b in pairwise(asked) if b > a]
    assert len(ups) == 2
    assert all(a < 0.15 and 1 < b <= 2 for a, b in ups)
    plain = run("restart", schedule, times, [0], repeats=0)
    torch.testing.assert_close(plain[-1].z * 1.0, run("heun", schedule, times, [0])[-1].z)


def test_learnt_variance_as_a_function() -> None:
    schedule = SCHEDULES["linear"]()
    times = GRIDS["uniform"](5, schedule)
    constant = run("ancestral", schedule, times, [0], variance=0.3)
    learnt = run("ancestral", schedule, times, [0], variance=lambda z, t: torch.full_like(z, 0.3))
    torch.testing.assert_close(constant[-2].z, learnt[-2].z)
    assert not torch.equal(constant[-2].z, run("ancestral", schedule, times, [0], variance=0.9)[-2].z)


def test_times_are_given_as_one_number() -> None:
    schedule = SCHEDULES["flow"]()

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        assert t.shape == ()
        assert t.dtype == torch.float64
        return z * 0

    for name in SAMPLERS:
        z = torch.randn(2, 4)
        list(SAMPLERS[name](denoise, z, GRIDS["uniform"](4, schedule), schedule, noise=torch.randn_like))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "times",
    [[], [1.0], [0.0], [0.5, 0.7, 0.0], [1.0, 0.5, 0.5, 0.0], [0.0, 0.5, 1.0], [1.2, 0.5, 0.0], [1.0, -0.1]],
    ids=str,
)
def test_bad_grids(name: str, times: list[float]) -> None:
    """Said when the sampler is called; nobody has to take a step to find out."""
    with pytest.raises(UserError, match=r"at least one step|times must fall"):
        SAMPLERS[name](
            lambda z, t: z,
            torch.randn(1, 2),
            torch.tensor(times),
            SCHEDULES["flow"](),
            noise=torch.randn_like,
        )


def test_bad_options() -> None:
    schedule, times = SCHEDULES["flow"](), torch.tensor([1.0, 0.0])

    def call(name: str, **options: object) -> None:
        list(
            SAMPLERS[name](
                lambda z, t: z, torch.randn(1, 2), times, schedule, noise=torch.randn_like, **options
            )
        )

    for name in SAMPLERS:
        if "eta" in inspect.signature(SAMPLERS[name]).parameters:
            with pytest.raises(UserError, match="eta must be 0"):
                call(name, eta=-0.5)
        else:
            with pytest.raises(UserError, match=f"sampler '{name}' has no option 'eta'"):
                call(name, eta=0.5)
    with pytest.raises(UserError, match="did you mean 'repeats'"):
        call("restart", repeat=3)
    with pytest.raises(UserError, match="0 < low < high"):
        call("restart", low=3.0, high=1.0)
    with pytest.raises(UserError, match="order must be from 1 to 3"):
        call("unipc", order=4)
    with pytest.raises(UserError, match="did you mean 'dpmpp_2m'"):
        SAMPLERS["dpmpp2m"]
    with pytest.raises(UserError, match="variance must be from 0"):
        call("ancestral", variance=1.5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_3m_is_exact_for_an_estimate_linear_in_lambda(eta: float) -> None:
    """From its second step on; against the integral that its mean solves, by brute force."""
    schedule = SCHEDULES["scaled_linear"]()
    times = GRIDS["karras"](8, schedule)

    def lam(t: Tensor) -> Tensor:
        return schedule.alpha(t).log() - schedule.sigma(t).log()

    z = torch.ones(1, 1, dtype=torch.float64)
    run = SAMPLERS["dpmpp_3m_sde"](
        lambda z, t: (0.3 + 0.2 * lam(t)) + 0 * z, z, times, schedule, noise=torch.zeros_like, eta=eta
    )
    for step, t, s in zip(run, times[:-2], times[1:-1], strict=False):
        way = torch.linspace(float(lam(t)), float(lam(s)), 20001, dtype=torch.float64)
        pull = (1 + eta) * ((1 + eta) * (way - lam(s))).exp() * (0.3 + 0.2 * way)
        h = lam(s) - lam(t)
        exact = schedule.sigma(s) / schedule.sigma(t) * (-eta * h).exp() * z
        exact = exact + schedule.alpha(s) * torch.trapezoid(pull, way)
        if step.index > 0:
            torch.testing.assert_close(step.z, exact, rtol=1e-7, atol=1e-7)
        else:
            assert (step.z - exact).abs() > 1e-3
        z = step.z


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("path", ["flow", "shifted_cosine", "edm"])
def test_finite_with_a_network_that_is_wrong(path: str, parameterization: str) -> None:
    """An untrained network of any parameterization, from pure noise, with every sampler."""
    schedule = SCHEDULES[path]()
    diffusion = Diffusion(
        lambda z, t, context: torch.tanh(z.roll(1, -1)), schedule, PARAMETERIZATIONS[parameterization]
    )
    for name in SAMPLERS:
        times = GRIDS["karras"](6, schedule)
        z = PictureNoise(0, [0, 1]).draw(SHAPE) * float(schedule.sigma(times[0]))
        steps = SAMPLERS[name](
            lambda z, t: diffusion.denoise(z, t, Context()),
            z,
            times,
            schedule,
            noise=PictureNoise(1, [0, 1]),
        )
        assert all(step.z.isfinite().all() for step in steps)


@pytest.mark.parametrize("steps", [2, 10])
@pytest.mark.parametrize("name", SAMPLERS)
def test_rounding_is_not_blown_up(name: str, steps: int) -> None:
    """Before its last step this grid stops where the level is 1e-19: a slope there is rounding and nothing else."""
    schedule = SCHEDULES["edm"]()
    exact, times = Mixture().denoiser(schedule), GRIDS["leading"](steps, schedule)
    start = PictureNoise(0, [4, 7]).draw(SHAPE) * schedule.sigma(times[0]).float()

    def end(seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)

        def rounded(z: Tensor, t: Tensor) -> Tensor:
            x0 = exact(z.double(), t)
            return (x0 * (1 + 1e-7 * torch.randn(x0.shape, generator=draw, dtype=x0.dtype))).float()

        *_, last = SAMPLERS[name](rounded, start, times, schedule, noise=PictureNoise(1, [4, 7]))
        return last.z

    assert 0.3 < end(0).std() < 20
    torch.testing.assert_close(end(0), end(1), rtol=1e-3, atol=1e-3)
