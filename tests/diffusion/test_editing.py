"""Editing: exact where it is said to be exact, and errors in words."""

import pytest
import torch

from carrara.diffusion.editing import image_to_image, invert, keep, repaint, round_trip_error, slerp
from carrara.diffusion.grids import GRIDS
from carrara.diffusion.mixture import Mixture
from carrara.diffusion.process import noised
from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.schedules import SCHEDULES
from carrara.errors import UserError
from carrara.tensors import PictureNoise

FLOW = SCHEDULES["flow"]()
TARGET = Mixture()
G = torch.Generator().manual_seed(0)
LATENT = TARGET.sample(
    torch.rand(2, 3, 6, 6, generator=G), torch.randn(2, 3, 6, 6, generator=G, dtype=torch.float64)
)
NOISE = torch.randn(2, 3, 6, 6, generator=G, dtype=torch.float64)
MASK = (torch.arange(6) < 3).double().expand(2, 1, 6, 6)  # the left half is painted
TIMES = GRIDS["uniform"](20, FLOW)


@pytest.mark.parametrize("strength", [0.0, 0.05, 0.5, 0.52, 1.0])
def test_image_to_image(strength: float) -> None:
    start = image_to_image(LATENT, NOISE, TIMES, FLOW, strength=strength)
    assert len(start.times) == round(20 * strength) + 1
    assert start.times[-1] == 0
    torch.testing.assert_close(start.z, noised(FLOW, LATENT, NOISE, start.times[0]))


def test_more_strength_is_farther_from_the_picture() -> None:
    distances = []
    for strength in (0.1, 0.4, 0.7, 1.0):
        z, times = image_to_image(LATENT, NOISE, TIMES, FLOW, strength=strength)
        *_, last = SAMPLERS["ddim"](TARGET.denoiser(FLOW), z, times, FLOW, noise=torch.zeros_like)
        distances.append(float((last.z - LATENT).square().mean()))
    assert distances == sorted(distances)
    assert distances[0] < 0.1 < distances[-1]


@pytest.mark.parametrize("path", ["scaled_linear", "flow", "edm"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_kept_region_ends_as_it_was(name: str, path: str) -> None:
    schedule = SCHEDULES[path]()
    times = GRIDS["karras"](10, schedule)
    z = noised(schedule, LATENT, NOISE, times[0])
    denoise = keep(TARGET.denoiser(schedule), LATENT, MASK)
    *_, last = SAMPLERS[name](denoise, z, times, schedule, noise=PictureNoise(1, [0, 1]))
    right = (1 - MASK).expand_as(LATENT).bool()
    torch.testing.assert_close(last.z[right], LATENT[right], rtol=1e-6, atol=1e-6)
    assert (last.z - LATENT)[~right].abs().mean() > 0.05


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "unipc", "deis"])
def test_the_kept_region_stays_on_its_path(name: str) -> None:
    """At every step z there is alpha * known + sigma * (its first noise)."""
    denoise = keep(TARGET.denoiser(FLOW), LATENT, MASK)
    right = (1 - MASK).expand_as(LATENT).bool()
    for step in SAMPLERS[name](denoise, NOISE, TIMES, FLOW, noise=torch.zeros_like):
        exact = noised(FLOW, LATENT, NOISE, TIMES[step.index + 1])
        torch.testing.assert_close(step.z[right], exact[right], rtol=1e-8, atol=1e-8)


def test_a_soft_mask_mixes() -> None:
    denoise = keep(lambda z, t: z * 0 + 2.0, LATENT, torch.full((1, 1, 6, 6), 0.25, dtype=torch.float64))
    torch.testing.assert_close(denoise(NOISE, TIMES[0]), 0.25 * 2.0 + 0.75 * LATENT)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64])
def test_a_mask_of_any_dtype(dtype: torch.dtype) -> None:
    denoise = keep(lambda z, t: z, LATENT.float(), MASK.to(dtype))
    out = denoise(NOISE.float(), TIMES[0])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, (MASK * NOISE + (1 - MASK) * LATENT).float())


def test_repaint() -> None:
    asked: list[float] = []
    exact = TARGET.denoiser(FLOW)

    def denoise(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(round(float(t), 6))
        return exact(z, t)

    steps = list(
        repaint(
            denoise,
            NOISE,
            GRIDS["uniform"](6, FLOW),
            FLOW,
            noise=PictureNoise(2, [0, 1]),
            known=LATENT,
            mask=MASK,
            jump=2,
            resamples=2,
        )
    )
    sixths = [6, 5, 6, 5, 4, 3, 4, 3, 2, 1]  # the last leg ends at the data: no way back
    assert asked == pytest.approx([n / 6 for n in sixths], abs=1e-6)
    assert [step.index for step in steps] == list(range(10))
    right = (1 - MASK).expand_as(LATENT).bool()
    assert torch.equal(steps[-1].z[right], LATENT[right])
    assert steps[-1].z.isfinite().all()


def test_repaint_samples_the_target() -> None:
    known = torch.zeros(4, 2500, dtype=torch.float64)
    *_, last = repaint(
        Mixture((1.0,), (0.4,), (0.6,)).denoiser(FLOW),
        PictureNoise(5, range(4)).draw((2500,)).double(),
        GRIDS["uniform"](40, FLOW),
        FLOW,
        noise=PictureNoise(2, range(4)),
        known=known,
        mask=torch.ones_like(known),
        jump=5,
        resamples=2,
    )
    assert float(last.z.mean()) == pytest.approx(0.4, abs=0.02)
    assert float(last.z.std()) == pytest.approx(0.6, abs=0.05)


def test_slerp() -> None:
    a, b = NOISE[:1], NOISE[1:]
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    middle = slerp(a, b / b.norm() * a.norm(), 0.5)
    torch.testing.assert_close(middle.norm(), a.norm())
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    torch.testing.assert_close(slerp(a, -a, 0.25), 0.5 * a)  # opposite: there is no one sphere path
    both = slerp(NOISE, NOISE.flip(0), 0.3)
    torch.testing.assert_close(both[:1], slerp(a, b, 0.3))


@pytest.mark.parametrize("path", ["scaled_linear", "flow"])
def test_inversion_and_back(path: str) -> None:
    """Closer with more steps, and with more iterations."""
    schedule = SCHEDULES[path]()
    denoise = TARGET.denoiser(schedule)
    errors = [
        round_trip_error(denoise, LATENT, GRIDS["uniform"](steps, schedule), schedule, iterations=iterations)
        for steps, iterations in ((20, 1), (80, 1), (20, 20))
    ]
    assert errors[0].shape == (2,)
    assert (errors[0] > 2 * errors[1]).all()
    assert (errors[0] > 5 * errors[2]).all()


def test_inversion_finds_noise() -> None:
    *_, last = invert(TARGET.denoiser(FLOW), LATENT, GRIDS["uniform"](200, FLOW), FLOW)
    assert last.z.isfinite().all()
    assert float(last.z.std()) == pytest.approx(1.0, abs=0.2)


def test_mistakes() -> None:
    for strength in (-0.1, 1.1):
        with pytest.raises(UserError, match="strength must be from 0"):
            image_to_image(LATENT, NOISE, TIMES, FLOW, strength=strength)
    for shape in ((2, 1, 5, 6), (3, 1, 6, 6), (1, 2, 3, 6, 6)):
        with pytest.raises(UserError, match=r"a mask of .* does not fit a latent of"):
            keep(lambda z, t: z, LATENT, torch.ones(shape))
    with pytest.raises(UserError, match=r"from 0 \(keep\) to 1"):
        keep(lambda z, t: z, LATENT, MASK * 255)
    with pytest.raises(UserError, match="jump and resamples of 1 or more"):
        repaint(lambda z, t: z, NOISE, TIMES, FLOW, noise=torch.zeros_like, known=LATENT, mask=MASK, jump=0)
    with pytest.raises(UserError, match="times must fall"):
        image_to_image(LATENT, NOISE, TIMES.flip(0), FLOW, strength=0.5)
    with pytest.raises(UserError, match="at least one step"):
        invert(lambda z, t: z, LATENT, TIMES[:1], FLOW)
    with pytest.raises(UserError, match="1 iteration or more"):
        invert(lambda z, t: z, LATENT, TIMES, FLOW, iterations=0)
