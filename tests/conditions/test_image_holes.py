"""Holes and fitting: areas and shapes by seed, exact resizing, and nothing hidden that is seen."""

import pytest
import torch

from carrara.conditions.random_holes import blend, draw_hole
from carrara.geometry import central, edges, fit_map, fit_mask, fit_picture, resize, shrink
from carrara.tensors import from_pixels, generator, mix

DEPTHS = [torch.uint8, torch.uint16]


def noise(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    top = 2 ** (8 * dtype.itemsize)
    return torch.randint(0, top, shape, generator=generator(*shape)).to(dtype)


def holes(height: int, width: int, count: int = 400) -> torch.Tensor:
    return torch.stack([draw_hole(mix(k), height, width) for k in range(count)])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (8, 8), (2, 3)])
def test_holes_are_neither_empty_nor_everything(height: int, width: int) -> None:
    drawn = holes(height, width)
    assert drawn.shape == (400, height, width)
    assert drawn.dtype == torch.bool
    assert drawn.flatten(1).any(1).all()
    assert not drawn.flatten(1).all(1).any()


def test_holes_follow_from_their_seed_and_differ() -> None:
    drawn = holes(64, 64)
    assert torch.equal(drawn[7], draw_hole(mix(7), 64, 64))
    assert len({hole.numpy().tobytes() for hole in drawn}) > 350
    areas = drawn.float().mean((1, 2))
    assert 0.28 < areas.mean() < 0.38
    assert areas.quantile(0.1) < 0.2
    assert areas.quantile(0.9) > 0.45
    # Every place is hidden about as often as any other.
    everywhere = drawn.float().mean(0)
    assert everywhere.min() > 0.2
    assert everywhere.max() < 0.6
    assert (everywhere - everywhere.flip(1)).abs().mean() < 0.04  # left as often as right


def test_holes_have_the_same_shape_at_any_size() -> None:
    small, large = (
        torch.stack([draw_hole(mix(k), side, side) for k in range(60)]).float() for side in (64, 256)
    )
    coarse = torch.nn.functional.adaptive_avg_pool2d(large, 64)
    assert (coarse - small).abs().mean() < 0.04


def test_the_middle_is_cut_out() -> None:
    picture = torch.arange(6 * 10).reshape(1, 6, 10)
    assert torch.equal(central(picture, (32, 32)), picture[..., 2:8])
    assert torch.equal(central(picture, (8, 40)), picture[:, 2:4])
    assert torch.equal(central(picture, (60, 100)), picture)


@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize("size", [(5, 5), (16, 16), (40, 40), (16, 32)])
def test_a_plain_picture_stays_what_it_is(dtype: torch.dtype, size: tuple[int, int]) -> None:
    value = 77 if dtype == torch.uint8 else 30001
    picture = torch.full((3, 16, 16), value).to(dtype)
    expected = from_pixels(torch.tensor(value).to(dtype))
    torch.testing.assert_close(fit_picture(picture, size), expected.expand(3, *size), rtol=0, atol=1e-6)
    assert torch.equal(shrink(picture[None], 4), picture[None, :, :4, :4])
    assert torch.equal(blend(picture, noise(3, *size, dtype=dtype), torch.zeros(16, 16)).long().unique(),
                       torch.tensor([value]))  # fmt: skip


@pytest.mark.parametrize("dtype", DEPTHS)
def test_a_picture_of_the_right_size_is_not_touched(dtype: torch.dtype) -> None:
    picture = noise(2, 12, 20, dtype=dtype)
    assert torch.equal(fit_picture(picture, (12, 20)), from_pixels(picture))


def test_shrinking_does_not_alias() -> None:
    stripes = (torch.arange(32) % 2 * 255).to(torch.uint8).expand(1, 3, 32, 32)
    assert (shrink(stripes, 4).float() - 127.5).abs().max() < 12


def test_pillow_makes_the_same_small_picture() -> None:
    from PIL import Image

    picture = noise(3, 32, 48)
    smooth = resize(from_pixels(picture), (4, 6))  # no whole numbers at random: what both filter is smooth
    picture = ((resize(smooth, (32, 48)).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    other = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((12, 8), Image.Resampling.BICUBIC)
    mine = shrink(picture[None], 4)[0].permute(1, 2, 0).int()
    theirs = torch.tensor(list(other.tobytes())).view(8, 12, 3).int()
    assert (mine - theirs).abs().max() <= 1
    assert theirs.float().std() > 5


def test_a_position_is_a_hole_where_any_of_its_pixels_is() -> None:
    mask = torch.zeros(16, 24, dtype=torch.bool)
    mask[5, 9] = True
    small = fit_mask(mask, (4, 6))
    assert small.nonzero().tolist() == [[1, 2]]
    assert fit_mask(small, (16, 24)).nonzero().tolist() == [[y, x] for y in range(4, 8) for x in range(8, 12)]
    assert fit_mask(mask, (5, 7)).any()  # no whole ratio
    assert torch.equal(fit_mask(mask, (16, 24)), mask)


def test_classes_have_nothing_between_them() -> None:
    ids = torch.tensor([[0, 7], [300, 2]])
    large = fit_map(ids, (4, 4))
    assert large.tolist() == [[0, 0, 7, 7], [0, 0, 7, 7], [300, 300, 2, 2], [300, 300, 2, 2]]
    assert torch.equal(fit_map(large.to(torch.uint16), (2, 2)), ids)
    assert large.dtype == torch.int64


def test_edges_are_where_the_picture_changes() -> None:
    image = torch.full((3, 6, 8), -1.0)
    assert torch.equal(edges(image), torch.full((1, 6, 8), -1.0))
    image[1, :, 4:] = 1.0  # a step in one channel: as steep as one in all
    found = edges(image)[0]
    assert (found[:, 3:5] == 1).all()
    assert (found[:, :3] == -1).all()
    assert (found[:, 5:] == -1).all()
    ramp = torch.linspace(-1, 1, 9).expand(3, 6, 9)
    torch.testing.assert_close(edges(ramp)[0, :, 1:-1], torch.full((6, 7), 2 * 0.25 - 1))
    turned = torch.rand(3, 6, 8, generator=generator(1)) * 2 - 1
    torch.testing.assert_close(edges(turned.mT), edges(turned).mT)


@pytest.mark.parametrize("dtype", DEPTHS)
def test_blending_keeps_what_is_known(dtype: torch.dtype) -> None:
    original, made = noise(3, 12, 16, dtype=dtype), noise(4, 3, 12, 16, dtype=dtype)[1]
    mask = torch.zeros(1, 12, 16)
    mask[:, 3:7, 5:9] = 1
    out = blend(original, made, mask)
    inside = mask[0].bool().expand(3, -1, -1)
    assert out.dtype == dtype
    assert torch.equal(out.int()[inside], made.int()[inside])
    assert torch.equal(out.int()[~inside], original.int()[~inside])
    assert (original.int() != made.int()).float().mean() > 0.9


def test_blending_fits_the_original_to_what_was_made() -> None:
    original, made = (
        torch.full((3, 30, 60), 9, dtype=torch.uint8),
        torch.full((3, 8, 8), 40000, dtype=torch.uint16),
    )
    mask = torch.zeros(30, 60)
    mask[:, 30:] = 1
    out = blend(original, made, mask).int()
    assert (out[..., :4] == 9 * 257).all()
    assert (out[..., 4:] == 40000).all()
