"""Boxes follow the picture through scaling, cutting and mirroring, to the pixel; and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from carrara.conditions.condition import Latent
from carrara.conditions.layout import Config, LayoutEncoder, Phrases
from carrara.errors import UserError
from carrara.geometry import Box, Layout, covered, read_boxes
from carrara.images.decode import resize_and_crop
from carrara.model_folder import load_into, write_weights

LATENT = Latent(4, 8, 3, 8, lambda image: image)
CAT, DOG = {"label": "cat", "box": [0.1, 0.2, 0.3, 0.4]}, {"label": "dog", "box": [0.5, 0.25, 0.5, 0.5]}


class Rows:
    """`conditions.contract.Columns` in memory."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns, self.names = columns, list(columns)
        self.captions: dict[str, str] = {}

    def values(self, column: str) -> list[Any]:
        return self.columns[column]


DATA = Rows(boxes=[json.dumps([CAT, DOG]), json.dumps([DOG]), "[]", None], width=[80] * 4, height=[60] * 4)


def learned(**options: Any) -> LayoutEncoder:
    torch.manual_seed(1)
    return Config(**{"width": 16, **options}).learn(DATA, LATENT).eval()


def roles(encoder: LayoutEncoder, values: list[Any], size: tuple[int, int] = (32, 48)) -> dict[str, Tensor]:
    with torch.no_grad():
        return encoder(encoder.prepare(values, size)).roles()


# --- geometry ---


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("whole", "size"),
    [((640, 480), (64, 64)), ((480, 640), (64, 64)), ((600, 400), (48, 80)), ((400, 600), (80, 48))],
)
def test_a_box_is_where_its_thing_is_shown(
    whole: tuple[int, int], size: tuple[int, int], mirrored: bool
) -> None:
    """The picture goes the way that training's pictures go; what is left of the thing is where the box says."""
    width, height = whole
    left, top, right, bottom = 0.125 * width, 0.25 * height, 0.75 * width, 0.625 * height
    picture = np.zeros((height, width), np.uint8)
    picture[int(top) : int(bottom), int(left) : int(right)] = 255
    seen = np.asarray(resize_and_crop(Image.fromarray(picture), size), float) / 255
    if mirrored:
        seen = seen[:, ::-1]
    box = Box("it", left / width, top / height, right / width, bottom / height)
    (shown,) = Layout((box,), width, height, mirrored).shown(size, 0.3)
    across = covered(torch.tensor(shown.left), torch.tensor(shown.right), size[1])
    down = covered(torch.tensor(shown.top), torch.tensor(shown.bottom), size[0])
    expected = torch.outer(down, across).numpy()
    # The filter rings at edges, to both sides alike: area and middle are the same, to a twentieth of a pixel.
    assert np.abs(expected - seen).max() < 0.35
    assert expected.sum() == pytest.approx(seen.sum(), rel=0.01)
    for axis, side in enumerate(size):
        places = np.arange(side) + 0.5
        middle, theirs = (float((m.sum(1 - axis) * places).sum() / m.sum()) for m in (expected, seen))
        assert middle == pytest.approx(theirs, abs=0.05)


def test_boxes_that_are_cut_away_do_not_count() -> None:
    """Of a picture twice as wide as high the middle half is shown."""
    boxes = [
        Box("inside", 0.25, 0.0, 0.75, 1.0),
        Box("half", 0.0, 0.5, 0.5, 1.0),
        Box("a fifth", 0.05, 0.0, 0.3, 1.0),
        Box("gone", 0.8, 0.0, 0.9, 1.0),
    ]
    layout = Layout(tuple(boxes), 200, 100, False)
    shown = layout.shown((64, 64), 0.3)
    assert [box.label for box in shown] == ["inside", "half"]
    assert shown[0].corners == pytest.approx((0, 0, 1, 1))
    assert shown[1].corners == pytest.approx((0, 0.5, 0.5, 1))
    assert [box.label for box in layout.shown((64, 64), 0.1)] == ["inside", "half", "a fifth"]
    assert len(layout.shown((32, 64), 0.3)) == 4, "at the picture's own ratio all of it is shown"
    flipped = Layout(tuple(boxes), 200, 100, True).shown((64, 64), 0.3)
    assert flipped[1].corners == pytest.approx((0.5, 0.5, 1, 1))


def test_covered_is_the_share_of_each_part() -> None:
    found = covered(torch.tensor([0.0, 0.3, 0.5]), torch.tensor([1.0, 0.6, 0.5]), 4)
    expected = [[1, 1, 1, 1], [0, 0.8, 0.4, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))


# --- what the denoiser gets ---


def test_a_token_a_box_and_one_without_boxes() -> None:
    encoder = learned()
    found = roles(encoder, [[CAT, DOG], [DOG], [], None])
    assert found["tokens"].shape == (4, 2, 16)
    assert found["mask"].tolist() == [[True, True], [True, False], [True, False], [True, False]]
    torch.testing.assert_close(found["tokens"][0, 1], found["tokens"][1, 0])
    assert torch.equal(found["tokens"][2, 0], found["tokens"][3, 0]), "without boxes is the null"
    assert "image" not in found
    elsewhere = {**DOG, "box": [0.4, 0.25, 0.5, 0.5]}
    other = {**DOG, "label": "cat"}
    moved = roles(encoder, [[DOG], [elsewhere], [other], None])["tokens"][:, 0]
    differences = torch.pdist(moved)
    assert differences.min() > 1e-3, "place and label, and that there is none, all show"


def test_the_painted_picture_is_the_boxes() -> None:
    encoder = learned(paints=3)
    tile = {"label": "cat", "box": [0.25, 0.5, 0.5, 0.25]}
    painted = roles(encoder, [[tile], [CAT, DOG], None], (64, 32))["image"]  # 8 x 4 positions
    assert painted.shape == (3, 3, 8, 4)
    assert encoder.colours is not None
    colours = encoder.colours(encoder.table.weight).detach()  # 0 nothing, 1 cat, 2 dog
    torch.testing.assert_close(painted[0, :, 4:6, 1:3], colours[1][:, None, None].expand(3, 2, 2))
    assert painted[0].abs().sum((0, 2)).nonzero().flatten().tolist() == [4, 5]
    assert painted[0].abs().sum((0, 1)).nonzero().flatten().tolist() == [1, 2]
    both = [roles(encoder, [[one]], (64, 32))["image"][0] for one in (CAT, DOG)]
    torch.testing.assert_close(painted[1], both[0] + both[1])
    assert not painted[2].any()


def test_training_and_a_request_mean_the_same() -> None:
    encoder = learned(paints=3, dropout=0.0)
    columns = {**DATA.columns, "mirrored": torch.tensor([False, True, False, False])}
    drawn = encoder.draw(columns, [1, 2, 3, 4], stream=2)
    assert drawn[3] is None
    size = (48, 64)  # the ratio of the pictures
    mirrored = {**DOG, "box": [0.0, 0.25, 0.5, 0.5]}
    given, asked = (encoder.prepare(v, size) for v in (drawn, [json.dumps([CAT, DOG]), [mirrored], [], None]))
    assert given.keys() == asked.keys() == {"labels", "corners", "mask", "across", "down"}
    for name in given:
        torch.testing.assert_close(given[name], asked[name])


def test_boxes_are_dropped_by_seed() -> None:
    encoder = learned(dropout=0.25)
    columns = {name: values * 500 for name, values in DATA.columns.items()}
    columns["mirrored"] = torch.zeros(2000)
    drawn = encoder.draw(columns, range(2000), stream=3)
    assert sum(value is None for value in drawn[::4]) / 500 == pytest.approx(0.25, abs=0.06)
    alone = encoder.draw({name: values[8:9] for name, values in columns.items()}, [8], stream=3)
    assert alone == [drawn[8]]
    assert drawn != encoder.draw(columns, range(2000), stream=4)


def test_of_too_many_the_largest_are_taken() -> None:
    encoder = learned(most=2)
    boxes = [{"label": "cat", "box": [0.1 * k, 0, 0.1 * (k + 1), 0.3]} for k in range(4)]
    assert encoder.cut(boxes) == 2
    assert encoder.remarks(boxes) == ["the model reads 2 boxes at most: the 2 smallest are left out"]
    corners = encoder.prepare([boxes], (32, 32))["corners"]
    assert sorted(corners[0, :, 0].tolist()) == pytest.approx([0.2, 0.3])


def test_phrases_are_read_also_new_ones(tmp_path: Path) -> None:
    encoder = learned(phrases=Phrases(vocabulary=300, heads=2), paints=2)
    boxes = [[{**CAT, "label": label}] for label in ("cat", "a small cat", "zebra", "cat")]
    assert encoder.remarks(boxes[2]) == []
    found = roles(encoder, [*boxes, None])
    assert torch.equal(found["tokens"][0], found["tokens"][3])
    assert torch.pdist(found["tokens"][:3, 0]).min() > 1e-3
    alone = roles(encoder, [boxes[1]])
    for name in ("tokens", "image"):
        torch.testing.assert_close(alone[name][0], found[name][1], rtol=1e-4, atol=1e-5)
    context = encoder(encoder.prepare([*boxes, None], (32, 48)))
    draw = torch.Generator().manual_seed(2)
    loss = sum(
        (role * torch.randn(role.shape, generator=draw)).sum() for role in (context.tokens, context.image)
    )
    loss.backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []
    encoder.keep(tmp_path / "kept")
    write_weights(tmp_path / "w.safetensors", encoder.state_dict())
    again = encoder.config.restore(tmp_path / "kept", LATENT)
    load_into(again, tmp_path / "w.safetensors")
    assert torch.equal(roles(again, boxes)["tokens"], found["tokens"][:4])


# --- what is refused ---


def test_what_the_data_lacks_is_said() -> None:
    with pytest.raises(UserError, match="no column 'boxes', which a layout needs"):
        Config().reads(Rows(width=[1], height=[1]))
    with pytest.raises(UserError, match="no picture to train on has a box"):
        Config().learn(Rows(boxes=[None, "[]"], width=[1, 1], height=[1, 1]), LATENT)
    with pytest.raises(ValueError, match="no multiple of 4 heads"):
        Config(width=18, phrases=Phrases())


def test_a_label_of_a_held_out_picture_may_be_new() -> None:
    strange = json.dumps([{**CAT, "label": "zebra"}, DOG])
    columns = {"boxes": [strange], "width": [80], "height": [60], "mirrored": torch.zeros(1)}
    (drawn,) = learned(dropout=0.0).draw(columns, [5], stream=1)
    assert drawn is not None
    assert [box.label for box in drawn.boxes] == ["dog"]


def test_what_a_request_gets_wrong_is_said(tmp_path: Path) -> None:
    encoder = learned()
    for value, message in [
        ([{**CAT, "label": "cut"}], "no box is called 'cut'; did you mean 'cat'"),
        ([{**CAT, "box": [1.2, 0, 0.3, 0.3]}], "the box of 'cat' lies outside the picture"),
        ([{**CAT, "box": [0, 0, 0, 0.3]}], "the box of 'cat' has no area"),
        ([{**CAT, "box": [0, 0, 0.3]}], "is no box; expected a list of"),
        ([{"name": "cat", "box": [0, 0, 1, 1]}], "is no box; expected a list of"),
        ("[{", "the boxes are no JSON"),
        ('{"label": "cat"}', "the boxes are dict; expected a list"),
    ]:
        with pytest.raises(UserError, match=message):
            encoder.remarks(value)
    with pytest.raises(UserError, match="no box is called 'cut'"):
        encoder.prepare([[{**CAT, "label": "cut"}]], (32, 32))
    assert encoder.remarks([{**CAT, "box": [0.8, 0, 0.4, 1]}]) == [
        "the box of 'cat' goes beyond the picture and is cut off"
    ]
    assert encoder.remarks([CAT, DOG]) == encoder.remarks(None) == encoder.remarks("") == []
    assert read_boxes(None) == []
    with pytest.raises(UserError, match=r"it lacks condition_boxes/labels\.json"):
        encoder.config.restore(tmp_path / "condition_boxes", LATENT)
