"""Guidance: each rule against its paper's formula, off at its neutral value, in any chain, in either form."""

import pytest
import torch
from torch import Tensor

from carrara.diffusion.grids import GRIDS
from carrara.diffusion.guidance import (
    GUIDANCES,
    Estimates,
    Guidance,
    apg,
    autoguidance,
    cfg,
    cfg_zero,
    chain,
    combined,
    dynamic_threshold,
    interval,
    rescale,
    split,
)
from carrara.diffusion.parameterizations import PARAMETERIZATIONS
from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.schedules import SCHEDULES
from carrara.errors import UserError
from carrara.tensors import PictureNoise
from mixture import Mixture

FLOW, LINEAR = SCHEDULES["flow"](), SCHEDULES["linear"]()
G = torch.Generator().manual_seed(0)
Z, COND, FREE = (torch.randn(3, 2, 4, 4, generator=G, dtype=torch.float64) for _ in range(3))
T = torch.tensor(0.6, dtype=torch.float64)


def guided(guidance: Guidance, t: Tensor = T, cond: Tensor = COND, free: Tensor = FREE) -> Tensor:
    return guidance(lambda z, t: cond, lambda z, t: free)(Z, t)


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)


ALL = {
    "cfg": cfg(4.0),
    "apg": apg(4.0, limit=5.0),
    "cfg_zero": cfg_zero(4.0, schedule=FLOW, still=0.05),
    "autoguidance": autoguidance(2.0, weak="", opened=lambda path: lambda z, t: FREE),
    "interval": interval(4.0, 0.5, 0.9),
    "rescale": rescale(4.0, 0.7),
    "dynamic_threshold": dynamic_threshold(4.0, 0.9),
}


def test_every_guidance_is_here() -> None:
    assert ALL.keys() == GUIDANCES.keys()


def test_cfg_is_the_same_on_noise_and_velocity() -> None:
    alpha, sigma = LINEAR.alpha(T), LINEAR.sigma(T)
    eps = [(Z - alpha * x0) / sigma for x0 in (COND, FREE)]
    on_noise = eps[1] + 4.0 * (eps[0] - eps[1])
    torch.testing.assert_close(guided(cfg(4.0)), (Z - sigma * on_noise) / alpha)
    torch.testing.assert_close(guided(cfg(0.0)), FREE)


NEUTRAL = {
    "cfg": cfg(1.0),
    "apg": apg(1.0),
    "cfg_zero": cfg_zero(1.0, schedule=FLOW, still=0.5),
    "autoguidance": autoguidance(1.0, weak="", opened=lambda path: lambda z, t: FREE * torch.nan),
    "interval": interval(1.0, 0.0, 1.0),
    "rescale": rescale(amount=0.0),
    "dynamic_threshold": dynamic_threshold(percentile=1.0, least=1e-6),
    "empty chain": chain(),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_off(name: str) -> None:
    """At its neutral value the result is the conditional estimate and the other branch is not computed."""
    guidance = NEUTRAL[name]
    assert not guidance.active(T)

    def unwanted(z: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the unconditional branch was computed")

    out = guidance(lambda z, t: COND, unwanted)(Z, T)
    if name == "dynamic_threshold":
        torch.testing.assert_close(out * flat(COND).abs().amax(1).view(-1, 1, 1, 1) / 1e-6, COND)
    else:
        torch.testing.assert_close(out, COND)


@pytest.mark.parametrize("name", ALL)
def test_both_forms_agree(name: str) -> None:
    """Two callables, or one call on both halves of a batch."""
    separate = ALL[name](lambda z, t: COND * z, lambda z, t: FREE * z)
    joint = ALL[name].together(
        lambda z, t: tuple((torch.cat([COND, FREE]) * torch.cat([z, z])).chunk(2)), lambda z, t: COND * z
    )
    for t in (0.95, 0.6, 0.3):
        when = torch.tensor(t, dtype=torch.float64)
        assert torch.equal(separate(Z, when), joint(Z, when))


@pytest.mark.parametrize("name", ALL)
def test_batch_alone(name: str) -> None:
    if name == "autoguidance":
        pytest.skip("its weak model here has three pictures")
    whole = ALL[name](lambda z, t: COND, lambda z, t: FREE)(Z, T)
    for i in range(3):
        alone = ALL[name](lambda z, t, i=i: COND[i : i + 1], lambda z, t, i=i: FREE[i : i + 1])(
            Z[i : i + 1], T
        )
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_apg_without_its_changes_is_cfg() -> None:
    torch.testing.assert_close(guided(apg(4.0, momentum=0.0, parallel=1.0)), guided(cfg(4.0)))


def test_apg_removes_the_parallel_part_and_limits_the_rest() -> None:
    push = guided(apg(3.0, momentum=0.0)) - COND
    assert (flat(push) * flat(COND)).sum(1).abs().max() < 1e-10
    assert push.abs().max() > 0.1
    short = guided(apg(3.0, momentum=0.0, parallel=1.0, limit=0.5)) - COND
    torch.testing.assert_close(flat(short).norm(dim=1), torch.full((3,), 2 * 0.5, dtype=torch.float64))


def test_apg_remembers_within_a_run_only() -> None:
    guidance = apg(3.0, momentum=-0.5, parallel=1.0)
    run = guidance(lambda z, t: COND, lambda z, t: FREE)
    first, second = run(Z, T), run(Z, T)
    torch.testing.assert_close(second - COND, 2 * (COND - FREE) * 0.5)
    torch.testing.assert_close(guidance(lambda z, t: COND, lambda z, t: FREE)(Z, T), first)


def test_cfg_zero() -> None:
    """In velocities: s v_u + w (v_c - s v_u), s = <v_c, v_u> / |v_u|^2; and still at the beginning."""
    velocities = [(Z - x0) / T for x0 in (COND, FREE)]
    fit = (flat(velocities[0]) * flat(velocities[1])).sum(1) / flat(velocities[1]).square().sum(1)
    free = fit.view(-1, 1, 1, 1) * velocities[1]
    expected = Z - T * (free + 4.0 * (velocities[0] - free))
    torch.testing.assert_close(guided(cfg_zero(4.0, schedule=FLOW)), expected)
    still = guided(cfg_zero(4.0, schedule=FLOW, still=0.1), torch.tensor(0.95, dtype=torch.float64))
    torch.testing.assert_close(still, Z)  # velocity 0


def test_autoguidance() -> None:
    good, weak = COND, Z * 0.1
    out = guided(autoguidance(2.5, weak="", opened=lambda path: lambda z, t: z * 0.1))
    torch.testing.assert_close(out, weak + 2.5 * (good - weak))
    both = guided(chain(cfg(3.0), autoguidance(2.5, weak="", opened=lambda path: lambda z, t: z * 0.1)))
    torch.testing.assert_close(both, good + 2 * (COND - FREE) + 1.5 * (good - weak))


def test_interval() -> None:
    guidance = chain(cfg(4.0), interval(low=0.3, high=0.7))
    for t, on in ((0.2, False), (0.3, True), (0.6, True), (0.71, False)):
        when = torch.tensor(t, dtype=torch.float64)
        assert guidance.active(when) == on
        torch.testing.assert_close(guided(guidance, when), guided(cfg(4.0)) if on else COND)
    later = chain(interval(low=0.3, high=0.7), cfg(4.0))  # it limits what comes before it only
    assert later.active(torch.tensor(0.1))


def test_rescale() -> None:
    out = guided(chain(cfg(4.0), rescale(amount=1.0)))
    torch.testing.assert_close(flat(out).std(1), flat(COND).std(1))
    plain, full = guided(cfg(4.0)), out
    torch.testing.assert_close(guided(chain(cfg(4.0), rescale(amount=0.7))), 0.7 * full + 0.3 * plain)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_rescale_of_what_the_network_says(name: str) -> None:
    """Lin et al. 2023, eq. 15 and 16, written out on outputs."""
    parameterization = PARAMETERIZATIONS[name]
    alpha, sigma = LINEAR.alpha(T), LINEAR.sigma(T)
    a, b = parameterization(alpha, sigma)

    def output(x0: Tensor) -> Tensor:
        return (b * Z - (alpha * b - sigma * a) * x0) / sigma

    given, free = output(COND), output(FREE)
    plain = free + 4 * (given - free)
    ratio = (flat(given).std(1) / flat(plain).std(1)).view(-1, *(1,) * (Z.ndim - 1))
    expected = 0.7 * ratio * plain + 0.3 * plain
    rule = rescale(amount=0.7, schedule=LINEAR, parameterization=parameterization)
    torch.testing.assert_close(output(guided(chain(cfg(4.0), rule))), expected)
    assert (expected - plain).abs().max() > 0.05
    if name == "x0":
        torch.testing.assert_close(guided(chain(cfg(4.0), rescale(amount=0.7))), expected)


def test_dynamic_threshold() -> None:
    out = guided(chain(cfg(4.0), dynamic_threshold(percentile=0.9)))
    assert float(out.abs().max()) == pytest.approx(1.0)
    assert ((flat(out).abs() > 0.999).double().mean(1) - 0.1).abs().max() < 0.05
    small = guided(dynamic_threshold(percentile=0.9), cond=COND * 0.01)
    torch.testing.assert_close(small, COND * 0.01)


@pytest.mark.parametrize(
    ("text", "parts", "same"),
    [
        ("4", (4.0, None), cfg(4.0)),
        ("cfg:4", (4.0, None), cfg(4.0)),
        (" cfg : 1e+0 ", (1.0, None), chain()),
        ("apg:4,limit=2", (4.0, "apg:limit=2.0"), apg(4.0, limit=2.0)),
        ("interval:4,0.2,0.8", (4.0, "interval:low=0.2,high=0.8"), chain(cfg(4.0), interval(low=0.2, high=0.8))),
        ("apg:4 + rescale:amount=0.5", (4.0, "apg+rescale:amount=0.5"), chain(apg(4.0), rescale(amount=0.5))),
        ("rescale", (None, "rescale"), rescale(3.0)),
        ("cfg:2+apg:3", (2.0, "cfg+apg:scale=3.0"), chain(cfg(2.0), apg(3.0))),
    ],
)  # fmt: skip
def test_a_guidance_as_a_user_writes_it(
    text: str, parts: tuple[float | None, str | None], same: Guidance
) -> None:
    scale, rules = split(text)
    assert (scale, rules) == parts
    assert split(f"{rules or 'cfg'}") == (None, rules), "what is kept is read again"
    torch.testing.assert_close(guided(combined(3.0 if scale is None else scale, rules)), guided(same))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rescaled:4", "no guidance is called 'rescaled'; did you mean 'rescale'?"),
        ("apg:4,momentun=0.3", "guidance 'apg' has no option 'momentun'; did you mean 'momentum'?"),
        ("apg:4,schedule=3", "guidance 'apg' has no option 'schedule'"),
        ("cfg_zero:4,schedule=3", "guidance 'cfg_zero' has no option 'schedule'"),
        ("cfg:4,5", "guidance 'cfg' takes scale; '5' is too much"),
        ("cfg:x", "guidance 'cfg': scale is 'x'; expected a number"),
        ("apg:4,limit=nan", "limit is 'nan'; expected a number"),
        ("interval:4,0.2,low=0.3", "guidance 'interval': low is given twice"),
        ("cfg:4+apg", "guidance 'apg' needs scale, for example apg:scale=2"),
        ("autoguidance:2", "guidance 'autoguidance' needs weak"),
        ("", "no guidance is called ''"),
    ],
)
def test_a_guidance_that_cannot_be_read_names_the_nearest(text: str, words: str) -> None:
    def read() -> None:
        scale, rules = split(text)
        combined(scale or 1.0, rules, schedule=FLOW, opened=None)

    with pytest.raises(UserError) as refused:
        read()
    assert words in str(refused.value)


def test_everything_in_one_chain_with_every_sampler() -> None:
    exact, other = Mixture().denoiser(FLOW), Mixture((1.0,), (0.0,), (1.0,)).denoiser(FLOW)
    guidance = chain(
        apg(3.0),
        cfg_zero(1.5, schedule=FLOW),
        autoguidance(1.2, weak="", opened=lambda path: other),
        interval(low=0.1, high=0.9),
        rescale(amount=0.5),
        dynamic_threshold(percentile=0.99, least=2.0),
    )
    for name in SAMPLERS:
        z = PictureNoise(0, [0, 1]).draw((2, 4, 4))
        *_, last = SAMPLERS[name](
            guidance(exact, other), z, GRIDS["uniform"](8, FLOW), FLOW, noise=PictureNoise(1, [0, 1])
        )
        assert last.z.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_dtype(name: str, dtype: torch.dtype) -> None:
    guidance = (
        ALL[name]
        if name != "autoguidance"
        else autoguidance(2.0, weak="", opened=lambda path: lambda z, t: z)
    )
    out = guidance(lambda z, t: COND.to(dtype), lambda z, t: FREE.to(dtype))(Z.to(dtype), T)
    assert out.dtype == dtype


def test_mistakes() -> None:
    for name in ("cfg", "apg"):
        with pytest.raises(UserError, match="guidance scale must be 0 or more, got -1"):
            GUIDANCES[name](-1.0)
    with pytest.raises(UserError, match="0 <= low <= high <= 1"):
        interval(low=0.8, high=0.2)
    with pytest.raises(UserError, match="amount must be from 0 to 1"):
        rescale(amount=1.5)
    with pytest.raises(UserError, match="percentile must be from 0 to 1"):
        dynamic_threshold(percentile=99.5)
    with pytest.raises(UserError, match="did you mean 'momentum'"):
        GUIDANCES["apg"](4.0, momentun=0.3)
    with pytest.raises(UserError, match="did you mean 'rescale'"):
        GUIDANCES["rescaled"]
    assert Estimates._fields[-1] == "guided"
