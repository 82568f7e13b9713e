"""Every sampler that diffusers has too, against it: same denoiser, noise and stops, compared at every step.

How the two are brought onto the same ground:

* diffusers computes in float32 whatever it is given. Its modules are run with stand-ins for ``torch`` and
  ``np`` whose float32 is float64, so that what is compared is the method and not the rounding.
* It knows two ways of writing z. Its "VP" schedulers carry z itself, its "VE" ones z / alpha.
* Its steps are whole numbers n - 1 of a table of 1000, which it rounds before it asks the network, but not in
  its own arithmetic. Here the network is given the noise level that the arithmetic uses. Our times are those
  at which our schedule has these levels; so its own spacings, Karras' and the flow's are all compared.
* Its last step, from the smallest level to 0, puts every method on x0; it is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.schedules import SCHEDULES, NoiseSchedule, time_of_level
from mixture import Mixture

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    from diffusers import schedulers as diffusers_schedulers

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

SHAPE = (2, 3, 4, 4)
TABLES = {  # ours -> diffusers' configuration
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


class _Double:
    """A module in which float32 means float64."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.float32 = module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Draws:
    """The same Gaussian numbers for both sides, in order; called as our ``noise`` or as diffusers' randn."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        return torch.randn(SHAPE, generator=self._generator, dtype=torch.float64)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a scheduler of diffusers that computes in float64 and draws from ``draws``."""

    def make(name: str, draws: Draws, **config: Any) -> Any:
        try:
            kind = getattr(diffusers_schedulers, name)
            module = __import__(kind.__module__, fromlist=["_"])
        except ImportError as error:  # DPMSolverSDEScheduler needs torchsde
            pytest.skip(str(error))
        if kind.__module__.endswith("dummy_torch_and_torchsde_objects"):
            pytest.skip("needs torchsde")
        monkeypatch.setattr(module, "torch", _Double(torch))
        monkeypatch.setattr(module, "np", _Double(np))
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", draws)
        return kind(**config)

    return make


def denoiser(schedule: NoiseSchedule) -> Callable[[Tensor, Tensor], Tensor]:
    """A mixture's exact denoiser with a term that couples neighbours, so that no pixel is on its own."""
    exact = Mixture().denoiser(schedule)
    return lambda z, t: exact(z, t) + 0.2 * schedule.sigma(t) * torch.sin(z.roll(1, -1) - z.roll(1, -2))


def start(seed: int, schedule: NoiseSchedule, t: Tensor) -> Tensor:
    return schedule.alpha(t) * 0.3 + schedule.sigma(t) * Draws(seed + 1000)()


def ours(
    name: str, schedule: NoiseSchedule, times: Tensor, seed: int, draws: Callable[..., Tensor], **options: Any
) -> list[Tensor]:
    z = start(seed, schedule, times[0])
    steps = SAMPLERS[name](denoiser(schedule), z, times, schedule, noise=draws, **options)
    return [step.z for step in steps]


def theirs(
    scheduler: Any,
    schedule: NoiseSchedule,
    seed: int,
    levels: list[Tensor],
    *,
    exploding: bool,
    flow: bool = False,
    led: list[Tensor] | None = None,
) -> list[Tensor]:
    """z after each call of the scheduler; ``levels[i]`` is sigma / alpha at call i.

    With ``led`` it is put back onto our path after every call, and only each single step is its own.
    """
    denoise = denoiser(schedule)
    times = [time_of_level(schedule, level) for level in levels]
    z = start(seed, schedule, times[0])
    x = z / schedule.alpha(times[0]) if exploding else z
    seen = []
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    # The last call is the collapse; told to keep their order, several schedulers divide by zero in it.
    for index, (stamp, t) in enumerate(zip(scheduler.timesteps[: len(times) - 1], times, strict=False)):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        if exploding:
            scheduler.scale_model_input(x, stamp)
        z = alpha * x if exploding else x
        x0 = denoise(z, t)
        eps = (z - alpha * x0) / sigma
        x = scheduler.step((z - x0) / sigma if flow else eps, stamp, x).prev_sample
        seen.append(schedule.alpha(times[index + 1]) * x if exploding else x)
        if led is not None:
            x = led[index]
    return seen


def assert_same(mine: list[Tensor], other: list[Tensor], tolerance: float = 1e-8) -> None:
    """Step by step, all but the collapse; and that there was something to get wrong."""
    assert len(other) > 1
    for a, b in zip(mine, other, strict=False):
        # Heun's first step from the cosine table's level of 20291 is large in both.
        assert (a - b).abs().max() < tolerance * b.abs().max().clamp(min=1), float((a - b).abs().max())
        assert b.std() > 0.05
    assert all((b - a).abs().max() > 1e-5 for a, b in pairwise(other))


def grid(schedule: NoiseSchedule, levels: Tensor) -> Tensor:
    """Our times for diffusers' sigmas, the last being 0."""
    return torch.cat([time_of_level(schedule, levels[:-1]), torch.zeros(1)])


SPACINGS = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"timestep_spacing": "trailing"},
]
CASES = [
    (seed, table, steps, spacing)
    for seed, (table, steps, spacing) in enumerate(
        [
            ("linear", 11, SPACINGS[1]),
            ("linear", 20, SPACINGS[3]),
            ("scaled_linear", 8, SPACINGS[0]),
            ("scaled_linear", 15, SPACINGS[2]),
            ("scaled_linear", 25, SPACINGS[1]),
            ("cosine", 16, SPACINGS[3]),
        ]
    )
]
CASES += [
    pytest.param((10 + steps, table, steps, spacing), marks=pytest.mark.slow)
    for table in ("linear", "scaled_linear")
    for steps in (5, 40, 100)
    for spacing in SPACINGS
]

MULTISTEP = "DPMSolverMultistepScheduler"
SAME_STOPS: list[tuple[str, dict[str, Any], str, dict[str, Any], bool]] = [
    ("EulerDiscreteScheduler", {}, "euler", {}, True),
    ("EulerDiscreteScheduler", {}, "ddim", {}, True),
    ("EulerAncestralDiscreteScheduler", {}, "euler_ancestral", {}, True),
    ("LMSDiscreteScheduler", {}, "lms", {}, True),
    (MULTISTEP, {"solver_order": 2}, "dpmpp_2m", {}, False),
    (MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde", {}, False),
    ("UniPCMultistepScheduler", {"solver_order": 2}, "unipc", {}, False),
    ("UniPCMultistepScheduler", {"solver_order": 3}, "unipc", {"order": 3}, False),
    ("DEISMultistepScheduler", {"solver_order": 2}, "deis", {"order": 2}, False),
    ("DEISMultistepScheduler", {"solver_order": 3}, "deis", {"order": 3}, False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("pair", SAME_STOPS, ids=lambda p: f"{p[2]}-{p[0]}-{p[1].get('solver_order', '')}")
def test_one_call_a_step(pair: Any, case: Any, scheduler: Callable[..., Any]) -> None:
    name, config, sampler, options, exploding = pair
    seed, table, steps, spacing = case
    if name == "EulerAncestralDiscreteScheduler":  # knows no Karras levels
        spacing = {k: v for k, v in spacing.items() if k == "timestep_spacing"}
    if name not in ("EulerDiscreteScheduler", "LMSDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        config = {**config, "lower_order_final": False, "final_sigmas_type": "zero"}
        if name == "UniPCMultistepScheduler":  # whose order falls towards the data, as in its authors' code
            config["lower_order_final"] = True
        if name == "DEISMultistepScheduler":
            del config["final_sigmas_type"]  # it repeats its last level instead; that step is left out anyway
    schedule = SCHEDULES[table]()
    it = scheduler(name, Draws(seed), **TABLES[table], **config, **spacing)
    it.set_timesteps(steps)
    levels = it.sigmas
    mine = ours(sampler, schedule, grid(schedule, levels), seed, Draws(seed), **options)
    assert_same(mine, theirs(it, schedule, seed, list(levels[:-1]), exploding=exploding))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dpmpp_3m(case: Any, scheduler: Callable[..., Any]) -> None:
    """Without noise. Its second step is 2M's, ours and k-diffusion's is another: the later ones agree.

    With noise (sde-dpmsolver++, order 3) it is no reference: the sign of the 1/2 in its last term lets that
    tend to -1 where it should vanish with h. The formula here is the same with 2 h for h.
    """
    seed, table, steps, spacing = case
    schedule = SCHEDULES[table]()
    it = scheduler(
        MULTISTEP,
        Draws(seed),
        **TABLES[table],
        **spacing,
        solver_order=3,
        lower_order_final=False,
    )
    it.set_timesteps(steps)
    mine = ours("dpmpp_3m_sde", schedule, grid(schedule, it.sigmas), seed, Draws(seed), eta=0.0)
    other = theirs(it, schedule, seed, list(it.sigmas[:-1]), exploding=False, led=mine)
    assert_same(mine[2:], other[2:])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_heun(case: Any, scheduler: Callable[..., Any]) -> None:
    """Two calls a step: its sigmas repeat every inner stop."""
    seed, table, steps, spacing = case
    schedule = SCHEDULES[table]()
    it = scheduler("HeunDiscreteScheduler", Draws(seed), **TABLES[table], **spacing)
    it.set_timesteps(steps)
    stops = torch.cat([it.sigmas[:1], it.sigmas[1::2]])
    mine = ours("heun", schedule, grid(schedule, stops), seed, Draws(seed))
    assert_same(mine, theirs(it, schedule, seed, list(it.sigmas[:-1]), exploding=True)[1::2])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dpm2(case: Any, scheduler: Callable[..., Any]) -> None:
    """Two calls a step, the second at ``sigmas_interpol``."""
    seed, table, steps, spacing = case
    schedule = SCHEDULES[table]()
    it = scheduler("KDPM2DiscreteScheduler", Draws(seed), **TABLES[table], **spacing)
    it.set_timesteps(steps)
    stops = torch.cat([it.sigmas[:1], it.sigmas[1::2]])[: steps + 1]
    middles = it.sigmas_interpol[1::2]
    levels = [level for pair in zip(stops[:-1], middles, strict=False) for level in pair][: 2 * steps - 1]
    mine = ours("dpm2", schedule, grid(schedule, stops), seed, Draws(seed))
    assert_same(mine, theirs(it, schedule, seed, levels, exploding=True)[1::2])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dpmpp_2s(case: Any, scheduler: Callable[..., Any]) -> None:
    """Its single-step solver takes two stops as middle and end: it gets ours with the middles between."""
    seed, table, steps, spacing = case
    spacing = {k: v for k, v in spacing.items() if k != "timestep_spacing"}  # it has none to choose
    schedule = SCHEDULES[table]()
    it = scheduler("DPMSolverSinglestepScheduler", Draws(seed), **TABLES[table], **spacing, solver_order=2)
    it.set_timesteps(2 * steps - 1)
    stops = it.sigmas[:-1][::2]
    pairs = torch.stack([stops[:-1], (stops[:-1] * stops[1:]).sqrt()], 1).flatten()
    it.sigmas = torch.cat([pairs, stops[-1:], torch.zeros(1)])
    stops = torch.cat([stops, torch.zeros(1)])
    mine = ours("dpmpp_2s_ancestral", schedule, grid(schedule, stops), seed, Draws(seed), eta=0.0)
    other = theirs(it, schedule, seed, list(it.sigmas[:-1]), exploding=False)
    assert_same(mine, other[1::2])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dpmpp_sde(case: Any, scheduler: Callable[..., Any]) -> None:
    """Two calls a step; its Brownian motion in sigma is fed with our increments."""
    seed, table, steps, spacing = case
    spacing = {k: v for k, v in spacing.items() if k != "use_exponential_sigmas"}
    schedule = SCHEDULES[table]()
    it = scheduler("DPMSolverSDEScheduler", Draws(seed), **TABLES[table], **spacing)
    it.set_timesteps(steps)
    stops = torch.cat([it.sigmas[:1], it.sigmas[1::2]])
    increments, draws = {}, Draws(seed)

    def motion(high: Tensor, low: Tensor) -> Tensor:
        """W(low) - W(high) over the root of high - low."""
        top = float(high)
        if top not in increments:
            increments[top] = (high - low).sqrt() * draws(), low
            return increments[top][0] / (high - low).sqrt()
        first, middle = increments[top]
        return (first + (middle - low).sqrt() * draws()) / (high - low).sqrt()

    it.noise_sampler = motion
    middles = (stops[:-1] * stops[1:]).sqrt()
    levels = [level for pair in zip(stops[:-1], middles, strict=True) for level in pair][: 2 * steps - 1]
    mine = ours("dpmpp_sde", schedule, grid(schedule, stops), seed, Draws(seed))
    assert_same(mine, theirs(it, schedule, seed, levels, exploding=True)[1::2])


STRIDES = [("linear", 10, "leading"), ("scaled_linear", 50, "trailing"), ("scaled_linear", 7, "leading")]


def strided(it: Any, steps: int) -> tuple[NoiseSchedule, Tensor, list[Tensor]]:
    """A scheduler that thinks in steps n - 1 of its table: (schedule, our times n / 1000, levels)."""
    it.set_timesteps(steps)
    schedule = SCHEDULES[it.config.beta_schedule](start=it.config.beta_start, end=it.config.beta_end)
    times = torch.cat([(it.timesteps.double() + 1) / 1000, torch.zeros(1)])
    levels = [schedule.sigma(t) / schedule.alpha(t) for t in times[:-1]]
    return schedule, times, levels


@pytest.mark.parametrize("stride", STRIDES, ids=str)
@pytest.mark.parametrize("kind", [("fixed_small", 0.0), ("fixed_large", 1.0)], ids=str)
def test_ddpm(kind: Any, stride: Any, scheduler: Callable[..., Any]) -> None:
    table, steps, spacing = stride
    variance_type, v = kind
    it = scheduler(
        "DDPMScheduler",
        Draws(5),
        **TABLES[table],
        variance_type=variance_type,
        clip_sample=False,
        timestep_spacing=spacing,
    )
    schedule, times, levels = strided(it, steps)
    mine = ours("ancestral", schedule, times, 5, Draws(5), variance=v)
    assert_same(mine, theirs(it, schedule, 5, levels, exploding=False))


@pytest.mark.parametrize("stride", STRIDES, ids=str)
def test_ddpm_with_a_learnt_variance(stride: Any, scheduler: Callable[..., Any]) -> None:
    """Twice the channels; the second half, here tanh(z), between -1 (posterior) and 1 (beta)."""
    table, steps, spacing = stride
    it = scheduler(
        "DDPMScheduler",
        Draws(5),
        **TABLES[table],
        variance_type="learned_range",
        clip_sample=False,
        timestep_spacing=spacing,
    )
    plain = it.step
    it.step = lambda out, t, x: plain(torch.cat([out, x.tanh()], 1), t, x)
    schedule, times, levels = strided(it, steps)
    mine = ours("ancestral", schedule, times, 5, Draws(5), variance=lambda z, t: (z.tanh() + 1) / 2)
    assert_same(mine, theirs(it, schedule, 5, levels, exploding=False))


@pytest.mark.parametrize("stride", STRIDES, ids=str)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(eta: float, stride: Any, scheduler: Callable[..., Any]) -> None:
    table, steps, spacing = stride
    it = scheduler("DDIMScheduler", Draws(6), **TABLES[table], clip_sample=False, timestep_spacing=spacing)
    plain = it.step
    it.step = lambda out, t, x: plain(out, t, x, eta=eta)
    schedule, times, levels = strided(it, steps)
    mine = ours("ddim", schedule, times, 6, Draws(6), eta=eta)
    assert_same(mine, theirs(it, schedule, 6, levels, exploding=False))


@pytest.mark.parametrize("stride", STRIDES, ids=str)
def test_plms(stride: Any, scheduler: Callable[..., Any]) -> None:
    """Its first step is two calls, and its timesteps name the second stop twice."""
    table, steps, spacing = stride
    it = scheduler("PNDMScheduler", Draws(7), **TABLES[table], skip_prk_steps=True, timestep_spacing=spacing)
    schedule, _, levels = strided(it, steps)
    stops = torch.stack([levels[0], *levels[2:], torch.zeros(())])
    mine = ours("plms", schedule, grid(schedule, stops), 7, Draws(7))
    assert_same(mine, theirs(it, schedule, 7, levels, exploding=False)[1:])


@pytest.mark.parametrize("steps", [4, 9, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift: float, steps: int, scheduler: Callable[..., Any]) -> None:
    it = scheduler("FlowMatchEulerDiscreteScheduler", Draws(8), shift=shift)
    it.set_timesteps(steps)
    schedule = SCHEDULES["flow"]()
    mine = ours("ddim", schedule, it.sigmas, 8, Draws(8))
    levels = list(it.sigmas[:-1] / (1 - it.sigmas[:-1]))
    assert_same(mine, theirs(it, schedule, 8, levels, exploding=False, flow=True))


@pytest.mark.parametrize("steps", [6, 13])
@pytest.mark.parametrize(
    "pair",
    [(MULTISTEP, "dpmpp_2m", {}), ("UniPCMultistepScheduler", "unipc", {"order": 2})],
    ids=lambda p: p[1],
)
def test_multistep_on_a_flow(pair: Any, steps: int, scheduler: Callable[..., Any]) -> None:
    name, sampler, options = pair
    it = scheduler(
        name,
        Draws(9),
        use_flow_sigmas=True,
        flow_shift=2.0,
        prediction_type="flow_prediction",
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    it.set_timesteps(steps)
    schedule = SCHEDULES["flow"]()
    sigmas = it.sigmas
    mine = ours(sampler, schedule, sigmas, 9, Draws(9), **options)
    levels = list(sigmas[:-1] / (1 - sigmas[:-1]))
    assert_same(mine, theirs(it, schedule, 9, levels, exploding=False, flow=True))
