"""What a file says of its colours is followed in every format that can say it, or noted."""

import io
import struct
import zlib
from collections.abc import Callable, Sequence

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from carrara.images.decode import decode, look, pixels, whole

D65, SRGB = [0.3127, 0.329, 1.0], [0.64, 0.33, 0.3, 0.6, 0.15, 0.06]
WIDE = [0.68, 0.32, 0.265, 0.69, 0.15, 0.06]  # Display P3
GREY = Image.new("RGB", (48, 48), (55, 55, 55))  # 55/255 of the light is 128 in sRGB
RED = Image.new("RGB", (48, 48), (200, 60, 60))


def profile(primaries: Sequence[float] = SRGB, gamma: float = 1.0, name: str = "") -> bytes:
    """An ICC profile; its description, or one that has "sRGB" in it."""
    found = bytes(imagecodecs.cms_profile("rgb", whitepoint=D65, primaries=list(primaries), gamma=gamma))
    return found.replace("RGB built-in".encode("utf-16-be"), name.ljust(12).encode("utf-16-be"))


def grey_profile(gamma: float) -> bytes:
    return bytes(imagecodecs.cms_profile("gray", whitepoint=D65, gamma=gamma))


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(picture: Image.Image, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with chunks between its header and its pixels."""
    data = saved(picture, "PNG")
    return data[:33] + b"".join(chunk(*one) for one in chunks) + data[33:]


def gamma_chunk(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(gamma * 100000))


def primaries_chunk(primaries: Sequence[float]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(n * 100000) for n in [*D65[:2], *primaries]))


def middle(data: bytes) -> tuple[int, ...]:
    """The colour in the middle, in 8 bits, the same by 16."""
    eight = pixels(data, 8)[:, 4, 4].int()
    sixteen = pixels(data, 8, bits=16).int()[:, 4, 4] / 257
    assert (eight - sixteen).abs().max() <= 1
    return tuple(eight.tolist())


FORMATS: list[tuple[str, dict[str, object]]] = [
    ("PNG", {}),
    ("JPEG", {"quality": 100}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("AVIF", {"quality": 100}),
]


@pytest.mark.parametrize("name", ["Linear sRGB", "sRGB (g10)", "plain"])
@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_a_profile_is_known_by_what_it_does(kind: str, options: dict[str, object], name: str) -> None:
    data = saved(GREY, kind, icc_profile=profile(name=name), **options)
    assert middle(data) == pytest.approx((128, 128, 128), abs=1)
    assert look(data).notes == ()


def test_srgb_under_another_name_changes_nothing() -> None:
    for icc in (
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        imagecodecs.cms_profile("srgb"),
    ):
        named = bytes(icc).replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
        assert middle(saved(RED, "PNG", icc_profile=named)) == (200, 60, 60)


def test_sixteen_bits_are_managed_too() -> None:
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    file = io.BytesIO()
    tifffile.imwrite(file, np.repeat(ramp[..., None], 3, -1), photometric="rgb", iccprofile=profile())
    found = whole(file.getvalue(), 3, bits=16).numpy().astype(float)
    share = ramp / 65535
    light = np.where(share <= 0.0031308, 12.92 * share, 1.055 * share ** (1 / 2.4) - 0.055)
    assert np.abs(found - light * 65535).max() < 40


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_greys_follow_profiles_of_greys_and_of_colour(mode: str) -> None:
    grey = Image.new("L", (16, 16), 55).convert(mode)
    for icc in (grey_profile(1.0), profile()):
        assert decode(saved(grey, "PNG", icc_profile=icc)).getpixel((3, 3)) == pytest.approx(
            (128,) * 3, abs=1
        )
        deep = Image.fromarray(np.full((16, 16), 55 * 257, np.uint16))
        assert middle(saved(deep, "PNG", icc_profile=icc)) == pytest.approx((128,) * 3, abs=1)


def wide_red() -> tuple[int, ...]:
    """RED of wide primaries with sRGB's curve, by the profile's way."""
    return middle(png(RED, (b"cICP", bytes([12, 13, 0, 1]))))


@pytest.mark.parametrize(
    ("chunks", "want"),
    [
        ([gamma_chunk(1.0)], (128, 128, 128)),
        ([gamma_chunk(0.45455)], (55, 55, 55)),  # what means sRGB, as libpng has it
        ([gamma_chunk(0.45455), primaries_chunk(SRGB)], (55, 55, 55)),
        ([gamma_chunk(1.0), (b"sRGB", b"\0")], (55, 55, 55)),  # sRGB goes before gamma
        ([(b"cICP", bytes([1, 8, 0, 1])), (b"sRGB", b"\0")], (128, 128, 128)),  # and this before all
        ([(b"cICP", bytes([1, 13, 0, 1]))], (55, 55, 55)),
        ([(b"iCCP", b"p\0\0" + zlib.compress(profile())), gamma_chunk(0.45455)], (128, 128, 128)),
    ],
)
def test_what_chunks_of_a_png_say(chunks: list[tuple[bytes, bytes]], want: tuple[int, ...]) -> None:
    assert middle(png(GREY, *chunks)) == pytest.approx(want, abs=1)
    assert look(png(GREY, *chunks)).notes == ()


def test_primaries_of_a_png_and_of_codes_are_the_same() -> None:
    red, green, blue = wide_red()
    assert red > 210
    assert green < 58
    for chunks in ([primaries_chunk(WIDE)], [(b"cICP", bytes([12, 2, 0, 1]))]):
        assert middle(png(RED, *chunks)) == pytest.approx((red, green, blue), abs=1)
    data = saved(RED, "AVIF", quality=100)
    at = data.index(b"colrnclx")
    wide = data[: at + 8] + struct.pack(">HH", 12, 13) + data[at + 12 :]
    assert np.abs(np.array(middle(wide)) - (red, green, blue)).max() <= 3


def test_adobe_rgb_as_cameras_say_it() -> None:
    by_profile = middle(
        saved(RED, "PNG", icc_profile=profile([0.64, 0.33, 0.21, 0.71, 0.15, 0.06], 563 / 256))
    )
    assert by_profile[0] > 215
    for space, index in ((2, ""), (0xFFFF, "R03")):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA001] = space
        if index:
            exif.get_ifd(0x8769)[0xA005] = {1: index}
        data = saved(RED, "JPEG", quality=100, subsampling=0, exif=exif)
        assert np.abs(np.array(middle(data)) - by_profile).max() <= 3
    exif.get_ifd(0x8769)[0xA005] = {1: "R98"}
    assert np.abs(np.array(middle(saved(RED, "JPEG", quality=100, exif=exif))) - (200, 60, 60)).max() <= 3


@pytest.mark.parametrize("bits", [8, 16])
def test_tags_of_a_tiff(bits: int) -> None:
    values = np.full((8, 8, 3), 55 * (257 if bits == 16 else 1), f"u{bits // 8}")
    line = np.rint(np.linspace(0, 65535, 2**bits)).astype(int).tolist()
    for tags in ([(301, 3, 2**bits, line, True)], [(301, 3, 3 * 2**bits, line * 3, True)]):
        file = io.BytesIO()
        tifffile.imwrite(file, values, photometric="rgb", extratags=tags)
        assert middle(file.getvalue()) == pytest.approx((128,) * 3, abs=1)
    scale = 257 if bits == 16 else 1
    values[:] = np.array([200, 60, 60]) * scale
    ratios = [part for n in WIDE for part in (round(n * 10000), 10000)]
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="rgb", extratags=[(319, 5, 6, ratios, True)])
    assert np.abs(np.array(middle(file.getvalue())) - wide_red()).max() <= 1


def test_the_space_of_a_bmp() -> None:
    """A header of version 4 with gammas of 1, one of version 5 with a profile."""
    plain = saved(GREY, "BMP")
    rest = plain[54:]
    ends = [0.4124, 0.2126, 0.0193, 0.3576, 0.7152, 0.1192, 0.1805, 0.0722, 0.9505]

    def bmp(size: int, space: bytes, more: bytes, after: bytes = b"") -> bytes:
        header = struct.pack("<I", size) + plain[18:54] + bytes(16) + space + more
        header = header.ljust(size, b"\0")
        start = 14 + size
        body = header + rest + after
        return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, start) + body

    numbers = struct.pack("<9i", *(round(n * 2**30) for n in ends)) + struct.pack("<3I", *[65536] * 3)
    assert middle(bmp(108, bytes(4), numbers)) == pytest.approx((128,) * 3, abs=1)
    assert middle(bmp(108, b"BGRs", numbers)) == (55, 55, 55)
    icc = profile()
    more = bytes(48) + struct.pack("<4I", 0, 124 + len(rest), len(icc), 0)
    assert middle(bmp(124, b"DEBM", more, icc)) == pytest.approx((128,) * 3, abs=1)


def test_the_profile_of_a_gif() -> None:
    data, icc = saved(GREY.quantize(), "GIF"), profile()
    parts = b"".join(bytes([len(icc[k : k + 255])]) + icc[k : k + 255] for k in range(0, len(icc), 255))
    at = data.index(b"\x2c\0\0\0\0")  # before the picture's descriptor
    at = data.index(b"\x21") if b"\x21" in data[:at] else at
    told = data[:at] + b"\x21\xff\x0bICCRGBG1012" + parts + b"\0" + data[at:]
    assert decode(told).getpixel((3, 3)) == pytest.approx((128,) * 3, abs=1)


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (lambda: png(GREY, (b"iCCP", b"p\0\0" + zlib.compress(b"no profile" * 30))), "profile is damaged"),
        (lambda: saved(GREY, "JPEG", icc_profile=grey_profile(1.0)), "for another kind of picture"),
        (lambda: png(GREY, (b"cICP", bytes([9, 16, 0, 1]))), "PQ, of a high dynamic range"),
        (lambda: png(GREY, (b"cICP", bytes([200, 13, 0, 1]))), "codes 200 and 13"),
        (lambda: png(GREY, (b"cICP", bytes([1, 13, 0, 0]))), "narrow range"),
        (lambda: png(GREY, (b"cHRM", bytes(32))), "damaged"),
        (lambda: saved(GREY, "TIFF", tiffinfo={301: (1, 2, 3)}), "transfer function is not for its bits"),
    ],
)
def test_what_cannot_be_followed_is_noted(make: Callable[[], bytes], note: str) -> None:
    data = make()
    (found,) = look(data).notes
    assert note in found
    assert np.abs(np.array(middle(data)) - 55).max() <= 1


def test_numbers_that_are_no_colours_are_left_alone() -> None:
    from carrara.dataset.picture_columns import read

    depth = saved(Image.new("L", (8, 8), 55), "PNG", icc_profile=grey_profile(1.0))
    assert read("depth", depth, 8).unique().tolist() == [55 * 257]
    assert read("normal", png(GREY, gamma_chunk(1.0)), 8).unique().tolist() == [55]
