"""Vector quantization by its formulas: nearest codes, straight-through gradient, averages, dead codes."""

import math

import pytest
import torch
from torch import Tensor

from carrara.autoencoders.codebook import Codebook
from carrara.tensors import generator


def codebook(count: int = 12, channels: int = 3, **options: object) -> Codebook:
    torch.manual_seed(0)
    chosen = {"learning": "ema", "cosine": False, **options}
    return Codebook(count, channels, **chosen)  # type: ignore[arg-type]


def latents(b: int = 2, seed: int = 1, side: int = 5) -> Tensor:
    return torch.randn(b, 3, side, side + 1, generator=generator(seed))


@pytest.mark.parametrize("cosine", [False, True])
def test_the_nearest_code_is_the_nearest(cosine: bool) -> None:
    book = codebook(cosine=cosine).eval()
    book.codes.data = torch.randn(12, 3, generator=generator(5))
    latent = book.fit(latents())
    rows = latent.permute(0, 2, 3, 1).reshape(-1, 3)
    codes = torch.nn.functional.normalize(book.codes, dim=1) if cosine else book.codes
    by_hand = torch.cdist(rows.double(), codes.double()).argmin(1).view(2, 5, 6)
    assert torch.equal(book.nearest(latent), by_hand)
    assert len(by_hand.unique()) > 4
    found = book(latents())
    assert torch.equal(found.indices, by_hand)
    torch.testing.assert_close(found.latent, codes[by_hand].permute(0, 3, 1, 2))
    assert torch.equal(book.nearest(book.lookup(by_hand)), by_hand)  # a code is its own nearest


def test_distances_are_cut_into_parts_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    book = codebook().eval()
    whole = book.nearest(latents())
    monkeypatch.setattr("carrara.autoencoders.codebook._PAIRS", 40)
    assert torch.equal(book.nearest(latents()), whole)


def test_near_codes_are_told_apart_under_autocast() -> None:
    """Bfloat16 has three digits; in a unit interval a thousand codes need more."""
    book = codebook(count=1024).eval()
    book.codes.data = torch.rand(1024, 3, generator=generator(5))
    latent = torch.rand(2, 3, 16, 16, generator=generator(6))
    exact = book.nearest(latent)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(book.nearest(latent), exact)


def test_the_gradient_passes_straight_through() -> None:
    book = codebook(learning="gradient").eval()
    latent = latents().requires_grad_()
    weight = torch.randn(latent.shape, generator=generator(2))
    (book(latent).latent * weight).sum().backward()
    assert latent.grad is not None
    assert torch.equal(latent.grad, weight)
    assert book.codes.grad is None


def test_commitment_moves_the_vectors_and_codebook_the_codes() -> None:
    book = codebook(learning="gradient").eval()
    latent = latents().requires_grad_()
    found = book(latent)
    by_hand = (latent - book.lookup(found.indices)).square().flatten(1).mean(1)
    torch.testing.assert_close(found.commitment, by_hand)
    torch.testing.assert_close(found.codebook, by_hand)
    found.commitment.sum().backward(retain_graph=True)
    assert book.codes.grad is None
    assert latent.grad is not None
    assert latent.grad.abs().max() > 0
    latent.grad = None
    found.codebook.sum().backward()
    assert latent.grad is None
    assert book.codes.grad is not None
    assert book.codes.grad.abs().max() > 0


def test_codes_follow_the_mean_of_their_vectors() -> None:
    """Appendix A.1 of van den Oord et al.: N <- d N + (1 - d) n, m <- d m + (1 - d) sum, code = m / N."""
    book = codebook()
    first, second = latents(seed=1), latents(seed=2)
    book(first)
    counts, sums, codes = book.counts.clone(), book.sums.clone(), book.codes.detach().clone()
    found = book(second)
    rows, indices = second.permute(0, 2, 3, 1).reshape(-1, 3), found.indices.flatten()
    for code in range(12):
        mine = rows[indices == code]
        n = 0.99 * counts[code] + 0.01 * len(mine)
        m = 0.99 * sums[code] + 0.01 * mine.sum(0)
        torch.testing.assert_close(book.counts[code], n)
        torch.testing.assert_close(book.codes[code].detach(), m / n)
    assert not torch.equal(book.codes, codes)


def test_the_first_batch_gives_the_first_codes() -> None:
    book = codebook(count=200)  # more than vectors
    latent = latents()
    rows = latent.permute(0, 2, 3, 1).reshape(-1, 3)
    book._begin(rows)
    distance = torch.cdist(book.codes, rows).min(1).values
    assert distance.max() < 0.2
    assert (torch.cdist(book.codes, book.codes) + torch.eye(200)).min() > 0  # and no two alike


def test_dead_codes_come_back_and_live_ones_stay() -> None:
    book = codebook()
    latent = latents()
    book(latent)
    with torch.no_grad():
        book.codes[3] = 1e3
    book.sums[3], book.counts[3] = 1e3, 0.0
    for step in range(book.patience(60) + 1):
        assert book.codes[3, 0] == 1e3, step
        assert book.used < 1
        book(latent)
    assert book.codes[3].abs().max() < 10
    rows = latent.permute(0, 2, 3, 1).reshape(-1, 3)
    assert torch.cdist(book.codes[3:4], rows).min() < 1e-6
    book(latent)
    assert book.idle[3] == 0


def test_nothing_is_learnt_in_evaluation() -> None:
    book = codebook().eval()
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book(latents())
    assert all(torch.equal(value, before[name]) for name, value in book.state_dict().items())


def test_perplexity_counts_codes_as_if_equally_used() -> None:
    book = codebook(count=8)
    book.counts = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])
    assert book.perplexity == pytest.approx(4)
    assert book.used == 0.5
    book.counts = torch.tensor([0.5, 0.25, 0.25, 0, 0, 0, 0, 0])
    assert book.perplexity == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
