"""Six numbers as SDXL embeds them: the original's size, the cut, the size that is made."""

from typing import Any

import pytest
import torch

from carrara.conditions.condition import Latent
from carrara.conditions.size import Config, SizeEncoder
from carrara.context import Context
from carrara.errors import UserError

LATENT = Latent(4, 8, 3, 8, lambda image: image)


class Sizes:
    """`conditions.contract.Columns` with the sizes that every table has."""

    captions: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def values(self, column: str) -> list[Any]:
        raise AssertionError("nothing is learned of the data")


def encoder(**options: Any) -> SizeEncoder:
    return Config(**options).learn(Sizes("id", "width", "height"), LATENT)


def test_the_vector_is_that_of_sdxl() -> None:
    """Against the layer of diffusers; beside a pooled text of 1280 it makes the 2816 of the published network."""
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    found = encoder()(torch.tensor([[480.0, 640, 0, 85, 512, 512], [1024, 1024, 0, 0, 1024, 1024]])).vector
    layer = embeddings.Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    theirs = layer(torch.tensor([480.0, 640, 0, 85, 512, 512, 1024, 1024, 0, 0, 1024, 1024]))
    torch.testing.assert_close(found, theirs.reshape(2, 1536), rtol=0, atol=1e-4)
    assert encoder().vector == 1536
    both = Context(vector=torch.zeros(2, 1280)).join(Context(vector=found))
    assert both.vector is not None
    assert both.vector.shape == (2, 2816)
    assert torch.equal(both.vector[:, 1280:], found)


@pytest.mark.parametrize(
    ("whole", "size", "crop"),
    [
        ((640, 480), (512, 512), (0, 85)),  # scaled to 683 x 512
        ((480, 640), (512, 512), (85, 0)),
        ((512, 512), (512, 512), (0, 0)),
        ((100, 50), (64, 96), (0, 16)),  # scaled up to 128 x 64
        ((1000, 1500), (768, 640), (96, 0)),  # scaled to 640 x 960
    ],
)
def test_pictures_tell_how_they_were_cut(
    whole: tuple[int, int], size: tuple[int, int], crop: tuple[int, int]
) -> None:
    module = encoder()
    columns = {"width": torch.tensor([whole[0]]), "height": torch.tensor([whole[1]]), "mirrored": [True]}
    numbers = module.prepare(module.draw(columns, [1], stream=1), size)
    assert numbers.tolist() == [[whole[1], whole[0], *crop, *size]]


def test_a_request_is_of_the_size_that_is_made_unless_it_says() -> None:
    module, size = encoder(), (64, 96)
    values = [None, "", "640x480", '{"crop": [3, 4]}', {"original": [30, 20], "crop": (1, 2)}]
    assert module.prepare(values, size).tolist() == [
        [64, 96, 0, 0, 64, 96],
        [64, 96, 0, 0, 64, 96],
        [480, 640, 0, 0, 64, 96],
        [64, 96, 3, 4, 64, 96],
        [30, 20, 1, 2, 64, 96],
    ]
    assert [module.remarks(value) for value in values] == [[]] * 5
    for value, message in [
        ("huge", "'huge' is no size; expected \"1024x768\""),
        ("0x5", "are no two numbers from 1 to 1048576"),
        ("9" * 400 + "x5", "is no size"),
        ({"original": [10**400, 5]}, "are no two numbers from 1 to"),
        ("[" * 100_000, "is no size"),
        ('{"orignal": [3, 4]}', "a size has no 'orignal'; did you mean 'original'"),
        ({"crop": [1]}, "are no two numbers from 0 to"),
        ([640, 480], "is no size"),
    ]:
        with pytest.raises(UserError, match=message):
            module.remarks(value)


def test_it_is_dropped_by_seed_and_never_by_itself() -> None:
    columns = {"width": torch.full((1000,), 30), "height": torch.full((1000,), 20)}
    assert None not in encoder().draw(columns, range(1000), stream=1)
    drawn = encoder(dropout=0.3).draw(columns, range(1000), stream=1)
    assert sum(value is None for value in drawn) / 1000 == pytest.approx(0.3, abs=0.05)


def test_data_without_sizes_is_refused() -> None:
    with pytest.raises(UserError, match="no column 'width' for the size; did you mean 'widht'"):
        Config().learn(Sizes("widht", "height"), LATENT)
    assert Config().reads(Sizes("id", "width", "height")) == ["width", "height"]
