"""Latents are kept in the variants that were asked for, and never used when anything behind them changed."""

import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from carrara.autoencoders import kl
from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder
from carrara.dataset import latents
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import derived, forget
from carrara.dataset.latents import Variant, encode, encoded, latent_key, scale_note, variants
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from carrara.tensors import from_pixels

CPU = torch.device("cpu")


def autoencoder(seed: int = 0, channels: int = 3, bits: int = 8) -> StoredAutoencoder:
    """Random weights, sixteen pixels a side to 4 x 8 x 8."""
    torch.manual_seed(seed)
    config = kl.Config(
        channels=8, multipliers=(1, 2), blocks=1, middle_attention=False, image_channels=channels
    )
    return StoredAutoencoder.of(config.build(), config, 16, {}, bits)


@pytest.fixture
def oblong(tmp_path: Path, make_png: Callable[..., bytes]) -> Dataset:
    """Twelve pictures that lie and eleven that stand."""
    (tmp_path / "source").mkdir()
    for k in range(23):
        (tmp_path / "source" / f"x{k}.png").write_bytes(make_png(k, (30, 16) if k < 12 else (16, 40)))
    list(import_pictures(tmp_path / "source", tmp_path / "data"))
    return Dataset.open(tmp_path / "data")


def make(dataset: Dataset, model: StoredAutoencoder, variant: Variant, **more: Any) -> Tensor:
    """The column of a variant, ``[n 2c h w]``."""
    *_, last = encode(dataset, model, CPU, variant=variant, **more)
    assert last.column is not None
    values = np.array(dataset.column(last.column), np.float16)
    return torch.from_numpy(values).reshape(len(dataset), 8, 8, 8)


def test_the_variants_of_a_picture() -> None:
    assert [str(v) for v in variants(False, 1)] == ["centre"]
    assert [str(v) for v in variants(True, 1)] == ["centre", "centre+flip"]
    assert [str(v) for v in variants(True, 3)] == [
        "centre", "start", "end", "centre+flip", "start+flip", "end+flip",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"crops is 2; expected 1 .* or 3"):
        variants(False, 2)


def test_each_variant_is_what_its_name_says(oblong: Dataset) -> None:
    model = autoencoder()
    found = {str(v): make(oblong, model, v) for v in variants(True, 3)}
    for variant in variants(True, 3):
        pictures = oblong.pictures(range(len(oblong)), 16, crop=variant.crop)
        image = from_pixels(pictures.flip(-1) if variant.flip else pictures)
        with torch.inference_mode():
            posterior = model.module.encode(image)  # type: ignore[operator]
        want = torch.cat([posterior.mean, (0.5 * posterior.logvar).exp()], 1)
        assert torch.allclose(found[str(variant)].float(), want, atol=2e-3, rtol=2e-3), variant
    means = [values[:, :4].float() for values in found.values()]
    for i in range(6):
        for j in range(i):
            assert (means[i] - means[j]).abs().mean() > 0.02, (i, j)
    assert means[0].std() > 0.05


def test_everything_behind_a_latent_is_in_its_key(oblong: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = autoencoder()
    keys = [latent_key(model, v) for v in variants(True, 3)]
    keys += [
        latent_key(autoencoder(1)),
        latent_key(replace(model, size=32)),
        latent_key(replace(model, bits=16)),
    ]
    make(oblong, model, Variant())
    assert encoded(oblong, model, [Variant()]) is not None
    assert encoded(oblong, model, variants(True, 1)) is None
    for key in keys[1:]:
        assert derived(oblong, "latent", key) is None
    monkeypatch.setattr(latents, "CODE", latents.CODE + 1)
    assert encoded(oblong, model, [Variant()]) is None


def test_a_changed_picture_is_noticed(
    oblong: Dataset, tmp_path: Path, make_png: Callable[..., bytes]
) -> None:
    model = autoencoder()
    before = make(oblong, model, Variant())
    (tmp_path / "source" / "x3.png").write_bytes(make_png(99, (30, 16)))
    list(import_pictures(tmp_path / "source", oblong.path))
    oblong.refresh()
    assert encoded(oblong, model, [Variant()]) is None
    after = make(oblong, model, Variant())
    assert torch.equal(after[:23], before)
    assert len(after) == 24
    assert not torch.equal(after[23], after[3])
    assert encoded(oblong, model, [Variant()]) is not None


def test_bfloat16_is_near(oblong: Dataset) -> None:
    model = autoencoder()
    exact = make(oblong, model, Variant()).float()

    forget(oblong, "latent", latent_key(model))
    near = make(oblong, model, Variant(), autocast=lambda: torch.autocast("cpu", torch.bfloat16)).float()
    assert not torch.equal(near, exact)
    assert (near - exact)[:, :4].abs().mean() < 0.02 * exact[:, :4].std()


def test_sixteen_bits_and_five_channels(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    numbers = np.random.default_rng(0).integers(20000, 20200, (6, 5, 16, 16)).astype(np.uint16)
    for k, pages in enumerate(numbers):
        first, *rest = [Image.fromarray(page) for page in pages]
        first.save(tmp_path / "source" / f"{k}.tif", save_all=True, append_images=rest)
    list(import_pictures(tmp_path / "source", tmp_path / "data"))
    dataset = Dataset.open(tmp_path / "data")
    model = autoencoder(channels=5, bits=16)
    found = make(dataset, model, Variant())
    with torch.inference_mode():
        want = model.module.encode(torch.from_numpy(numbers).float() / 32767.5 - 1).mean  # type: ignore[operator]
    assert torch.allclose(found[:, :4].float(), want, atol=2e-3, rtol=2e-3)
    with pytest.raises(UserError, match=r"6 of the 6 pictures .* cannot become the 3 channels"):
        next(encode(dataset, autoencoder(), CPU))


def test_a_scale_that_does_not_fit_is_said() -> None:
    here = LatentScale(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    assert scale_note(here, here) is None
    assert scale_note(LatentScale(torch.tensor([0.9, -0.9]), torch.tensor([1.9, 1.1])), here) is None
    note = scale_note(LatentScale(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 5.49])), here)
    assert note is not None
    assert "channel 1: mean 1 and std 5.49 there, 1 and 2 here" in note
    assert "channel 0" in str(
        scale_note(LatentScale(torch.tensor([1.5, 1.0]), torch.tensor([1.0, 2.0])), here)
    )
    assert scale_note(LatentScale(torch.zeros(2), torch.tensor([0.4, 2.0])), here)


ENCODE = """
import sys, time
from carrara.dataset import derived as derive, latents
latents.PIXELS = 2 * 16 * 16
old = derive._Staging.add
def slowly(self, file, values):
    old(self, file, values)
    print(self.done, flush=True)
    time.sleep({pause})
derive._Staging.add = slowly
sys.argv = ["carrara", "data", "encode", {dataset!r}, "--with", {model!r}, "--flip"]
from carrara.cli.app import main
main()
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_the_command(
    oblong: Dataset, tmp_path: Path, start_python: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    """kill -9 in either variant, and again; then the bytes of an undisturbed one, and nothing computed twice."""
    model, copy = autoencoder(), tmp_path / "copy"
    model.save(tmp_path / "model")
    shutil.copytree(oblong.path, copy)

    def start(dataset: Path, pause: float = 0.0) -> "subprocess.Popen[bytes]":
        return start_python(ENCODE.format(dataset=str(dataset), model=str(tmp_path / "model"), pause=pause))

    for batches in (3, 5, 11):
        process = start(oblong.path, 0.05)
        assert process.stdout is not None
        lines = 0
        while lines < batches:
            line = process.stdout.readline()
            assert line, "it ended before it was killed"
            if line.strip().isdigit():
                lines += 1
        process.send_signal(signal.SIGKILL)
        assert process.wait(200) == -signal.SIGKILL
        oblong.refresh()
        assert encoded(oblong, model, variants(True, 1)) is None
    out, _ = start(oblong.path).communicate(timeout=200)
    again = [int(line) for line in out.split(b"\n") if line.strip().isdigit()]
    whole = [*range(2, 23, 2), 23] * 2
    assert 0 < len(again) < 8
    assert whole[-len(again) :] == again  # it went on where it was
    out, _ = start(copy).communicate(timeout=200)
    assert [int(line) for line in out.split(b"\n") if line.strip().isdigit()] == whole
    oblong.refresh()
    undisturbed = Dataset.open(copy)
    columns = encoded(oblong, model, variants(True, 1))
    assert columns is not None
    assert encoded(undisturbed, model, variants(True, 1)) == columns
    assert oblong.arrow(columns).equals(undisturbed.arrow(columns))
    assert not list((oblong.path / "derive.partial").iterdir())
