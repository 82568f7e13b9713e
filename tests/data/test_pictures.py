"""Any picture decodes to what people see, and anything else is a BadPicture with a reason."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, TiffImagePlugin

from carrara.errors import BadPicture
from carrara.images.decode import decode, examine, look, orientation, resize_and_crop, stack, to_tensor
from carrara.images.header import looks_like_picture


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 16))


GRADIENT = Image.fromarray(np.arange(16 * 8 * 3, dtype=np.uint8).reshape(8, 16, 3))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
def test_every_format_is_read(kind: str) -> None:
    data = encoded(GRADIENT, kind)
    picture = decode(data)
    assert (picture.mode, picture.size) == ("RGB", (16, 8))
    assert looks_like_picture(data[:16])
    # The lossy ones are near, the others exact.
    error = np.abs(np.asarray(picture).astype(int) - np.asarray(GRADIENT).astype(int)).mean()
    assert error == 0 if kind in ("PNG", "BMP", "TIFF") else error < 40


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("source", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16"])
def test_channels_whatever_the_mode_of_the_file(source: str, channels: int, mode: str) -> None:
    kind = "TIFF" if source == "PA" else "PNG"
    picture = Image.new(source, (5, 4)) if source != "PA" else GRADIENT.convert("P").convert("PA")
    picture = decode(encoded(picture, kind), channels=channels)
    assert picture.mode == mode
    assert to_tensor(picture).shape == (channels, *picture.size[::-1])
    assert to_tensor(picture).dtype == torch.uint8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int) -> None:
    """A red corner is brought to where the camera's tag says that it belongs."""
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 8, 8))
    undo = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = upright
    for step in undo:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        data = encoded(stored, kind, exif=exif, **({} if kind in ("PNG", "TIFF") else {"quality": 100}))
        picture = decode(data)
        assert picture.size == (32, 16), kind
        assert examine(data)[:2] == (32, 16)
        red, green, _ = picture.getpixel((3, 3))  # type: ignore[misc]
        assert red > 200 > 60 > green, kind
        assert min(picture.getpixel((28, 12))) > 200, kind  # type: ignore[arg-type]


def test_transparent_is_white_and_half_transparent_is_half_way() -> None:
    picture = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (255, 0, 0, 128))
    picture.putpixel((2, 0), (0, 0, 0, 0))
    data = encoded(picture, "PNG")
    assert [decode(data).getpixel((x, 0)) for x in range(3)] == [
        (255, 0, 0),
        (255, 127, 127),
        (255, 255, 255),
    ]
    assert decode(data, channels=4).getpixel((2, 0)) == (0, 0, 0, 0)
    assert decode(data, channels=1).getpixel((2, 0)) == 255


def test_transparency_of_palettes_and_of_single_colours() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(palette, "PNG", transparency=bytes([255, 0]))).getpixel((1, 0)) == (255, 255, 255)
    assert decode(encoded(palette, "GIF", transparency=0)).getpixel((1, 0)) == (0, 255, 0)
    grey = Image.new("L", (2, 1), 10)
    grey.putpixel((1, 0), 20)
    assert decode(encoded(grey, "PNG", transparency=10)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(grey, "PNG", transparency=10)).getpixel((1, 0)) == (20, 20, 20)
    colour = Image.new("RGB", (1, 1), (1, 2, 3))
    assert decode(encoded(colour, "PNG", transparency=(1, 2, 3))).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled() -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        picture = decode(encoded(Image.fromarray(values), kind), channels=1)
        assert [picture.getpixel((x, 0)) for x in range(4)] == [0, 1, 128, 255]
    deep = Image.fromarray(np.array([[0, 65535 * 32768]], np.int32))
    assert decode(encoded(deep, "TIFF"), channels=1).getpixel((1, 0)) == 255
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert decode(encoded(unit, "TIFF"), channels=1).getpixel((1, 0)) == 128


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(BadPicture, match="finite"):
        decode(encoded(Image.fromarray(np.array([[np.nan, 1.0]], np.float32)), "TIFF"))


def test_cmyk_becomes_colour() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = decode(data).getpixel((4, 4))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 15
    assert examine(data) == (8, 8, "CMYK")


def test_profiles_are_followed_and_damaged_ones_passed_over() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    plain = decode(encoded(GRADIENT, "PNG"))
    for profile in (
        b"not a profile",
        lab,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        assert decode(encoded(GRADIENT, "PNG", icc_profile=profile)).tobytes() == plain.tobytes()


def test_a_wide_profile_changes_the_colours() -> None:
    """The same numbers in a profile whose red and green are exchanged mean other colours."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = {profile[132 + 12 * k : 136 + 12 * k].decode(): 132 + 12 * k for k in range(profile[131])}
    red, green = at["rXYZ"], at["gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = profile[green : green + 4], profile[red : red + 4]
    renamed = bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    data = encoded(Image.new("RGB", (4, 4), (255, 0, 0)), "PNG", icc_profile=renamed)
    r, g, _ = decode(data).getpixel((0, 0))  # type: ignore[misc]
    assert g > 200 > r


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(data).getpixel((1, 1)) == (255, 0, 0)


def test_large_jpegs_come_smaller_when_only_a_small_one_is_needed() -> None:
    ramp = Image.linear_gradient("L").resize((1024, 768)).convert("RGB")
    data = encoded(ramp, "JPEG", quality=95)
    reduced, full = decode(data, short_side=64), decode(data)
    assert full.size == (1024, 768)
    assert 128 <= min(reduced.size) < 768
    small, small_full = (to_tensor(resize_and_crop(p, 64)).float() for p in (reduced, full))
    assert (small - small_full).abs().mean() < 1.0
    # A picture that is hardly larger is not reduced at all.
    assert decode(data, short_side=700).size == (1024, 768)


@pytest.mark.parametrize("size", [(100, 40), (40, 100), (41, 40), (64, 64), (5, 3), (1, 300)])
def test_the_middle_square(size: tuple[int, int]) -> None:
    """Left and right (or top and bottom) halves stay halves, whatever the proportions."""
    picture = Image.new("L", size, 0)
    picture.paste(255, (0, 0, size[0] // 2, size[1]))
    square = to_tensor(resize_and_crop(picture, 32))
    assert square.shape == (1, 32, 32)
    if size[0] % 2 == 0:
        assert square[0, :, :14].min() > 240
        assert square[0, :, 18:].max() < 15


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\0" * 100, "not a picture"),
        (b"hello, I am a text", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x18ftypisom" + b"\0" * 40, "a video"),
        (png_header(60000, 60000), "pixels"),
        (png_header(9500, 9500), "pixels"),  # above the limit, below twice of it, where Pillow only warns
        (png_header(4, 4), "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"%PDF-1.7", "not a picture"),
        (b"P6 4 4 255 " + b"\0" * 48, "not a picture"),  # Pillow reads PPM, the allow-list does not
    ],
)
def test_what_is_no_picture_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        decode(data)


def test_the_limit_of_pixels_does_not_hang_on_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries lift Pillow's limit for the whole program."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadPicture, match="9500 x 9500 is more than"):
        decode(png_header(9500, 9500))


def test_truncated_files_are_refused(make_png: Callable[..., bytes]) -> None:
    noise = make_png(1, (64, 64))
    jpeg = encoded(Image.open(io.BytesIO(noise)), "JPEG", quality=95)
    for data in (noise, jpeg):
        decode(data)
        for share in (0.02, 0.3, 0.6, 0.95):
            with pytest.raises(BadPicture):
                decode(data[: int(len(data) * share)])


def test_damaged_bytes_never_raise_anything_else(make_png: Callable[..., bytes]) -> None:
    """Files with bytes changed at random: each one decodes or is a BadPicture."""
    draw = random.Random(0)
    base = Image.open(io.BytesIO(make_png(3, (24, 24))))
    exif = Image.Exif()
    exif[0x0112] = 6
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "words"
    files = [encoded(base, kind) for kind in ("PNG", "WEBP", "GIF", "BMP", "AVIF")]
    files += [encoded(base, "JPEG", exif=exif), encoded(base, "TIFF", tiffinfo=tags, compression="tiff_lzw")]
    refused = told = 0
    for data in files:
        for _ in range(60):
            broken = bytearray(data)
            for _ in range(draw.randint(1, 6)):
                broken[draw.randrange(len(broken))] = draw.randrange(256)
            try:
                assert decode(bytes(broken)).mode == "RGB"
            except BadPicture as error:
                refused += "\n" not in str(error)
                told += 1
    assert 50 < refused == told < 60 * len(files)


def test_stack_and_wrong_channels(make_png: Callable[..., bytes]) -> None:
    pictures = stack([make_png(1), make_png(2, (30, 20))], 8)
    assert pictures.shape == (2, 3, 8, 8)
    assert not torch.equal(pictures[0], pictures[1])
    assert stack([], 8, 1).shape == (0, 1, 8, 8)
    with pytest.raises(ValueError, match="channels is 5"):
        decode(make_png(1), channels=5)


@pytest.mark.parametrize("kind", ["MPO", "HEIF", "PNG", "WEBP", "GIF", "AVIF"])
def test_only_what_moves_is_animated(kind: str) -> None:
    """Not a photograph in a file that may hold several pictures, nor a film of one frame."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    frames = [GRADIENT, GRADIENT.transpose(Image.Transpose.ROTATE_180)]
    one = encoded(frames[0], kind, save_all=True)
    two = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    moves = kind not in ("MPO", "HEIF")
    assert ["animated" in look(data).flags for data in (one, two)] == [False, moves]
    if kind == "PNG":  # shown where it cannot move, and then one frame
        still = encoded(frames[0], kind, save_all=True, append_images=frames[1:], default_image=True)
        assert "animated" not in look(still).flags


def test_heic_is_read_or_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    picture = Image.new("RGB", (64, 48), (200, 60, 60))
    data = encoded(picture, "HEIF", quality=95)
    assert looks_like_picture(data[:16])
    assert look(data)[:4] == (64, 48, "RGB", ())
    assert np.abs(np.array(decode(data).getpixel((9, 9))) - (200, 60, 60)).max() <= 4
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(BadPicture):
            decode(data[: int(len(data) * share)])
    monkeypatch.setattr("carrara.images.header._reads_heic", lambda: False)
    with pytest.raises(BadPicture, match=r"a HEIC picture: pip install 'carrara\[heic\]'"):
        look(data)


def test_a_png_may_say_behind_its_pixels_how_it_lies(make_png: Callable[..., bytes]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = make_png(1, (12, 10))
    late = data[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[-12:]
    assert look(late)[:2] == decode(late).size == (10, 12)
    assert (orientation(late), orientation(data)) == (6, 1)
