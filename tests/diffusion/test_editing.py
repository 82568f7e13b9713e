"""Editing: exact where it is said to be exact, and errors in words."""

import pytest
import torch

from carrara.diffusion.editing import image_to_image, keep
from carrara.diffusion.grids import GRIDS
from carrara.diffusion.process import noised
from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.schedules import SCHEDULES
from carrara.errors import UserError
from carrara.tensors import PictureNoise
from mixture import Mixture

FLOW = SCHEDULES["flow"]()
TARGET = Mixture()
G = torch.Generator().manual_seed(0)
LATENT = TARGET.sample(
    torch.rand(2, 3, 6, 6, generator=G), torch.randn(2, 3, 6, 6, generator=G, dtype=torch.float64)
)
NOISE = torch.randn(2, 3, 6, 6, generator=G, dtype=torch.float64)
MASK = (torch.arange(6) < 3).double().expand(2, 1, 6, 6)  # the left half is painted
TIMES = GRIDS["uniform"](20, FLOW)


@pytest.mark.parametrize("strength", [1e-6, 0.05, 0.5, 0.52, 0.56, 1.0])
def test_image_to_image(strength: float) -> None:
    """So far along the grid as the strength says, also between two of its stops, in the nearest number of steps."""
    start = image_to_image(LATENT, NOISE, TIMES, FLOW, strength=strength)
    assert len(start.times) == max(1, round(20 * strength)) + 1
    assert start.times[-1] == 0
    assert float(start.times[0]) == pytest.approx(strength)
    assert (start.times.diff() < 0).all()
    torch.testing.assert_close(start.z, noised(FLOW, LATENT, NOISE, start.times[0]))


def test_from_noise_nothing_of_the_picture_is_left() -> None:
    """Also on a path that ends with a little of the latent in z."""
    schedule = SCHEDULES["scaled_linear"]()
    times = GRIDS["uniform"](5, schedule)
    assert torch.equal(
        *(image_to_image(x, NOISE, times, schedule, strength=1).z for x in (LATENT, 0 * LATENT))
    )


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
    exact = keep(TARGET.denoiser(FLOW), LATENT, MASK)

    def denoise(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(round(float(t), 6))
        return exact(z, t)

    times, noise = GRIDS["uniform"](6, FLOW), PictureNoise(2, [0, 1])
    steps = list(SAMPLERS["repaint"](denoise, NOISE, times, FLOW, noise=noise, jump=2, resamples=2))
    sixths = [6, 5, 6, 5, 4, 3, 4, 3, 2, 1]  # the last leg ends at the data: no way back
    assert asked == pytest.approx([n / 6 for n in sixths], abs=1e-6)
    assert [step.index for step in steps] == list(range(10))
    right = (1 - MASK).expand_as(LATENT).bool()
    torch.testing.assert_close(steps[-1].z[right], LATENT[right])
    assert steps[-1].z.isfinite().all()


def test_what_repaint_keeps_is_noised_as_it_should_be() -> None:
    """At every step z has there the distribution of the known latent's noised forms, as if drawn from it anew."""
    known = torch.full((4, 2500), 0.7, dtype=torch.float64)
    denoise = keep(lambda z, t: z * 0, known, torch.zeros_like(known))
    z, times = PictureNoise(5, range(4)).draw((2500,)).double(), GRIDS["uniform"](8, FLOW)
    walk = SAMPLERS["repaint"](denoise, z, times, FLOW, noise=PictureNoise(2, range(4)), jump=3, resamples=2)
    places = [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]
    for place, step in zip(places, walk, strict=True):
        alpha, sigma = float(FLOW.alpha(times[place])), float(FLOW.sigma(times[place]))
        assert float(step.z.mean()) == pytest.approx(0.7 * alpha, abs=0.03)
        assert float(step.z.std()) == pytest.approx(sigma, abs=0.03)


def test_repaint_samples_the_target() -> None:
    *_, last = SAMPLERS["repaint"](
        Mixture((1.0,), (0.4,), (0.6,)).denoiser(FLOW),
        PictureNoise(5, range(4)).draw((2500,)).double(),
        GRIDS["uniform"](40, FLOW),
        FLOW,
        noise=PictureNoise(2, range(4)),
        jump=5,
        resamples=2,
    )
    assert float(last.z.mean()) == pytest.approx(0.4, abs=0.02)
    assert float(last.z.std()) == pytest.approx(0.6, abs=0.05)


def test_mistakes() -> None:
    for strength in (-0.1, 0.0, 1.1):
        with pytest.raises(UserError, match="strength must be above 0"):
            image_to_image(LATENT, NOISE, TIMES, FLOW, strength=strength)
    for shape in ((2, 1, 5, 6), (3, 1, 6, 6), (1, 2, 3, 6, 6)):
        with pytest.raises(UserError, match=r"a mask of .* does not fit a latent of"):
            keep(lambda z, t: z, LATENT, torch.ones(shape))
    with pytest.raises(UserError, match=r"from 0 \(keep\) to 1"):
        keep(lambda z, t: z, LATENT, MASK * 255)
    with pytest.raises(UserError, match="jump and resamples of 1 or more"):
        next(SAMPLERS["repaint"](lambda z, t: z, NOISE, TIMES, FLOW, noise=torch.zeros_like, jump=0))
    with pytest.raises(UserError, match="times must fall"):
        image_to_image(LATENT, NOISE, TIMES.flip(0), FLOW, strength=0.5)
