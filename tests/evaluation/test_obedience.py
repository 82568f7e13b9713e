"""Judges of constructed cases; and whole measurements of models that obey, that do not, and of a real one."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from carrara.autoencoders import identity
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.conditions import image, label, layout, size, text
from carrara.config import Config
from carrara.dataset.dataset import Dataset
from carrara.denoisers import unet
from carrara.errors import UserError
from carrara.evaluation.class_probe import accuracy, accuracy_by_class, fit_probe
from carrara.evaluation.condition_following import SHOWN, Trial, measure
from carrara.evaluation.map_reader import (
    compare,
    find_boxes,
    learn_to_read,
    mean_overlap,
    numbers_of_labels,
    overlaps,
    regions,
)
from carrara.evaluation.simple_fills import cut_around, mean_fill, psnr_where, smooth_fill, square_around
from carrara.generation.model import Model, ModelConfig, build_network, latent_of
from carrara.generation.sample import Settings
from carrara.geometry import Box
from carrara.importing.importing import import_pictures
from carrara.metrics.features import Features
from carrara.tensors import from_pixels, generator, to_pixels
from carrara.training.condition_columns import TrainingRows
from conftest import run_out

COLOURS = {"red": (230, 30, 40), "blue": (20, 60, 220)}
SIDE = 16


# --- classes ---


def test_a_probe_tells_classes_apart_and_not_more_than_there_is() -> None:
    draw = generator(1)
    places, labels = torch.randn(3, 24, generator=draw), ["ant", "bee", "cow"] * 40
    features = torch.randn(120, 24, generator=draw) + places.repeat(40, 1)
    probe = fit_probe(features[:80], labels[:80])
    assert accuracy(probe(features[80:]), labels[80:]) > 0.9
    stretched = features * 1000 + 7
    assert fit_probe(stretched[:80], labels[:80])(stretched[80:]) == probe(features[80:])
    nothing = fit_probe(torch.randn(80, 24, generator=draw), labels[:80])
    assert accuracy(nothing(features[80:]), labels[80:]) < 0.6
    with pytest.raises(ValueError, match="the labels hold 1"):
        fit_probe(features[:3], ["ant"] * 3)


def test_accuracy_is_a_share_of_all_and_of_each_class() -> None:
    found, asked = ["a", "b", "b", "b"], ["a", "a", "a", "b"]
    assert accuracy(found, asked) == 0.5
    assert accuracy_by_class(found, asked) == {"a": pytest.approx(1 / 3), "b": 1.0}


# --- maps ---


def test_overlaps_of_maps_counted_by_hand() -> None:
    asked = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 255]]])
    found = torch.tensor([[[0, 1, 1, 1], [0, 0, 0, 2]]])
    shares = overlaps(asked, found, 4)
    assert shares[:2].tolist() == pytest.approx([3 / 5, 2 / 4])
    assert shares[2:].isnan().all(), "nobody asked for them, and the last pixel does not count"
    assert mean_overlap(asked, found, 4) == pytest.approx(0.55)
    assert mean_overlap(asked, asked.clamp(max=3), 4) == 1


def test_a_reader_learns_maps_and_reads_other_pictures_softer_ones_too() -> None:
    draw = generator(2)
    maps = torch.zeros(80, 16, 16, dtype=torch.long)
    for one in maps:
        left, top, kind = (int(torch.randint(n, (), generator=draw)) for n in (10, 10, 2))
        one[top : top + 6, left : left + 6] = 1 + kind
    table = torch.tensor([(220, 220, 220), *COLOURS.values()], dtype=torch.uint8)
    pictures = table[maps].permute(0, 3, 1, 2)
    reader = learn_to_read(pictures[:60], maps[:60], 3, steps=50, batch=16)
    soft = to_pixels(
        F.avg_pool2d(from_pixels(pictures[60:]), 3, stride=1, padding=1, count_include_pad=False)
    )
    assert mean_overlap(maps[60:], reader.read(pictures[60:]), 3) > 0.9
    assert mean_overlap(maps[60:], reader.read(soft), 3) > 0.8
    assert mean_overlap(maps[60:].roll(1, 0), reader.read(pictures[60:]), 3) < 0.6
    assert torch.equal(reader.read(pictures[60:], batch=7), reader.read(pictures[60:]))


# --- boxes ---


def test_regions_are_what_is_connected_however_it_winds() -> None:
    spiral = [
        "11111111",
        "00000001",
        "11111101",
        "10000101",
        "10110101",
        "10111101",
        "10000001",
        "11111111",
    ]
    maps = torch.tensor([[list(map(int, line)) for line in spiral]])
    found = regions(maps)
    assert len(found[maps == 1].unique()) == 1
    assert len(found[maps == 0].unique()) == 1
    corners = torch.eye(4, dtype=torch.long).repeat(2, 1, 1)  # neighbours over corners are none
    assert len(regions(corners)[corners == 1].unique()) == 8


def test_boxes_are_found_around_regions_and_specks_are_left_out() -> None:
    maps = torch.zeros(2, 40, 20, dtype=torch.long)
    maps[0, 10:20, 5:10], maps[0, 30:40, 0:4], maps[0, 0, 19] = 1, 2, 1
    maps[1, 0:4, 0:4], maps[1, 20:24, 0:4] = 1, 1
    maps[1, 35:, 15:] = 3  # has no name
    first, second = find_boxes(maps, {1: "cat", 2: "dog"})
    assert sorted(first, key=lambda b: b.label) == [
        Box("cat", 0.25, 0.25, 0.5, 0.5),
        Box("dog", 0, 0.75, 0.2, 1),
    ]
    assert {(b.label, b.top) for b in second} == {("cat", 0.0), ("cat", 0.5)}


def test_which_number_of_the_map_a_label_means_is_learned() -> None:
    maps = torch.zeros(2, 10, 10, dtype=torch.long)
    maps[0, 2:6, 2:6], maps[1, 5:9, 1:4] = 2, 1
    maps[0, 4, 4] = 1
    boxes = [[Box("pig", 0.2, 0.2, 0.6, 0.6)], [Box("frog", 0.1, 0.4, 0.5, 1)]]  # the last with ground in it
    assert numbers_of_labels(maps, boxes) == {2: "pig", 1: "frog"}


def test_agreement_of_boxes_counted_by_hand() -> None:
    asked = [
        [Box("cat", 0, 0, 0.5, 0.5), Box("dog", 0.5, 0.5, 1, 1)],
        [Box("cat", 0, 0, 1, 0.5), Box("pig", 0, 0, 1, 1)],
    ]
    found = [
        [Box("cat", 0, 0, 0.5, 0.5), Box("cat", 0.5, 0.5, 1, 1)],  # right; a cat where a dog was wanted
        [Box("cat", 0.5, 0, 1, 0.5), Box("cat", 0, 0, 0.9, 0.5)],  # one half of it, nearly all: that answers
    ]
    assert compare(asked, found) == (pytest.approx((1 + 0 + 0.9 + 0) / 4), 0.5, 0.5, 4)
    assert compare(asked, [[], []]) == (0, 0, 0, 4)
    with pytest.raises(ValueError, match="no box was asked for"):
        compare([[]], found[:1])


# --- holes ---


@pytest.mark.parametrize("bits", [8, 16])
def test_fills_keep_what_is_known_and_are_exact_where_nothing_changes(bits: int) -> None:
    flat = to_pixels(torch.tensor([0.5, -0.2, 0.9])[None, :, None, None].expand(1, 3, 13, 10), bits)
    hole = torch.rand(1, 13, 10, generator=generator(3)) < 0.7
    for fill in (mean_fill, smooth_fill):
        filled = fill(torch.where(hole[:, None], torch.zeros_like(flat), flat), hole)
        assert filled.dtype == flat.dtype
        assert (filled.int() - flat.int()).abs().max() <= 1
    ramp = to_pixels(torch.linspace(-1, 1, 32).expand(1, 1, 32, 32), bits)
    middle = torch.zeros(1, 32, 32, dtype=torch.bool)
    middle[:, 4:28, 10:22] = True
    hidden = torch.where(middle[:, None], torch.zeros_like(ramp), ramp)
    smooth, mean = smooth_fill(hidden, middle), mean_fill(hidden, middle)
    assert torch.equal(smooth[~middle[:, None]], ramp[~middle[:, None]])
    assert float(psnr_where(smooth, ramp, middle)) > float(psnr_where(mean, ramp, middle)) + 5
    everything = smooth_fill(ramp, torch.ones(1, 32, 32, dtype=torch.bool))
    assert (everything.int() - to_pixels(torch.zeros(1), bits).int()).abs().max() <= 1, (
        "grey: nothing is known"
    )


def test_psnr_where_by_hand() -> None:
    a = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    b, where = a.clone(), torch.zeros(2, 4, 4, dtype=torch.bool)
    where[0, 0, :2] = True
    b[0, :, 0, 0] = 51  # a fifth of the range on one of two pixels
    b[0, :, 3, 3] = 255  # elsewhere
    found = psnr_where(a, b, where)
    assert float(found[0]) == pytest.approx(10 * math.log10(25 * 2))
    assert found[1].isnan()
    assert float(psnr_where(a[:1], a[:1], where[:1])) == 100


def test_the_square_around_a_hole_holds_it_and_stays_inside() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        hole = torch.zeros(24, 40, dtype=torch.bool)
        top, left = chance.randrange(24), chance.randrange(40)
        hole[top : top + chance.randint(1, 24), left : left + chance.randint(1, 20)] = True
        y, x, side = square_around(hole)
        assert 0 <= y <= 24 - side
        assert 0 <= x <= 40 - side
        assert side >= 16
        assert hole[y : y + side, x : x + side].sum() == hole.sum()
    with pytest.raises(ValueError, match="no hole"):
        square_around(torch.zeros(4, 4, dtype=torch.bool))
    corner = torch.zeros(1, 40, 40, dtype=torch.bool)
    corner[:, 38:, 38:] = True
    pictures = torch.arange(1600).view(1, 1, 40, 40).to(torch.uint16)
    assert torch.equal(cut_around(pictures, corner, 16), pictures[:, :, 24:, 24:])


# --- whole measurements ---


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixty pictures of a red or a blue square somewhere on grey, with class, caption, box and map."""
    root, draw = tmp_path_factory.mktemp("squares"), random.Random(5)
    for k in range(60):
        name, left, top = draw.choice(list(COLOURS)), draw.randint(0, 9), draw.randint(0, 9)
        folder = root / "source" / name
        folder.mkdir(parents=True, exist_ok=True)
        picture, ids = Image.new("RGB", (SIDE, SIDE), (200, 200, 200 + k % 50)), Image.new("L", (SIDE, SIDE))
        place = (left, top, left + 6, top + 6)
        picture.paste(COLOURS[name], place)
        ids.paste(1 + list(COLOURS).index(name), place)
        picture.save(folder / f"{k}.png")
        ids.save(folder / f"{k}.map.png")
        (folder / f"{k}.txt").write_text(f"{name} at {left}, {top}")
        boxes = [{"label": name, "box": [left, top, 6, 6]}]
        (folder / f"{k}.boxes.json").write_text(json.dumps(boxes))
    run_out(import_pictures(str(root / "source"), root / "data", held_out=0.4))
    return Dataset.open(root / "data")


class Pooled(Features):
    """Colours at four by four places: features that need no weights."""

    def __init__(self) -> None:
        self.side = 4

    def __call__(self, pixels: Tensor, *, batch: int = 32) -> Tensor:
        return F.adaptive_avg_pool2d(from_pixels(pixels), self.side).flatten(1)


@dataclass(frozen=True)
class Oracle(Trial):
    """Answers with the real pictures, or where it does not ``obey`` with those turned over, red for blue."""

    obeys: bool = True

    def make(self, rows: Sequence[Mapping[str, Any]], first: int = 0) -> Tensor:
        asked = [row["caption"] for row in rows if "caption" in row]
        captions = self.dataset.column("caption")
        real = self.rows("held_out", self.pictures)
        which = [captions.index(one) for one in asked] or [real[k % len(real)] for k in range(len(rows))]
        pictures = self.originals(which)
        return pictures if self.obeys else pictures.flip(1).flip(-1)


def trial(data: Dataset, condition: Config, kind: type[Trial] = Oracle, **changes: Any) -> Any:
    """A model of 16 pixels with one condition, untrained."""
    torch.manual_seed(0)
    config = ModelConfig(
        denoiser=unet.Config(channels=8, multipliers=(1, 2), blocks=1, attention=(2,), head_width=8),
        conditions={"it": condition},
    )
    pixels = identity.Config()
    autoencoder = StoredAutoencoder.of(pixels.build(), pixels, SIDE, {}).with_scale(
        LatentScale(torch.zeros(3), torch.ones(3))
    )
    encoder: Any = condition.learn(TrainingRows(data), latent_of(autoencoder))  # type: ignore[attr-defined]
    conditions = nn.ModuleDict({"it": encoder})
    model = Model(config, build_network(config, conditions, 3).eval(), conditions.eval(), autoencoder, {})
    settings = Settings(seed=1, steps=2, guidance=1.0)
    chosen = {"pictures": 24, "references": 36, "lessons": 60, **changes}
    return kind(model, data, Pooled(), settings, **chosen)


def figures(one: Trial) -> tuple[str, Mapping[str, Mapping[str, float]], Image.Image]:
    (found,) = measure(one)
    values = [value for row in found.figures.values() for value in row.values()]
    assert all(map(math.isfinite, values))
    return found.condition, found.figures, found.plate


@pytest.mark.parametrize(
    ("condition", "name", "measures"),
    [
        (label.Config(width=8), "class", ("accuracy",)),
        (image.Config(shows="map", classes=3), "map", ("overlap",)),
        (layout.Config(width=8), "layout", ("overlap", "obeyed")),
        (text.Config(vocabulary=300, length=16, width=8, depth=1, heads=2), "text", ("obeyed",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_who_obeys_is_at_the_ceiling_and_who_does_not_is_at_the_floor(
    data: Dataset, condition: Config, name: str, measures: tuple[str, ...]
) -> None:
    one = trial(data, condition)
    called, good, plate = figures(one)
    assert called == name
    assert min(plate.size) > 60
    _, bad, other = figures(replace(one, obeys=False))
    assert plate.tobytes() != other.tobytes()
    shuffled = next(row for subject, row in good.items() if "shuffled" in subject)
    for measure_name in measures:
        assert good["samples"][measure_name] > 0.85
        if "held-out pictures" in good:
            assert good["samples"][measure_name] == good["held-out pictures"][measure_name]
        assert bad["samples"][measure_name] < 0.4
        assert shuffled[measure_name] < 0.75


@pytest.mark.parametrize("shows", ["low_resolution", "masked"])
def test_pictures_given_back_are_better_than_the_simple_ways(data: Dataset, shows: Any) -> None:
    one = trial(data, image.Config(shows=shows))
    _, good, plate = figures(one)
    assert plate.width > SHOWN * 90
    _, bad, _ = figures(replace(one, obeys=False))
    simple = next(row for subject, row in good.items() if subject in ("bicubic", "smooth fill"))
    (quality,) = (measure_name for measure_name in simple if measure_name.startswith("psnr"))
    (distance,) = (measure_name for measure_name in simple if measure_name.startswith("distance"))
    assert good["samples"][quality] == 100
    assert 10 < simple[quality] < 40
    assert bad["samples"][quality] < simple[quality]
    assert good["samples"][distance] < bad["samples"][distance]
    if shows == "low_resolution":
        assert good["samples"]["consistency"] == 100
        assert simple["consistency"] > bad["samples"]["consistency"]
    else:
        assert simple[quality] > good["mean colour"][quality]


def test_a_real_model_is_asked_what_the_held_out_pictures_are(data: Dataset) -> None:
    one = trial(data, image.Config(shows="masked"), Trial, pictures=6, batch=4)
    _, found, _ = figures(one)
    again = figures(replace(one, batch=6))[1]
    assert found["samples"]["psnr in the hole"] < found["smooth fill"]["psnr in the hole"], "it is untrained"
    assert again["samples"]["psnr in the hole"] == pytest.approx(
        found["samples"]["psnr in the hole"], abs=0.05
    )
    assert again["mean colour"] == found["mean colour"]


def test_what_cannot_be_measured_is_said(data: Dataset, dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"it has: edges; known: class, inpainting, layout"):
        measure(trial(data, image.Config(shows="edges")))
    with pytest.raises(UserError, match=r"it has: size"):
        measure(trial(data, size.Config()))
    one = replace(trial(data, layout.Config(width=8)), dataset=dataset)
    with pytest.raises(UserError, match="has boxes but no maps"):
        measure(one)
