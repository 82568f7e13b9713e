"""The picture beside z: what each form shows, exactly; what it hides; what cannot be shown."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.conditions.condition import Latent
from carrara.conditions.image import Config, ImageEncoder, Noised
from carrara.conditions.random_holes import Masked
from carrara.errors import UserError
from carrara.geometry import edges, shrink
from carrara.importing.formats.scenes import THINGS
from carrara.model_folder import load_into, write_weights
from carrara.recipes.catalogue import named
from carrara.tensors import from_pixels, generator
from carrara.training.recipe import DiffusionRecipe

SIZE = (16, 24)
FACTOR = 4
DEPTHS = [torch.uint8, torch.uint16]


class Table:
    """`Columns` of a table with a depth and a map."""

    captions: Mapping[str, str] = MappingProxyType({})
    names = ("image", "depth", "map")

    def values(self, column: str) -> list[Any]:
        raise AssertionError("pictures are not read before training")


def halved(image: Tensor) -> Tensor:
    """Stands for an autoencoder of factor 4 with four channels; every pixel matters."""
    weight = torch.randn(4, image.shape[1], FACTOR, FACTOR, generator=generator(2)) / 8
    return F.conv2d(image, weight, stride=FACTOR)


def latent(bits: int = 8, image_channels: int = 3) -> Latent:
    return Latent(4, FACTOR, image_channels, bits, halved)


def encoder(shows: str, through: str, *, at: Latent | None = None, **more: Any) -> ImageEncoder:
    own: dict[str, Any] = {"map": {"classes": 6}, "column": {"column": "depth"}}.get(shows, {})
    torch.manual_seed(0)
    config = Config.model_validate({"shows": shows, "through": through, **own, **more})
    return config.learn(Table(), at or latent())


def pictures(channels: int = 3, count: int = 5, dtype: torch.dtype = torch.uint8) -> Tensor:
    top = 2 ** (8 * dtype.itemsize)
    return torch.randint(0, top, (count, channels, *SIZE), generator=generator(channels, count)).to(dtype)


def columns(made: ImageEncoder, dtype: torch.dtype = torch.uint8) -> dict[str, Any]:
    """What a batch holds for it."""
    (column,) = made.config.reads(Table())
    ids = torch.randint(0, 6, (5, 1, *SIZE), generator=generator(9))
    own = {"map": ids, "depth": pictures(1, dtype=torch.uint16)}
    found = own[column] if column in own else pictures(made.channels, dtype=dtype)
    return {column: found, "mirrored": torch.zeros(5, dtype=torch.bool)}


FORMS = [
    (shows, through)
    for shows in ("low_resolution", "masked", "map", "column", "edges")
    for through in ("pixels", "resize", "autoencoder")
    if (shows, through) != ("map", "autoencoder")
]
PUBLISHED = {
    ("low_resolution", "resize"): 3,
    ("masked", "autoencoder"): 5,
    ("map", "resize"): 16,
    ("column", "resize"): 1,
    ("column", "autoencoder"): 4,
    ("edges", "resize"): 1,
}


@pytest.mark.parametrize(("shows", "through"), FORMS)
def test_every_form(shows: str, through: str, tmp_path: Path) -> None:
    """Drawn by seed, prepared for pictures that are not square, kept, opened; null is unlike anything shown."""
    made = encoder(shows, through, dropout=0.0)
    seeds = [3, 4, 5, 6, 7]
    drawn = made.draw(columns(made), seeds, stream=2)
    context = made(made.prepare([*drawn, None], SIZE))
    image = context.image
    assert image.shape == (6, made.image, SIZE[0] // FACTOR, SIZE[1] // FACTOR)
    assert image.isfinite().all()
    assert made.image == PUBLISHED.get((shows, through), made.image)
    assert context.roles().keys() == {"image"}
    assert all((image[k] - image[5]).abs().max() > 0.1 for k in range(5))
    assert all((image[k] - image[k + 1]).abs().max() > 0.01 for k in range(4))
    again = made(made.prepare(made.draw(columns(made), seeds, stream=2), SIZE)).image
    assert torch.equal(again, image[:5])

    if parameters := dict(made.named_parameters()):
        image.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters.values())
    write_weights(tmp_path / "weights.safetensors", made.state_dict())
    made.keep(tmp_path / "kept")
    torch.manual_seed(1)
    opened = made.config.restore(tmp_path / "kept", latent())
    load_into(opened, tmp_path / "weights.safetensors")
    assert torch.equal(opened(opened.prepare(drawn, SIZE)).image, image[:5])


@pytest.mark.parametrize("shows", ["low_resolution", "masked", "edges"])
def test_deep_pictures_keep_their_steps(shows: str) -> None:
    """Of 16 bits and two channels; a difference too fine for 8 bits is seen."""
    made = encoder(shows, "resize", at=latent(16, 2), dropout=0.0)
    given = columns(made, torch.uint16)
    finer = {**given, "image": (given["image"].int() ^ 64).to(torch.uint16)}
    drawn, other = (made.draw(c, range(5), stream=2) for c in (given, finer))
    a, b = (made(made.prepare(values, SIZE)).image for values in (drawn, other))
    assert 0 < (a - b).abs().max() < 0.01
    assert made.bits == 16


def test_pictures_of_8_bits_are_those_of_16() -> None:
    made = encoder("low_resolution", "resize")
    small = shrink(pictures(), 4)[0]
    deep = (small.int() * 257).to(torch.uint16)
    a, b = made(made.prepare([small, deep], SIZE)).image
    torch.testing.assert_close(a, b)


# --- low resolution ---


def test_a_small_picture_at_the_latents_resolution_is_shown_as_it_is() -> None:
    """The published form of super-resolution by the autoencoder's own factor."""
    made = encoder("low_resolution", "resize", dropout=0.0)
    drawn = made.draw(columns(made), range(5), stream=1)
    assert all(torch.equal(a, b) for a, b in zip(drawn, shrink(pictures(), 4), strict=True))
    assert torch.equal(made(made.prepare(drawn, SIZE)).image, from_pixels(torch.stack(list(drawn))))


@pytest.mark.parametrize("through", ["pixels", "resize", "autoencoder"])
def test_a_request_of_any_size_is_brought_to_the_size_of_training(through: str) -> None:
    """A plain one is the same at any size, and a large one is made as coarse as training's were."""
    made = encoder("low_resolution", through)
    sizes = [(4, 6), (1, 1), (64, 96), (50, 20)]
    plain = [torch.full((3, *size), 200, dtype=torch.uint8) for size in sizes]
    found = made(made.prepare(plain, SIZE)).image
    torch.testing.assert_close(found, found[:1].expand_as(found), rtol=1e-4, atol=1e-5)
    fine = pictures()[0]
    a, b = made(made.prepare([fine, shrink(fine[None], 4)[0]], SIZE)).image
    torch.testing.assert_close(a, b, rtol=0, atol=0.02)


def test_noise_is_told_and_belongs_to_the_picture() -> None:
    made = encoder("low_resolution", "resize", noise=0.6, dropout=0.0)
    assert made.vector == 64
    drawn = made.draw(columns(made), range(5), stream=3)
    levels = [value.level for value in drawn]
    assert 0 < min(levels) < max(levels) < 0.6
    assert len({value.seed for value in drawn}) == 5
    context = made(made.prepare([*drawn, None], SIZE))
    assert context.vector.shape == (6, 64)
    assert (context.vector[0] - context.vector[1]).abs().max() > 0.1
    clean = made(made.prepare([value.picture for value in drawn], SIZE))
    torch.testing.assert_close(clean.vector, clean.vector[:1].expand(5, -1))  # of level 0
    torch.testing.assert_close(clean.vector[0], context.vector[5])
    assert torch.equal(clean.image, from_pixels(shrink(pictures(), 4)))

    # Variance preserving: 0.8 of the picture and 0.6 of noise.
    big = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    noisy = made(made.prepare([Noised(big, 0.6, 5)], (256, 256))).image.detach()
    assert noisy.mean() == pytest.approx(0.8, abs=0.02)
    assert noisy.std() == pytest.approx(0.6, abs=0.02)


# --- holes ---


def hidden(shape: tuple[int, int]) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[2 : shape[0] // 2, 3 : shape[1] // 2 + 1] = True
    return mask


@pytest.mark.parametrize("through", ["pixels", "resize", "autoencoder"])
@pytest.mark.parametrize("shape", [SIZE, (32, 48), (11, 40)], ids=str)
def test_what_the_hole_hides_cannot_be_seen(through: str, shape: tuple[int, int]) -> None:
    made, mask = encoder("masked", through), hidden(shape)
    one = torch.randint(0, 256, (3, *shape), generator=generator(4)).to(torch.uint8)
    other = torch.where(mask, 255 - one, one)
    beside = torch.where(mask, one, 255 - one)
    a, b, c = made(made.prepare([Masked(p, mask) for p in (one, other, beside)], SIZE)).image
    assert torch.equal(a, b)
    assert (a - c).abs().max() > 0.1


@pytest.mark.parametrize("through", ["resize", "autoencoder"])
def test_the_mask_is_first_and_one_in_the_hole(through: str) -> None:
    made = encoder("masked", through)
    mask = torch.zeros(1, *SIZE)
    mask[0, 5, 9] = 200  # not zero is to be filled
    image = made(made.prepare([Masked(pictures()[0], mask), None], SIZE)).image
    assert image[0, 0].nonzero().tolist() == [[1, 2]]
    assert image[0, 0].max() == 1
    assert (image[1, 0] == 1).all()
    shown = from_pixels(pictures()[0])
    shown[:, 5, 9] = 0
    if through == "autoencoder":
        torch.testing.assert_close(image[0, 1:], halved(shown[None])[0])
    else:
        assert (image[1, 1:] == 0).all()


def test_holes_are_drawn_by_seed_and_stream() -> None:
    made = encoder("masked", "resize", dropout=0.0)
    one, same, other, elsewhere = (
        made.draw(columns(made), seeds, stream=stream)
        for seeds, stream in ((range(5), 1), (range(5), 1), (range(5, 10), 1), (range(5), 2))
    )
    for k in range(5):
        assert torch.equal(one[k].hole, same[k].hole)
        assert torch.equal(one[k].picture, pictures()[k])
        assert not torch.equal(one[k].hole, other[k].hole)
        assert not torch.equal(one[k].hole, elsewhere[k].hole)


# --- maps ---


@pytest.mark.parametrize("through", ["pixels", "resize"])
def test_a_map_is_its_one_hot_form_through_a_convolution(through: str) -> None:
    made = encoder("map", through, width=5)
    (ids,) = (v for n, v in columns(made).items() if n == "map")
    image = made(made.prepare(list(ids), SIZE)).image
    one_hot = F.one_hot(ids[:, 0], 7).permute(0, 3, 1, 2).float()  # the six classes and none
    table = made.table.weight
    if through == "resize":
        expected = F.conv2d(F.avg_pool2d(one_hot, FACTOR), table.T[..., None, None])
    else:
        weight = table.view(FACTOR, FACTOR, 7, 5).permute(3, 2, 0, 1)
        expected = F.conv2d(one_hot, weight, stride=FACTOR)
    torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-5)
    assert 0.1 < image.std() < 1.5


def test_maps_come_in_several_shapes_and_may_leave_places_open() -> None:
    made = encoder("map", "pixels")
    ids = torch.randint(0, 6, SIZE, generator=generator(9))
    forms = [ids, ids[None], ids.to(torch.uint8), ids.to(torch.uint16), ids.int()]
    found = made(made.prepare([*forms, torch.full(SIZE, 255), None], SIZE)).image
    assert all(torch.equal(found[0], found[k]) for k in range(len(forms)))
    assert torch.equal(found[-1], found[-2])
    wide = encoder("map", "pixels", classes=300)
    labelled, none = wide(wide.prepare([torch.full(SIZE, 255), None], SIZE)).image
    assert not torch.equal(labelled, none)


# --- other pictures ---


def test_edges_are_those_of_the_picture_at_its_size() -> None:
    made = encoder("edges", "autoencoder", dropout=0.0)
    image = made(made.prepare(made.draw(columns(made), range(5), stream=1), SIZE)).image
    lines = torch.stack([edges(one) for one in from_pixels(pictures())])
    torch.testing.assert_close(image, halved(lines.expand(-1, 3, -1, -1)))


def test_columns_may_lack_a_picture() -> None:
    made = encoder("column", "resize", dropout=0.0)
    depth = pictures(1, dtype=torch.uint16)
    drawn = made.draw({"depth": [depth[0], None, depth[2]]}, [1, 2, 3], stream=1)
    assert drawn[1] is None
    image = made(made.prepare([*drawn, None], SIZE)).image
    assert torch.equal(image[1], image[3])
    assert not torch.equal(image[0], image[2])
    assert (made.column, made.bits) == ("depth", 16)


# --- what is refused ---


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"shows": "masked", "noise": 0.1}, "'noise' belongs to shows = 'low_resolution'; here it is 'masked'"),
        ({"shows": "edges", "factor": 8}, "'factor' belongs to shows = 'low_resolution'"),
        ({"classes": 3}, "'classes' belongs to shows = 'map'"),
        ({"column": "depth"}, "'column' belongs to shows = 'column' or 'map'; here it is 'low_resolution'"),
        ({"shows": "map", "classes": 3, "column": "image"}, "'column' must name"),
        ({"shows": "column", "column": "mask"}, "'mask' holds classes: take shows = 'map'"),
        ({"shows": "map"}, "a map needs 'classes'"),
        ({"shows": "map", "classes": 3, "through": "autoencoder"}, "no maps of classes"),
        ({"shows": "column"}, "'column' must name"),
        ({"shows": "column", "column": "image"}, "'column' must name"),
        ({"shows": "masked", "width": 8}, "'width' is for what is learned"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Config.model_validate(given)


def test_a_map_may_have_another_column() -> None:
    config = Config(shows="map", classes=2, column="depth")
    assert config.reads(Table()) == ["depth"]
    assert config.learn(Table(), latent()).column == "depth"


def test_the_recipe_of_maps_is_for_the_maps_of_scenes() -> None:
    chosen = named("semantic_ldm")
    assert isinstance(chosen, DiffusionRecipe)
    assert chosen.model.conditions["map"].classes == len(THINGS) + 1  # and the ground


def test_a_column_that_the_data_lacks_is_named() -> None:
    config = Config(shows="column", column="depht")
    with pytest.raises(UserError, match=r"no column 'depht' to show; did you mean 'depth'\?"):
        config.reads(Table())


def test_a_picture_that_the_autoencoder_cannot_take_is_refused() -> None:
    with pytest.raises(UserError, match="'depth' has 2 channels; the autoencoder takes 3"):
        encoder("column", "autoencoder", channels=2)


GREY = torch.zeros(1, 8, 8, dtype=torch.uint8)
COLOUR = torch.zeros(3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("shows", "value", "says"),
    [
        ("low_resolution", GREY, "'low_resolution' must be a picture of 3 channels .* 8 x 8 with 1 channels"),
        ("edges", COLOUR.float(), "with 8 or 16 bits; this one is .* float32"),
        ("low_resolution", "a cat", "'low_resolution' holds no pictures"),
        ("map", "a cat", "'map' holds no maps"),
        ("masked", COLOUR, "needs a picture and a mask"),
        ("masked", Masked(COLOUR, torch.ones(4, 8)), "they must have one size"),
        ("map", torch.full((8, 8), 6), "the map has the class 6; expected 0 to 5"),
        ("map", torch.full((8, 8), -1), "the map has the class -1"),
        ("map", COLOUR, "one whole number a pixel"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_shown_is_refused(shows: str, value: Any, says: str) -> None:
    made = encoder(shows, "resize")
    for look in (made.remarks, lambda value: made.prepare([None, value], (8, 8))):
        with pytest.raises(UserError, match=says):
            look(value)


def test_remarks() -> None:
    masked = encoder("masked", "resize")
    assert masked.remarks(Masked(COLOUR, torch.zeros(8, 8))) == ["the mask leaves nothing to be filled"]
    assert masked.remarks(Masked(COLOUR, torch.ones(8, 8))) == [
        "the mask covers the whole picture, nothing of it is kept"
    ]
    assert masked.remarks(Masked(COLOUR, torch.eye(8))) == masked.remarks(None) == []
    assert encoder("low_resolution", "resize").remarks(COLOUR) == []
    with pytest.raises(UserError, match="always shown 'low_resolution'"):
        encoder("low_resolution", "resize", dropout=0.0).remarks(None)
