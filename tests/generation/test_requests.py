"""Requests as a person states them: which picture is for which condition, and what is not used is said."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from carrara.cli.models import example_for
from carrara.conditions import image, label, layout, size, text
from carrara.conditions.condition import Latent
from carrara.conditions.random_holes import Masked
from carrara.errors import UserError
from carrara.generation.options import RequestOptions
from carrara.generation.request import read
from carrara.geometry import read_boxes
from conftest import Here, Trained

LATENT = Latent(4, 8, 3, 8, lambda picture: picture)
WORDS = text.Config(vocabulary=300, length=6, width=8, depth=1, heads=2)
TOKENIZER = text.learn_tokenizer(["a red disc"], 300)
LABELS = label.Config(width=8)
SMALL, HOLE, DEPTH = (
    image.Config(),
    image.Config(shows="masked"),
    image.Config(shows="column", column="depth"),
)


def model(**configs: Any) -> Any:
    """What requests look at of a model."""
    encoders = {
        name: text.TextEncoder(config, TOKENIZER)
        if isinstance(config, text.Config)
        else layout.LayoutEncoder(config, LATENT, ["cat"], None)
        if isinstance(config, layout.Config)
        else label.LabelEncoder(config, ["cat", "dog"])
        if isinstance(config, label.Config)
        else config.restore(Path("nowhere"), LATENT)
        for name, config in configs.items()
    }
    return SimpleNamespace(
        conditions=torch.nn.ModuleDict(encoders), config=SimpleNamespace(conditions=configs), passport={}
    )


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), "red").save("red.png")
    Image.new("RGB", (8, 8), "red").save("a=b.png")
    hole = Image.new("L", (8, 8))
    hole.paste(255, (0, 0, 4, 8))
    hole.save("hole.png")


def test_each_picture_goes_to_its_condition(files: None) -> None:
    both = model(small=SMALL, depth=DEPTH)
    asked = RequestOptions(picture=("low_resolution=red.png", "depth=hole.png"))
    row = read(both, asked, 2.0).row
    assert [row[name].shape[0] for name in ("low_resolution", "depth")] == [3, 1]
    assert example_for(both) == " --picture low_resolution=FILE --picture depth=FILE"
    assert read(both, RequestOptions(picture=("depth=hole.png",)), 2.0).row.keys() == {"depth"}
    alone = model(small=SMALL)
    assert example_for(alone) == " --picture FILE"
    for given in ("red.png", "low_resolution=red.png", "a=b.png"):
        assert read(alone, RequestOptions(picture=(given,)), 2.0).row["low_resolution"].shape == (3, 8, 8)
    filled = read(model(hole=HOLE), RequestOptions(picture=("red.png",), mask=Path("hole.png")), 2.0).row[
        "masked"
    ]
    assert isinstance(filled, Masked)
    assert filled.hole.float().mean() == 0.5


@pytest.mark.parametrize(
    ("conditions", "asked", "says"),
    [
        ({"a": SMALL, "b": DEPTH}, RequestOptions(picture=("red.png",)),
         "say which this one is: --picture low_resolution=FILE, --picture depth=FILE"),
        ({"a": SMALL, "b": DEPTH}, RequestOptions(picture=("dept=red.png",)), "shown no 'dept'; did you mean 'depth'?"),
        ({"a": DEPTH}, RequestOptions(picture=("depth=red.png", "red.png")), "two pictures were given for 'depth'"),
        ({"a": WORDS}, RequestOptions(picture=("red.png",)), r"no condition for --picture; it takes a \(text\)"),
        ({"a": HOLE}, RequestOptions(mask=Path("hole.png")), "give that as --picture"),
        ({"a": HOLE, "b": DEPTH}, RequestOptions(picture=("depth=red.png",), mask=Path("hole.png")), "as --pic"),
        ({"a": SMALL}, RequestOptions(picture=("red.png",), mask=Path("hole.png")), "give that as --from"),
        ({"a": WORDS}, RequestOptions(mask=Path("hole.png")), "give that as --from"),
        ({"a": WORDS}, RequestOptions(original="64x64"), "no condition for --original"),
        ({"a": size.Config()}, RequestOptions(original="64"), "64 is no size"),
        ({"a": layout.Config()}, RequestOptions(boxes="[" * 100_000), "the boxes are not JSON"),
        ({"a": layout.Config()}, RequestOptions(boxes='[{"label": "cat", "box": [0, 0, 1, 1%s]}]' % ("0" * 400)),
         "the box of 'cat' has a number beyond all pictures"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    files: None, conditions: dict[str, Any], asked: RequestOptions, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        read(model(**conditions), asked, 2.0)


def test_boxes_of_numbers_without_end_are_refused() -> None:
    with pytest.raises(UserError, match="has no area"):
        read_boxes('[{"label": "cat", "box": [0, 0, 1e999, 1]}]')


@pytest.mark.parametrize(
    ("conditions", "guidance", "says"),
    [
        ({"a": WORDS}, 2.0, []),
        ({"a": WORDS}, 1.0, ["guidance is 1, which is off; the negative prompt is not used"]),
        ({"a": WORDS.model_copy(update={"dropout": 0.0})}, 2.0,
         ["this model never trained without its captions; the negative prompt is not used"]),
        ({}, 1.0, ["this model was trained without captions; the negative prompt is not used"]),
        ({"a": WORDS.model_copy(update={"length": 3})}, 2.0,
         ["negative prompt: the last 1 tokens of the prompt are beyond the model's window and are not read"]),
    ],
)  # fmt: skip
def test_a_negative_prompt_that_is_not_used_says_so(
    conditions: dict[str, Any], guidance: float, says: list[str]
) -> None:
    asked = RequestOptions(prompt="a" if conditions else "", negative="a red disc")
    request = read(model(**conditions), asked, guidance)
    assert request.remarks == says
    assert request.row["negative"] == "a red disc"
    assert request.told.get("negative") == ("a red disc" if conditions else None)


def test_the_size_of_the_original_can_be_asked_for(here: Here, trained: Trained) -> None:
    request = read(model(it=size.Config()), RequestOptions(original="1024x768"), 1.0)
    assert (request.row["size"], request.told["size"]) == ("1024x768", "1024x768")
    refusal = here("sample", trained.diffusion, "a disc", "--original", "64x48").refusal
    assert refusal == "this model has no condition for --original; it takes caption (text)"


@pytest.mark.parametrize(
    ("configs", "asked", "told", "remarks"),
    [
        (
            {"words": WORDS},
            RequestOptions(),
            {"caption": "", "negative": ""},
            ["without a prompt the pictures show"],
        ),
        (
            {"words": WORDS, "more": WORDS},
            RequestOptions(),
            {"caption": "", "negative": ""},
            ["without a prompt"],
        ),
        (
            {"words": WORDS},
            RequestOptions(prompt="a red disc"),
            {"caption": "a red disc", "negative": ""},
            [],
        ),
        ({"it": LABELS}, RequestOptions(), {}, ["without a class (--label) the pictures show"]),
        ({"it": LABELS}, RequestOptions(label="cat"), {"label": "cat"}, []),
        (
            {"it": LABELS},
            RequestOptions(prompt="a dress", label="cat"),
            {"label": "cat"},
            ["the prompt is not used"],
        ),
    ],
)
def test_what_is_not_asked_for_is_said_and_what_is_not_used_not_kept(
    configs: dict[str, Any], asked: RequestOptions, told: dict[str, str], remarks: list[str]
) -> None:
    found = read(model(**configs), asked, 2.0)
    assert found.told == told
    assert len(found.remarks) == len(remarks)
    for remark, words in zip(found.remarks, remarks, strict=True):
        assert words in remark
