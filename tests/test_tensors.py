"""Noise that belongs to a picture, seeds that mix, bytes to [-1, 1] and back."""

import math

import pytest
import torch

from carrara.tensors import (
    PictureNoise,
    expand_like,
    from_pixels,
    generator,
    mix,
    sample_noise,
    sample_uniform,
    to_pixels,
)


def test_bytes_survive_the_way_there_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    image = from_pixels(pixels)
    assert image[[0, 255]].tolist() == [-1.0, 1.0]
    assert image.dtype == torch.float32
    assert torch.equal(to_pixels(image), pixels)
    assert to_pixels(torch.tensor([-9.0, 9.0, 0.0039])).tolist() == [0, 255, 128]


def test_noise_belongs_to_the_picture() -> None:
    together = PictureNoise(7, [0, 1, 2, 99])
    draws = [together.draw((4, 3, 3)) for _ in range(3)]
    for k, index in enumerate([0, 1, 2, 99]):
        alone = PictureNoise(7, [index])
        for drawn in draws:
            assert torch.equal(alone.draw((4, 3, 3))[0], drawn[k])
    numbers = torch.stack(draws).flatten(0, 1).flatten(1)
    assert len(numbers.unique(dim=0)) == 12
    other = PictureNoise(8, [0]).draw((4, 3, 3))
    assert not torch.equal(other[0], draws[0][0])


def test_noise_is_standard_normal() -> None:
    drawn = PictureNoise(1, range(200)).draw((4, 8, 8)).flatten()
    n = len(drawn)
    assert abs(drawn.mean()) < 4 / math.sqrt(n)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(drawn.pow(4).mean() - 3) < 4 * math.sqrt(96 / n)


def test_noise_as_what_it_is_like() -> None:
    noise = PictureNoise(1, [0, 1])
    assert noise(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="noise for 2 pictures was asked for 3"):
        noise(torch.zeros(3, 3))


def test_samples_are_functions_of_seed_and_stream() -> None:
    seeds = [3, 2**64 - 1, 5]
    noise, uniform = sample_noise(seeds, (2, 2), stream=1), sample_uniform(seeds, stream=1)
    for k, seed in enumerate(seeds):
        assert torch.equal(sample_noise([seed], (2, 2), stream=1)[0], noise[k])
        assert sample_uniform([seed], stream=1)[0] == uniform[k]
    assert not torch.equal(sample_noise(seeds, (2, 2), stream=2), noise)
    assert not torch.equal(sample_uniform(seeds, stream=2), uniform)


def test_uniform_is_uniform_and_never_an_end() -> None:
    drawn = sample_uniform(range(20_000), stream=4).sort().values
    assert drawn.dtype == torch.float64
    assert 0 < drawn[0] < drawn[-1] < 1
    expected = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    assert (drawn - expected).abs().max() < 1.63 / math.sqrt(20_000)  # Kolmogorov-Smirnov, one in a hundred
    a, b = sample_uniform(range(20_000), stream=4), sample_uniform(range(20_000), stream=5)
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.03
    assert abs(torch.corrcoef(torch.stack([a[1:], a[:-1]]))[0, 1]) < 0.03


def test_seeds_that_are_near_give_what_is_far() -> None:
    seeds = {mix(a, b) for a in range(64) for b in range(64)}
    assert len(seeds) == 64 * 64
    assert mix(1, 2) != mix(2, 1)
    assert mix(1) != mix(1, 0)
    assert all(0 <= s < 2**64 for s in seeds)
    flipped = [bin(mix(s) ^ mix(s + 1)).count("1") for s in range(1000)]
    assert 31 < sum(flipped) / 1000 < 33
    first = torch.randn(3, generator=generator(5, 6))
    assert torch.equal(first, torch.randn(3, generator=generator(5, 6)))


def test_expand_like() -> None:
    like = torch.zeros(3, 4, 5, 6)
    assert expand_like(torch.ones(3), like).shape == (3, 1, 1, 1)
    assert expand_like(torch.tensor(2.0), like).shape == (1, 1, 1, 1)
