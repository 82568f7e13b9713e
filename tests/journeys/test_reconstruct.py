"""`carrara reconstruct`: a user's picture of any size and depth there and back, and what bad input is answered."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.autoencoders import identity, kl, tiling
from carrara.autoencoders.stored import StoredAutoencoder
from conftest import Command, Trained


def stored(path: Path, channels: int, bits: int = 8, *, pixels: bool = False) -> Path:
    """An autoencoder on disk: pixels as they are, or an untrained network."""
    torch.manual_seed(0)
    config = (
        identity.Config(image_channels=channels)
        if pixels
        else kl.Config(image_channels=channels, channels=8, multipliers=(1, 2), blocks=1)
    )
    StoredAutoencoder.of(config.build(), config, 16, {}, bits).save(path)
    return path


def test_there_and_back_at_its_own_size(carrara: Command, trained: Trained) -> None:
    Image.linear_gradient("L").convert("RGB").resize((77, 45)).save(carrara.folder / "mine.jpg")
    done = carrara("reconstruct", trained.autoencoder, "mine.jpg", "--out", "again.png")
    assert done.status == 0, done.err
    name, quality, latent = done.out.splitlines()
    assert name == "again.png"
    assert quality.endswith("dB PSNR, 77 x 45 pixels")
    assert 3 < float(quality.split()[0]) < 60
    assert (
        latent
        == f"latent 4 x 23 x 39: {77 * 45 * 3 / (4 * 23 * 39):.1f} times fewer numbers than the picture has"
    )
    with Image.open(carrara.folder / "again.png") as again:
        assert again.size == (77, 45)
    tiled = carrara("reconstruct", trained.autoencoder, "mine.jpg", "--out", "tiled.png", "--tile", 40)
    assert tiled.status == 0, tiled.err
    assert tiled.out.splitlines()[-1] == "in 6 tiles of 40 pixels"
    a, b = (np.array(Image.open(carrara.folder / f"{n}.png"), np.float64) for n in ("again", "tiled"))
    assert 10 * np.log10(255**2 / np.square(a - b).mean().clip(1e-9)) > 30


@pytest.mark.parametrize(
    ("channels", "bits", "mode"), [(1, 8, "L"), (2, 8, "LA"), (3, 8, "RGB"), (4, 8, "RGBA"), (1, 16, "I;16")]
)
def test_depths_and_channels(carrara: Command, channels: int, bits: int, mode: str) -> None:
    """Through an autoencoder that changes nothing every number comes back."""
    values = np.random.default_rng(0).integers(0, 2**bits, (19, 23, channels)).astype(f"uint{bits}")
    given = Image.fromarray(values[..., 0] if channels == 1 else values)
    assert given.mode == mode
    given.save(carrara.folder / "mine.png")
    model = stored(carrara.folder / "model", channels, bits, pixels=True)
    done = carrara("reconstruct", model, "mine.png", "--out", "again.png")
    assert done.status == 0, done.err
    assert done.out.splitlines()[1] == "inf dB PSNR, 23 x 19 pixels"
    with Image.open(carrara.folder / "again.png") as again:
        assert again.mode == mode
        assert np.array_equal(np.array(again), np.array(given))


@pytest.mark.parametrize("channels", [2, 3])
def test_what_a_png_does_not_hold_is_said(carrara: Command, channels: int) -> None:
    """Colour of 16 bits: all of them are measured, 8 are written."""
    Image.linear_gradient("L").convert("RGB").resize((20, 18)).save(carrara.folder / "mine.png")
    model = stored(carrara.folder / "model", channels, 16, pixels=True)
    done = carrara("reconstruct", model, "mine.png", "--out", "again.png")
    assert done.status == 0, done.err
    assert (
        done.err
        == f"note: PNGs of {channels} channels are written with 8 bits each; these pictures have 16\n"
    )
    assert done.out.splitlines()[1] == "inf dB PSNR, 20 x 18 pixels"
    with Image.open(carrara.folder / "again.png") as again, Image.open(carrara.folder / "mine.png") as given:
        assert again.mode == {2: "LA", 3: "RGB"}[channels]
        assert np.array_equal(np.array(again.convert("RGB")), np.array(given))


def test_the_tile_asked_for_is_the_tile_taken() -> None:
    torch.manual_seed(0)
    module = kl.Config(channels=8, multipliers=(1, 2), blocks=1).build().eval()
    image = torch.rand(1, 3, 48, 80) * 2 - 1
    tiled = tiling.encode_any_size(module, image, tile=40).mode()
    assert torch.equal(tiled, tiling.encode(module, image, 40, 20).mode())
    assert not torch.equal(tiled, tiling.encode_any_size(module, image).mode())
    again = tiling.decode_any_size(module, tiled, tile=40)
    assert torch.equal(again, tiling.decode(module, tiled, 40, 20))
    assert not torch.equal(again, tiling.decode_any_size(module, tiled))
    large = tiling.tile_for(2000, 30, 2000 * 30 - 1)
    assert (large, tiling.tile_for(2000, 30)) == ((tiling.TILE, tiling.OVERLAP), (2000, tiling.OVERLAP))


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (3, 2)])
def test_the_smallest_pictures(carrara: Command, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "red").save(carrara.folder / "mine.png")
    done = carrara("reconstruct", stored(carrara.folder / "model", 3), "mine.png", "--out", "again.png")
    assert done.status == 0, done.err
    with Image.open(carrara.folder / "again.png") as again:
        assert again.size == size


def test_bad_input_is_one_line_and_leaves_nothing(carrara: Command) -> None:
    model = stored(carrara.folder / "model", 3)
    Image.new("RGB", (20, 20), "red").save(carrara.folder / "mine.png")
    (carrara.folder / "words.png").write_text("no picture")
    many = stored(carrara.folder / "many", 5)
    before = sorted(carrara.folder.iterdir())
    out = ("--out", "again.png")
    assert "there is no model at" in carrara("reconstruct", "modle", "mine.png", *out).refusal
    assert carrara("reconstruct", model, "none.png", *out).refusal.startswith("cannot read none.png: No such")
    assert "cannot read words.png: not a picture" in carrara("reconstruct", model, "words.png", *out).refusal
    assert "ends in .png" in carrara("reconstruct", model, "mine.png", "--out", "again.jpg").refusal
    assert "no folder" in carrara("reconstruct", model, "mine.png", "--out", "far/again.png").refusal
    assert "too small" in carrara("reconstruct", model, "mine.png", *out, "--tile", 1).refusal
    assert "5 channels of 8 bits" in carrara("reconstruct", many, "mine.png", *out).refusal
    assert sorted(carrara.folder.iterdir()) == before
