"""Of a mirrored picture a normal map points the other way, a pose is refused, and a user is told of mirroring."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from carrara.conditions import image
from carrara.dataset.columns import KINDS
from carrara.dataset.picture_columns import mirror
from carrara.generation.model import ModelConfig
from carrara.training.mirroring import as_seen, note
from carrara.training.recipe import DiffusionRecipe, Pixels


def ball() -> torch.Tensor:
    """Normals of a ball ``uint8 [3 24 24]``: red is x, to the right."""
    y, x = np.mgrid[-1:1:24j, -1:1:24j]
    normal = np.stack([x, -y, np.sqrt(np.maximum(0, 1 - x * x - y * y))])
    return torch.from_numpy(np.uint8(np.round((normal + 1) * 127.5)))


def test_a_mirrored_ball_is_the_same_ball() -> None:
    normals = torch.stack([ball(), ball()])
    seen = as_seen("normal", normals, torch.tensor([False, True]))
    assert torch.equal(seen[0], normals[0])
    assert (seen[1].int() - normals[1].int()).abs().max() <= 1
    assert seen[1, 0, 12, 2] < 128 < seen[1, 0, 12, 21]


@pytest.mark.parametrize("name", ["map", "mask", "depth", "edges", "image"])
def test_what_has_no_direction_is_turned_alone(name: str) -> None:
    kind = torch.uint16 if name == "depth" else torch.uint8
    pictures = torch.arange(2 * 9).reshape(2, 1, 3, 3).to(kind)
    seen = as_seen(name, pictures, torch.tensor([True, False]))
    assert seen.dtype == kind
    assert torch.equal(seen.int(), torch.stack([pictures[0].int().flip(-1), pictures[1].int()]))


def test_a_pose_cannot_be_mirrored() -> None:
    with pytest.raises(ValueError, match="left and right"):
        mirror("pose", torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    pose = image.Config(shows="column", column="pose", channels=3)
    for pixels, name in ((Pixels(flip=True), "pixels.flip"), (None, "flip")):
        recipe = {
            "pixels": pixels,
            "flip": pixels is None,
            "model": ModelConfig(conditions={"skeleton": pose}),
        }
        with pytest.raises(ValidationError, match=f"'skeleton' shows a pose, .*: set {name} to false"):
            DiffusionRecipe.model_validate(recipe)
    DiffusionRecipe(pixels=Pixels(flip=False), model=ModelConfig(conditions={"skeleton": pose}))
    assert {name for name, kind in KINDS.items() if kind.mirrored != "as seen"} == {"normal", "pose"}


def test_mirroring_is_said() -> None:
    assert "--set pixels.flip=false" in note(DiffusionRecipe(pixels=Pixels(flip=True)))
    assert "--set flip=false" in note(DiffusionRecipe(flip=True))
    assert note(DiffusionRecipe(pixels=Pixels(flip=False))) == note(DiffusionRecipe()) == ""
