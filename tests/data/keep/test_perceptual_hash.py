"""A glance survives what copies go through, and tells pictures apart."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from carrara.images.fingerprint import BITS, SIDE, distance, look, one_picture, unpack


def drawing(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Smooth blobs of colour, with low frequencies as photographs have them."""
    chance = np.random.default_rng(seed)
    small = Image.fromarray(chance.integers(0, 256, (7, 9, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def glanced(*pictures: bytes):  # type: ignore[no-untyped-def]
    return unpack(np.stack([look(data) for data in pictures]))


def test_copies_stay_near_and_others_do_not() -> None:
    plain = drawing(0)
    width, height = plain.size
    copies = [
        encoded(plain, "JPEG", quality=40),
        encoded(plain, "WEBP", quality=60),
        encoded(plain.resize((width * 3, height * 3), Image.Resampling.BILINEAR)),
        encoded(plain.resize((width // 2, height // 2), Image.Resampling.BOX)),
        encoded(plain.resize((width, height * 2))),  # stretched
        encoded(ImageEnhance.Brightness(plain).enhance(1.1)),
        encoded(plain.crop((1, 1, width - 1, height - 1))),
    ]
    others = [encoded(drawing(seed)) for seed in range(1, 9)]
    found = glanced(encoded(plain), *copies, *others)
    apart = distance(found.hashes[:1], found.hashes[1:])
    same = one_picture(np.repeat(found.colours[:1], len(apart), 0), found.colours[1:])
    assert (apart[: len(copies)] <= 6).all(), apart
    assert same[: len(copies)].all()
    assert (apart[len(copies) :] > 12).all(), apart
    assert not same[len(copies) :].any()


def test_a_mirror_image_has_the_mirrored_hash() -> None:
    plain = drawing(3)
    found = glanced(encoded(plain), encoded(plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    assert distance(found.mirrored[:1], found.hashes[1:]) <= 1
    assert distance(found.hashes[:1], found.hashes[1:]) > 12
    assert np.abs(found.colours[0, :, ::-1].astype(int) - found.colours[1]).max() <= 2


def test_symmetric_drawings_have_no_chance_in_their_hash() -> None:
    half = drawing(5, (48, 64))
    whole = Image.new("RGB", (96, 64))
    whole.paste(half, (0, 0))
    whole.paste(half.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (48, 0))
    found = glanced(encoded(whole), encoded(whole, "JPEG", quality=30))
    assert distance(found.hashes[:1], found.hashes[1:]) <= 3
    assert distance(found.hashes[:1], found.mirrored[:1]) <= 1


def test_colours_tell_what_the_hash_does_not() -> None:
    heart = drawing(1).convert("L")
    black = Image.new("L", heart.size)
    red, blue = Image.merge("RGB", (heart, black, black)), Image.merge("RGB", (black, black, heart))
    found = glanced(encoded(red), encoded(blue))
    assert distance(found.hashes[:1], found.hashes[1:]) <= 4
    assert not one_picture(found.colours[:1], found.colours[1:]).any()


@pytest.mark.parametrize("colour", [(0, 0, 0), (250, 3, 128)])
def test_flat_pictures_have_no_bits_and_exact_colours(colour: tuple[int, int, int]) -> None:
    found = glanced(encoded(Image.new("RGB", (5, 40), colour)))
    assert found.hashes[0] == found.mirrored[0] == 0
    assert found.colours.shape == (1, SIDE, SIDE, 3)
    assert (found.colours == colour).all()


def test_every_bit_is_stored() -> None:
    """The four words of a hash survive float32: each bit of many pictures is as often set as not."""
    chance = np.random.default_rng(0)
    noise = [Image.fromarray(chance.integers(0, 256, (24, 24, 3), np.uint8)) for _ in range(40)]
    found = glanced(*map(encoded, noise))
    bits = (found.hashes[:, None] >> np.arange(BITS, dtype=np.uint64)) & np.uint64(1)
    assert (bits.mean(0) > 0.1).all()
    assert (bits.mean(0) < 0.9).all()
