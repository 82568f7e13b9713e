"""Finite scalar quantization: the values, their numbers, the straight-through gradient."""

import itertools

import pytest
import torch

from carrara.autoencoders import fsq
from carrara.tensors import generator


def build(levels: tuple[int, ...] = (5, 4, 2)) -> fsq.Autoencoder:
    torch.manual_seed(0)
    return fsq.Config(
        channels=8, multipliers=(1, 2), blocks=1, latent_channels=len(levels), levels=levels
    ).build()


def test_values_are_spread_evenly_and_the_nearest_is_taken() -> None:
    module = build()
    for value, (five, four, two) in {
        -1.0: (-1, -1, -1), -0.6: (-0.5, -1 / 3, -1), 0.1: (0, 1 / 3, 1), 0.7: (0.5, 1, 1), 3.0: (1, 1, 1)
    }.items():  # fmt: skip
        found = module._values(module._places(torch.full((1, 3, 1, 1), value))).flatten()
        torch.testing.assert_close(found, torch.tensor([five, four, two], dtype=torch.float32))


def test_every_combination_has_its_number() -> None:
    module = build()
    places = torch.tensor(list(itertools.product(range(5), range(4), range(2))), dtype=torch.float32)
    latent = module._values(places[..., None, None])
    assert module.codes == 40
    assert module.indices(latent).flatten().tolist() == list(range(40))


def test_decoding_rounds_and_rounding_twice_changes_nothing() -> None:
    module = build().eval()
    latent = torch.rand(2, 3, 4, 4, generator=generator(1)) * 2 - 1
    rounded = module._values(module._places(latent))
    assert (rounded - latent).abs().max() > 0.1
    assert torch.equal(module.decode(latent), module.decode(rounded))
    assert module.decode(latent).std() > 1e-3


def test_a_training_pass_shows_the_decoder_rounded_latents_and_the_encoder_its_gradient() -> None:
    module = build()
    image = torch.rand(2, 3, 8, 8, generator=generator(2)) * 2 - 1
    out = module(image, torch.zeros(2, 3, 4, 4))
    torch.testing.assert_close(out.latent, module._values(module._places(module.encode(image).mode())))
    torch.testing.assert_close(out.picture, module.decode(module.encode(image).mode()))
    out.picture.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_levels_must_fit_the_channels() -> None:
    with pytest.raises(ValueError, match="levels has 2 numbers for 4 latent_channels; expected one each"):
        fsq.Config(latent_channels=4, levels=(8, 8))
    with pytest.raises(ValueError, match="at least 2 values a channel"):
        fsq.Config(latent_channels=2, levels=(8, 1))
