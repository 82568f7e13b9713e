"""Pictures of 16 bits and of any number of channels keep every number on their way to a tensor."""

import io
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from carrara.dataset.channels import channel_counts, check_channels
from carrara.dataset.dataset import Dataset
from carrara.dataset.loader import Reading, load
from carrara.errors import BadPicture, UserError
from carrara.images import planes, tiff
from carrara.images.channels import bits_of, can_become, channels_of
from carrara.images.decode import decode, examine, look, pixels, stack, whole
from carrara.importing.importing import import_pictures

Numbers = npt.NDArray[np.uint16]
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
MODES = {1: "I;16", 2: "LA;16", 3: "RGB;16", 4: "RGBA;16"}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(numbers: Numbers, more: bytes = b"") -> bytes:
    """A PNG of 16 bits ``[h w c]`` (Pillow writes none in colour), every row with another of the five filters."""
    height, width, channels = numbers.shape
    step = 2 * channels
    rows = np.frombuffer(numbers.astype(">u2").tobytes(), np.uint8).reshape(height, width * step).astype(int)
    above, out = np.zeros(width * step, int), b""
    for y, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, int), row[:-step]])
        corner = np.concatenate([np.zeros(step, int), above[:-step]])
        far = [abs(left + above - corner - n) for n in (left, above, corner)]
        paeth = np.where(
            (far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], above, corner)
        )
        guess = [0 * row, left, above, (left + above) // 2, paeth][y % 5]
        out += bytes([y % 5]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = row
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(out)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff16(numbers: Numbers, order: str = "<", *, packed: bool = False, turn: int = 1) -> bytes:
    """A TIFF of 16-bit colour ``[h w 3 or 4]`` (Pillow writes none), in either byte order."""
    height, width, channels = numbers.shape
    data = numbers.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if packed else data
    tags = {256: width, 257: height, 259: 8 if packed else 1, 262: 2, 274: turn, 277: channels, 278: height}
    tags |= {279: len(data), 284: 1} | ({338: 2} if channels == 4 else {})
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags |= {258: start, 273: start + 2 * channels}
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 3, channels, value)
        if tag == 258
        else struct.pack(f"{order}HHII", tag, 4, 1, value)
        for tag, value in sorted(tags.items())
    )
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    return head + entries + struct.pack(f"{order}I", 0) + bits + data


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pages(numbers: npt.NDArray[np.generic], **options: object) -> bytes:
    """A TIFF with a page for each of ``[n h w]`` or ``[n h w 3]``."""
    first, *rest = [Image.fromarray(page) for page in numbers]
    return saved(first, "TIFF", save_all=True, append_images=rest, **options)


def noise(*shape: int, seed: int = 0) -> Numbers:
    return np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)


def numbers_of(picture: torch.Tensor) -> Numbers:
    """``[c h w]`` as ``[h w c]``."""
    assert picture.dtype == torch.uint16
    found: Numbers = picture.numpy().transpose(1, 2, 0)
    return found


SPAN = (0.0, 65535.0)
RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("how", ["png", "tiff", "tiff lzw", "tiff >", "tiff 32 bits", "tiff float"])
def test_a_ramp_of_every_number_survives(how: str) -> None:
    data = {
        "png": lambda: saved(Image.fromarray(RAMP), "PNG"),
        "tiff": lambda: saved(Image.fromarray(RAMP), "TIFF"),
        "tiff lzw": lambda: saved(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
        "tiff >": lambda: saved(Image.frombytes("I;16B", (256, 256), RAMP.astype(">u2").tobytes()), "TIFF"),
        "tiff 32 bits": lambda: saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
        "tiff float": lambda: saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    }[how]()
    assert np.array_equal(numbers_of(pixels(data, 256, 1, bits=16, span=SPAN))[..., 0], RAMP)
    colour = numbers_of(pixels(data, 256, 3, bits=16, span=SPAN))
    assert np.array_equal(colour, np.repeat(RAMP[..., None], 3, -1))
    assert np.array_equal(pixels(data, 256, 1, span=SPAN)[0].numpy(), np.rint(RAMP / 257))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_of_any_png(channels: int) -> None:
    numbers = noise(16, 16, channels)
    data = png16(numbers)
    assert examine(data) == (16, 16, MODES[channels])
    assert np.array_equal(numbers_of(pixels(data, 16, channels, bits=16)), numbers)
    # Pillow itself keeps the high bytes: another reading of the same file.
    if channels > 2:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), numbers >> 8)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_a_colour_tiff(channels: int, packed: bool, order: str) -> None:
    numbers = noise(12, 12, channels)
    data = tiff16(numbers, order, packed=packed)
    assert examine(data) == (12, 12, MODES[channels])
    assert np.array_equal(numbers_of(pixels(data, 12, channels, bits=16)), numbers)


def test_an_interlaced_png_keeps_its_bits() -> None:
    """Adam7 of an 8 x 8 picture, its seven small pictures one after the other."""
    numbers = noise(8, 8, 3)
    passes = [
        (0, 8, 0, 8),
        (0, 8, 4, 8),
        (4, 8, 0, 4),
        (0, 4, 2, 4),
        (2, 4, 0, 2),
        (0, 2, 1, 2),
        (1, 2, 0, 1),
    ]
    rows = [row for y, dy, x, dx in passes for row in numbers[y::dy, x::dx]]
    body = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 1))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    assert np.array_equal(numbers_of(pixels(data, 8, 3, bits=16)), numbers)


def test_eight_bits_become_257_times_their_number(make_png: Callable[..., bytes]) -> None:
    for mode, channels in (("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)):
        data = make_png(3, (9, 9), mode)
        eight, sixteen = pixels(data, 9, channels), pixels(data, 9, channels, bits=16)
        assert eight.dtype == torch.uint8
        assert torch.equal(sixteen.int(), eight.int() * 257), mode
    jpeg = saved(Image.open(io.BytesIO(make_png(3, (64, 64)))), "JPEG")
    assert torch.equal(pixels(jpeg, 64, bits=16).int(), pixels(jpeg, 64).int() * 257)


def test_scaling_never_goes_through_eight_bits() -> None:
    """A ramp within two neighbouring 8-bit numbers, made half as large: still hundreds of numbers."""
    fine = (20000 + np.arange(64 * 64) // 8).astype(np.uint16).reshape(64, 64)
    for data in (saved(Image.fromarray(fine), "PNG"), png16(np.repeat(fine[..., None], 3, -1))):
        half = numbers_of(pixels(data, 32, 3, bits=16)).astype(float)
        assert len(np.unique(half)) > 200
        want = fine.reshape(32, 2, 32, 2).mean((1, 3))
        assert (
            np.abs(half - want[..., None])[2:-2, 2:-2].max() < 3
        )  # LANCZOS is no box, but near one on a ramp


def test_transparency_in_sixteen_bits() -> None:
    numbers = np.array([[[10000, 20000, 30000, 65535], [10000, 20000, 30000, 0]]] * 2, np.uint16)
    data = png16(numbers)
    assert numbers_of(pixels(data, 2, 3, bits=16))[0].tolist() == [[10000, 20000, 30000], [65535] * 3]
    half = numbers // np.array([1, 1, 1, 2], np.uint16)
    assert numbers_of(pixels(png16(half), 2, 3, bits=16))[0, 0].tolist() == [37768, 42768, 47768]
    # What is transparent does not colour its neighbours when it is scaled.
    wide = np.zeros((32, 32, 4), np.uint16)
    wide[:, 16:] = (0, 40000, 0, 65535)
    small = numbers_of(pixels(png16(wide), 8, 4, bits=16)).astype(int)
    covered = small[small[..., 3] > 3000]
    assert len(covered) >= 32
    assert np.abs(covered[:, 1] - 40000).max() < 60
    # One colour that stands for transparency.
    key = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 300))
    plain = np.array([[[1, 2, 300], [1, 2, 301]]] * 2, np.uint16)
    assert numbers_of(pixels(png16(plain, key), 2, 4, bits=16))[0, :, 3].tolist() == [0, 65535]


@pytest.mark.parametrize("turn", range(1, 9))
def test_sixteen_bits_upright(turn: int) -> None:
    """As the same picture in 8 bits, which Pillow turns."""
    exif = Image.Exif()
    exif[0x0112] = turn
    numbers = (noise(10, 14, 3) >> 8) * 257
    shallow = saved(Image.fromarray((numbers >> 8).astype(np.uint8)), "PNG", exif=exif)
    want = pixels(shallow, 8, bits=16)
    tag = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    for data in (
        png16(numbers, tag),
        tiff16(numbers, turn=turn),
        tiff16(numbers, ">", packed=True, turn=turn),
    ):
        assert torch.equal(pixels(data, 8, bits=16), want)
        assert examine(data)[:2] == examine(shallow)[:2]
    grey = saved(Image.fromarray(numbers[..., 0].copy()), "PNG", exif=exif)
    assert torch.equal(pixels(grey, 8, 1, bits=16)[0], want[0])


@pytest.mark.parametrize("channels", [2, 3, 5, 7])
def test_a_stack_of_pages_is_a_picture_of_so_many_channels(channels: int) -> None:
    numbers = noise(channels, 12, 12)
    data = pages(numbers)
    assert examine(data) == (12, 12, f"I;16 x {channels}")
    assert np.array_equal(pixels(data, 12, channels, bits=16).numpy(), numbers)
    assert np.array_equal(pixels(data, 12, channels).numpy(), np.rint(numbers / 257))
    shallow = pages((numbers >> 8).astype(np.uint8))
    assert np.array_equal(pixels(shallow, 12, channels).numpy(), numbers >> 8)
    assert pixels(data, 5, channels, bits=16).shape == (channels, 5, 5)
    assert np.array_equal(whole(data, channels, bits=16).numpy(), numbers)
    assert torch.equal(whole(data, channels), pixels(data, 12, channels))
    with pytest.raises(BadPicture, match=rf"has {channels} channels; the recipe asks for 4"):
        pixels(data, 12, 4)


def test_pages_in_colour_are_channels_only_where_they_are_asked_for() -> None:
    numbers = noise(2, 6, 6, 3).astype(np.uint8)
    data = pages(numbers)
    six = pixels(data, 6, 6).numpy()
    assert np.array_equal(six, numbers.transpose(0, 3, 1, 2).reshape(6, 6, 6))
    assert np.array_equal(pixels(data, 6, 3).numpy(), numbers[0].transpose(2, 0, 1))  # the first page
    with pytest.raises(BadPicture, match="has 6 channels; the recipe asks for 5"):
        pixels(data, 6, 5)


def test_pages_of_other_sizes_are_no_channels() -> None:
    """A smaller copy that lies behind a picture."""
    one = Image.fromarray(noise(12, 12))
    data = saved(one, "TIFF", save_all=True, append_images=[Image.fromarray(noise(6, 6))])
    assert examine(data) == (12, 12, "I;16")
    assert pixels(data, 12, 1, bits=16).shape == (1, 12, 12)


def test_float_pages_share_their_range() -> None:
    values = np.stack([np.full((4, 4), 0.5), np.full((4, 4), 200.0)]).astype(np.float32)
    assert pixels(pages(values), 4, 2, span=(0, 255))[:, 0, 0].tolist() == [0, 200]
    values[1, 0, 0] = np.nan
    with pytest.raises(BadPicture, match="finite"):
        pixels(pages(values), 4, 2, span=(0, 255))


@pytest.mark.parametrize("crop", ["start", "centre", "end"])
def test_squares_along_the_long_side(crop: str) -> None:
    """A picture of three thirds, lying and standing, in 8 and in 16 bits: each crop is its third."""
    thirds = np.repeat(np.array([1000, 30000, 60000], np.uint16), 8)[None].repeat(8, 0)
    want = {"start": 1000, "centre": 30000, "end": 60000}[crop]
    for picture in (thirds, thirds.T.copy()):
        found = pixels(saved(Image.fromarray(picture), "PNG"), 8, 1, bits=16, crop=crop)  # type: ignore[arg-type]
        assert found.unique().tolist() == [want]
        eight = saved(Image.fromarray((picture >> 8).astype(np.uint8)), "PNG")
        assert pixels(eight, 8, 1, crop=crop).unique().tolist() == [want >> 8]  # type: ignore[arg-type]


def test_damaged_deep_pictures_are_refused() -> None:
    good = [png16(noise(32, 32, c)) for c in (1, 2, 3, 4)]
    good += [tiff16(noise(32, 32, 3)), tiff16(noise(32, 32, 3), packed=True), pages(noise(5, 32, 32))]
    draw = random.Random(0)
    refused = 0
    for data, channels in zip(good, (1, 2, 3, 4, 3, 3, 5), strict=True):
        pixels(data, 32, channels, bits=16)
        for share in (0.05, 0.4, 0.9):
            with pytest.raises(BadPicture):
                pixels(data[: int(len(data) * share)], 32, channels, bits=16)
            with pytest.raises(BadPicture):
                examine(data[: int(len(data) * share)])
        for _ in range(40):
            broken = bytearray(data)
            for _ in range(draw.randint(1, 6)):
                broken[draw.randrange(min(len(broken), 400))] = draw.randrange(256)
            try:
                assert pixels(bytes(broken), 32, channels, bits=16).shape == (channels, 32, 32)
            except BadPicture as error:
                refused += "\n" not in str(error)
    assert refused > 100


def test_too_many_pages_or_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pages(noise(9, 6, 6))
    monkeypatch.setattr("carrara.images.tiff.MAX_PAGES", 8)
    with pytest.raises(BadPicture, match="more than 8 pages"):
        examine(data)
    monkeypatch.setattr("carrara.images.tiff.MAX_PAGES", 9)
    monkeypatch.setattr("carrara.images.planes.MAX_VALUES", 9 * 36 - 1)
    with pytest.raises(BadPicture, match="9 pages of 6 x 6"):
        examine(data)
    monkeypatch.setattr("carrara.images.planes.MAX_VALUES", 107)
    with pytest.raises(BadPicture, match="6 x 6 in RGB;16 are more than 107 numbers"):
        examine(png16(noise(6, 6, 3)))
    assert examine(png16(noise(6, 5, 3))) == (5, 6, "RGB;16")


@pytest.mark.parametrize("kind", ["float", "32 bits", "16 bits", "8 bits", "colour", "PNG", "grey"])
def test_the_memory_of_large_pictures(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the limit on numbers counts on: pages stay as they are, floats are a few rows at a time."""
    monkeypatch.setattr("carrara.images.planes._BLOCK", 1 << 12, raising=False)
    numbers = noise(6, 256, 256)
    make: dict[str, Callable[[], bytes]] = {
        "float": lambda: pages(numbers.astype(np.float32)),
        "32 bits": lambda: pages(numbers.astype(np.int32)),
        "16 bits": lambda: pages(numbers),
        "8 bits": lambda: pages((numbers >> 8).astype(np.uint8)),
        "colour": lambda: pages((np.stack([numbers, numbers, numbers], -1) >> 8).astype(np.uint8)),
        "PNG": lambda: png16(noise(256, 256, 3)),
        "grey": lambda: saved(Image.fromarray(noise(512, 512).astype(np.int32)), "TIFF"),
    }
    data, channels = make[kind](), {"colour": 18, "PNG": 3, "grey": 1}.get(kind, 6)
    count = {"grey": 512 * 512}.get(kind, channels * 256 * 256)
    looks: list[Callable[[], object]] = [
        lambda: look(data, SPAN),
        lambda: pixels(data, 64, channels, span=SPAN),
        lambda: whole(data, channels, bits=16, span=SPAN),
        lambda: whole(data, channels, span=SPAN),
    ]
    for once in looks:
        once()
        tracemalloc.start()
        try:
            once()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (
            peak < 8 * count
        )  # a page of floats for resizing is 4 bytes a pixel more than the 6 of the stack


def test_large_pictures_are_read_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    running, together = [], []
    really = tiff.Tiff.numbers

    def slowly(picture: tiff.Tiff, page: int = 0) -> npt.NDArray[np.generic]:
        running.append(1)
        together.append(len(running))
        time.sleep(0.02)
        running.pop()
        return really(picture, page)

    monkeypatch.setattr(tiff.Tiff, "numbers", slowly)
    data = pages(noise(2, 8, 8))
    for limit, alone in ((127, True), (128, False)):
        monkeypatch.setattr(planes, "_LARGE", limit)
        together.clear()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(examine, [data] * 8))
        assert (max(together) == 1) == alone


def test_a_stack_in_sixteen_bits() -> None:
    assert stack([], 8, 5, bits=16).dtype == torch.uint16
    both = stack([pages(noise(5, 8, 8)), pages(noise(5, 9, 9))], 8, 5, bits=16)
    assert (both.shape, both.dtype) == ((2, 5, 8, 8), torch.uint16)
    assert decode(pages(noise(5, 8, 8))).size == (8, 8)  # to look at: the first page


@pytest.mark.parametrize(
    ("mode", "channels", "bits"),
    [
        ("1", 1, 8),
        ("L", 1, 8),
        ("I;16B", 1, 16),
        ("I", 1, 16),
        ("F", 1, 16),
        ("LA", 2, 8),
        ("LA;16", 2, 16),
        ("P", 3, 8),
        ("CMYK", 3, 8),
        ("RGB;16", 3, 16),
        ("PA", 4, 8),
        ("RGBA;16", 4, 16),
        ("L x 5", 5, 8),
        ("I;16 x 7", 7, 16),
        ("RGB;16 x 2", 6, 16),
        ("RGBX;16", 4, 16),
        ("LX", 2, 8),
        ("RGB;32", 3, 16),
    ],
)
def test_channels_and_bits_by_mode(mode: str, channels: int, bits: int) -> None:
    assert (channels_of(mode), bits_of(mode)) == (channels, bits)
    assert can_become(mode, channels)
    assert can_become(mode, 3) == (" x " not in mode or mode.startswith("RGB"))
    assert not can_become(mode, 9)


def gather(folder: Path, files: dict[str, bytes]) -> Dataset:
    (folder / "source").mkdir()
    for name, data in files.items():
        (folder / "source" / name).write_bytes(data)
    list(import_pictures(folder / "source", folder / "data"))
    return Dataset.open(folder / "data")


def test_a_mixed_set_that_can_be_converted(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    files = {f"c{k}.png": make_png(k) for k in range(4)} | {"g.png": make_png(9, mode="L")}
    files |= {"a.png": make_png(10, mode="RGBA"), "d.png": png16(noise(9, 9, 3))}
    dataset = gather(tmp_path, files)
    assert channel_counts(dataset) == {1: 1, 3: 5, 4: 1}
    fine = "1 of 7 pictures have 16 bits: they become 8, their finer steps are lost (bits = 16 keeps them)"
    assert check_channels(dataset, 3) == f"1 of 7 pictures are grey: they become 3 channels; {fine}"
    assert check_channels(dataset, 1) == f"6 of 7 pictures are in colour: they become grey; {fine}"
    assert "6 of 7 pictures have no transparency: they become opaque" in str(check_channels(dataset, 4))
    assert "6 of 7 pictures have 8 bits: they become 16" in str(check_channels(dataset, 3, 16))
    with pytest.raises(
        UserError,
        match=r"7 of the 7 pictures .* cannot become the 5 channels .*: 1 with 1, 5 with 3, 1 with 4",
    ):
        check_channels(dataset, 5)


def test_a_palette_may_be_transparent_and_is_not_called_opaque(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=1)
    dataset = gather(tmp_path, {"p.png": buffer.getvalue()})
    assert dataset.column("mode") == ["P"]
    assert check_channels(dataset, 4) is None
    assert dataset.pictures([0], 4, 4)[0, 3].max() == 0


def test_a_set_of_stacks(tmp_path: Path) -> None:
    dataset = gather(tmp_path, {f"{k}.tif": pages(noise(5, 9, 9, seed=k)) for k in range(6)})
    assert channel_counts(dataset) == {5: 6}
    assert check_channels(dataset, 5, 16) is None
    reader = load(dataset, Reading(["image"], size=9, channels=5, bits=16), batch=4, seed=0)
    seen = [next(reader) for _ in range(3)]  # two epochs: the second comes from memory
    reader.close()
    for batch in seen:
        found = batch.columns["image"]
        assert torch.equal(torch.as_tensor(found), dataset.pictures(batch.rows, 9, 5, bits=16))
    (tmp_path / "source" / "three.tif").write_bytes(pages(noise(3, 9, 9)))
    list(import_pictures(tmp_path / "source", dataset.path))
    dataset.refresh()
    with pytest.raises(UserError, match=r"^1 of the 7 pictures .* cannot become the 5 channels") as caught:
        check_channels(dataset, 5, 16)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        UserError, match=r"picture 'three\.tif' cannot be used: has 3 channels; .* asks for 5"
    ):
        dataset.pictures(range(7), 9, 5, bits=16)
