"""The named terms of stage one: their formulas, and that each one's gradient reaches where it should."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carrara.autoencoders import fsq, kl, vq
from carrara.tensors import generator
from carrara.training.discriminator import LOSSES, Discriminator, fooled, gradient_penalty
from carrara.training.losses import TERMS, LossWeights, reconstruction_terms
from carrara.training.recipe import smallest_side

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1}


def pair(side: int = 16) -> tuple[Tensor, Tensor]:
    a, b = (torch.rand(2, 3, side, side, generator=generator(seed)) * 2 - 1 for seed in (1, 2))
    return a, b


def test_terms_by_hand() -> None:
    a, b = pair()
    e = a - b
    torch.testing.assert_close(TERMS["l1"](a, b), e.abs().mean())
    torch.testing.assert_close(TERMS["l2"](a, b), (e * e).mean())
    torch.testing.assert_close(
        TERMS["edges"](a, b),
        (e[..., 1:] - e[..., :-1]).abs().mean() + (e[..., 1:, :] - e[..., :-1, :]).abs().mean(),
    )
    scales = [e.unfold(2, n, n).unfold(3, n, n).mean((-1, -2)).abs().mean() for n in (2, 4, 8)]
    torch.testing.assert_close(TERMS["multiscale"](a, b), sum(scales) / 3)
    assert all(term(a, a) == 0 and term(a, b) > 0.01 for term in TERMS.values())


def test_a_weight_is_a_factor_and_zero_leaves_the_term_away() -> None:
    a, b = pair()
    terms = reconstruction_terms(LossWeights(l1=3.0, l2=0.0, edges=0.0, multiscale=0.5), CPU)
    assert list(terms) == ["l1", "multiscale"]
    torch.testing.assert_close(terms["l1"](a, b), 3 * TERMS["l1"](a, b))
    torch.testing.assert_close(terms["multiscale"](a, b), 0.5 * TERMS["multiscale"](a, b))


def test_some_term_has_to_count() -> None:
    with pytest.raises(ValueError, match="all weights are 0: nothing would be learned"):
        LossWeights(l1=0, l2=0, edges=0)


def lpips_at_hand() -> bool:
    from carrara.errors import UserError

    try:
        reconstruction_terms(LossWeights(lpips=1.0, lpips_net="alexnet"), CPU)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("name", [*TERMS, "lpips"])
@pytest.mark.parametrize("kind", [kl, vq, fsq])
def test_every_reconstruction_term_reaches_encoder_and_decoder(name: str, kind: Any) -> None:
    if name == "lpips" and not lpips_at_hand():
        pytest.skip("no weights for LPIPS here")
    none = dict.fromkeys(TERMS, 0.0)
    terms = reconstruction_terms(LossWeights(**{**none, name: 1.0}, lpips_net="alexnet"), CPU)
    assert list(terms) == [name]
    torch.manual_seed(0)
    module = kind.Config(**SHAPE).build()
    image = pair(32)[0]
    out = module(image, torch.randn(2, 4, 16, 16, generator=generator(3)))
    terms[name](out.picture, image).backward()
    assert reached(module.encoder) and reached(module.decoder)  # noqa: PT018


def reached(part: nn.Module) -> bool:
    return all(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())


@pytest.mark.parametrize(
    ("config", "name", "weight"),
    [
        (kl.Config(**SHAPE, kl=2.0), "kl", 2.0),
        (vq.Config(**SHAPE, codes=16, commitment=0.5), "commitment", 0.5),
        (vq.Config(**SHAPE, codes=16, learning="gradient"), "codebook", 1.0),
    ],
)
def test_terms_of_the_latent_reach_what_they_move(config: Any, name: str, weight: float) -> None:
    torch.manual_seed(0)
    module = config.build()
    image = pair()[0]
    out = module(image, torch.randn(2, 4, 8, 8, generator=generator(3)))
    assert name in out.terms
    out.terms[name].backward()
    assert all(p.grad is None for p in module.decoder.parameters())
    if name == "codebook":
        assert module.codebook.codes.grad.abs().max() > 0
        assert all(p.grad is None for p in module.encoder.parameters())
    else:
        assert reached(module.encoder)
    if name == "kl":  # nats of a picture over its numbers
        nats = module.encode(image).penalty().mean()
        torch.testing.assert_close(out.terms[name], weight * nats / (3 * 16 * 16))


def test_the_discriminator_is_the_published_one() -> None:
    with torch.device("meta"):
        network = Discriminator(3, layers=3, channels=64)
    assert sum(p.numel() for p in network.parameters()) == 2_765_633


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_picture_gives_logits(layers: int) -> None:
    network = Discriminator(1, layers=layers, channels=8)
    side = smallest_side(layers)
    assert network(torch.randn(2, 1, side, side)).shape[-1] >= 1


def test_adversarial_losses_by_hand() -> None:
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-2.0, 0.5])
    assert LOSSES["hinge"](real, fake) == pytest.approx(0.5 * (0.25 + 0.75))
    by_hand = 0.5 * (-torch.sigmoid(real).log().mean() - torch.sigmoid(-fake).log().mean())
    torch.testing.assert_close(LOSSES["non_saturating"](real, fake), by_hand)
    assert fooled("hinge", fake) == pytest.approx(0.75)
    torch.testing.assert_close(fooled("non_saturating", fake), -torch.sigmoid(fake).log().mean())


def test_the_gradient_penalty_of_a_plane() -> None:
    class Plane(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([3.0, -4.0]))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight.view(1, 2, 1, 1)).sum((1, 2, 3), keepdim=True)

    plane = Plane()
    penalty = gradient_penalty(plane, torch.randn(3, 2, 1, 1))
    assert penalty.item() == pytest.approx(12.5)
    penalty.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(plane.weight.grad, torch.tensor([3.0, -4.0]))
