"""The judge of stage one: it computes as training does, where training does, and says None where it cannot judge."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carrara.autoencoders import kl
from carrara.autoencoders.point import PointEncoding
from carrara.errors import UserError
from carrara.training.devices import Placement
from carrara.training.recipe import AutoencoderRecipe
from carrara.training.validation import HeldOutJudge

CPU = torch.device("cpu")


class Darker(torch.nn.Module):
    """Gives pictures back a little darker; keeps how many there were at once, and whether in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.calls: list[tuple[int, bool]] = []

    def encode(self, image: Tensor) -> PointEncoding:
        self.calls.append((len(image), torch.is_autocast_enabled("cpu")))
        return PointEncoding(image)

    def decode(self, latent: Tensor) -> Tensor:
        return latent - 0.1 * self.weight


class Drawn:
    """A data set of random pictures, all held out."""

    def __init__(self, count: int) -> None:
        self.count = count

    def indices(self, split: str) -> np.ndarray[Any, Any]:
        return np.arange(self.count if split == "held_out" else 0)

    def pictures(self, rows: Sequence[int], size: int, channels: int, *, bits: int) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        return torch.randint(40, 250, (len(rows), channels, size, size), generator=draw).to(torch.uint8)


class Means:
    """Stands for the network: the mean of each channel, and where it was moved."""

    def __init__(self) -> None:
        self.moved: list[torch.device] = []

    def to(self, device: torch.device) -> "Means":
        self.moved.append(device)
        return self

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float().mean((2, 3)) / 255


def judge(channels: int = 3, size: int = 16, pictures: int = 8) -> HeldOutJudge:
    recipe = AutoencoderRecipe(size=size, autoencoder=kl.Config(image_channels=channels))
    return HeldOutJudge(recipe, Drawn(pictures), Darker(), Path())  # type: ignore[arg-type]


def state(*, bf16: bool = False) -> Any:
    averages = {"autoencoder": SimpleNamespace(put_into=lambda module: nullcontext())}
    return SimpleNamespace(averages=averages, placement=Placement(CPU, bf16))


@pytest.fixture
def means(monkeypatch: pytest.MonkeyPatch) -> Means:
    network = Means()
    monkeypatch.setattr("carrara.metrics.features.load_features", lambda path: network)
    return network


@pytest.mark.parametrize("bf16", [False, True])
def test_it_computes_as_training_does_and_within_its_memory(bf16: bool) -> None:
    looking = judge(size=512, pictures=6)
    assert 25 < looking.psnr(state(bf16=bf16)) < 27  # a twentieth of the range
    assert looking.module.calls == [(4, bf16), (2, bf16)]


def test_features_are_compared_on_the_device_of_the_training(means: Means) -> None:
    assert judge().distance(state()) is not None
    assert means.moved == [CPU]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_all_pictures_that_the_network_can_be_shown(means: Means, channels: int) -> None:
    assert isinstance(judge(channels).distance(state()), float)


@pytest.mark.parametrize(("channels", "pictures"), [(2, 8), (5, 8), (3, 1)])
def test_none_where_nothing_can_be_compared(means: Means, channels: int, pictures: int) -> None:
    assert judge(channels, pictures=pictures).distance(state()) is None


def test_none_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: None) -> None:
        raise UserError("no weights")

    monkeypatch.setattr("carrara.metrics.features.load_features", missing)
    assert judge().distance(state()) is None
