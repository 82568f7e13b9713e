"""TIFF of any bits, sign, meaning, planes and extra samples is read as its tags say, or refused in one line."""

import io
import random
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from carrara.errors import BadPicture
from carrara.images.decode import class_ids, examine, look, pixels, whole

Values = npt.NDArray[Any]
BASE = {"miniswhite": 1, "minisblack": 1, "rgb": 3, "separated": 4}
MEANING = {"miniswhite": 0, "minisblack": 1, "rgb": 2, "separated": 5}
EXTRA = {"unspecified": 0, "assocalpha": 1, "unassalpha": 2}


def written(values: Values, photometric: str, bits: int | None = None, **options: Any) -> bytes:
    """A TIFF of ``[h w samples]``."""
    file = io.BytesIO()
    planar = "separate" if options.pop("planes", False) else "contig"
    if values.shape[-1] == 1:
        values, planar = values[..., 0], None  # type: ignore[assignment]
    elif planar == "separate":
        values = np.moveaxis(values, -1, 0)
    options |= {"bitspersample": bits} if bits else {}
    tifffile.imwrite(file, values, photometric=photometric, planarconfig=planar, metadata=None, **options)
    return file.getvalue()


def by_hand(
    values: Values, bits: int, photometric: int, extra: tuple[int, ...] = (), order: str = "<"
) -> bytes:
    """A TIFF of whole numbers ``[h w samples]`` packed bit by bit, as `tifffile` writes none."""
    height, width, samples = values.shape
    numbers = values.reshape(height, -1).astype(np.uint64)
    places = np.arange(bits - 1, -1, -1, dtype=np.uint64)
    every = ((numbers[..., None] >> places) & np.uint64(1)).astype(np.uint8)
    data = np.packbits(every.reshape(height, -1), axis=1).tobytes()
    if bits in (16, 32):
        data = numbers.astype(f"{order}u{bits // 8}").tobytes()
    start = 8 + 2 + 12 * 10 + 4
    more = struct.pack(f"{order}{samples}H", *[bits] * samples).ljust(16, b"\0")
    more += struct.pack(f"{order}{len(extra)}H", *extra).ljust(16, b"\0")
    one = {256: width, 257: height, 259: 1, 262: photometric, 273: start + 32, 277: samples, 278: height}
    entries = [(tag, 4, 1, struct.pack(f"{order}I", value)) for tag, value in one.items()]
    entries += [(279, 4, 1, struct.pack(f"{order}I", len(data)))]
    short = [(258, [bits] * samples, start), (338, list(extra), start + 16)]
    for tag, found, place in short:
        packed = struct.pack(f"{order}{len(found)}H", *found)
        entries += [(tag, 3, len(found), packed if len(packed) <= 4 else struct.pack(f"{order}I", place))]
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries))
    table = b"".join(
        struct.pack(f"{order}HHI", t, k, n) + v.ljust(4, b"\0") for t, k, n, v in sorted(entries)
    )
    return head + table + struct.pack(f"{order}I", 0) + more + data


def shown(values: Values, photometric: str, extra: str | None, white: float) -> Values:
    """What one should see, ``[h w 3 or 4]`` in 0 … 1, computed apart from the code."""
    share = values.astype(np.float64) / white
    if photometric == "miniswhite":
        share[..., 0] = 1 - share[..., 0]
    base = BASE[photometric]
    colour, rest = share[..., :base], share[..., base:]
    if photometric == "separated":
        colour = (1 - colour[..., :3]) * (1 - colour[..., 3:])
    if extra == "assocalpha":
        colour = np.where(rest > 0, np.minimum(1, colour / np.maximum(rest, 1e-30)), 0)
    colour = np.repeat(colour, 3, -1) if base == 1 else colour
    return np.concatenate([colour, rest], -1) if extra in ("assocalpha", "unassalpha") else colour


def drawn(kind: str, samples: int, extra: str | None, colours: int) -> tuple[Values, float]:
    """Random numbers of a numpy type (premultiplied ones at most as large as their alpha), and the type's white."""
    generator = np.random.default_rng(0)
    dtype = np.dtype(kind)
    white = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
    values = (generator.random((6, 7, samples)) * white).astype(dtype)
    if extra == "assocalpha":
        values[..., :colours] = np.minimum(values[..., :colours], values[..., colours:])
    return values, white


@pytest.mark.parametrize("extra", [None, "unspecified", "assocalpha", "unassalpha"])
@pytest.mark.parametrize("photometric", list(BASE))
@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"])
def test_every_kind_of_number_and_meaning(kind: str, photometric: str, extra: str | None) -> None:
    base = BASE[photometric]
    values, white = drawn(kind, base + (extra is not None), extra, base)
    for planes in (False, True):
        for order, compression in (("<", None), (">", "zlib")):
            options = {"extrasamples": [EXTRA[extra]]} if extra else {}
            data = written(
                values, photometric, byteorder=order, compression=compression, planes=planes, **options
            )
            if photometric == "separated" and extra == "unspecified":
                with pytest.raises(BadPicture, match="inks"):
                    whole(data)
                continue
            want = shown(values, photometric, extra, white) * 65535
            found = whole(data, want.shape[-1], bits=16).numpy().transpose(1, 2, 0)
            # Pillow takes alpha out of, and ink off, everyday pictures in whole numbers of 8 bits.
            rough = kind == "u1" and (extra == "assocalpha" or photometric == "separated")
            assert np.abs(found - want).max() <= (400 if rough else 2)
            eight = whole(data, want.shape[-1]).numpy().transpose(1, 2, 0)
            assert np.abs(eight - want / 257).max() <= (2 if rough else 0.51)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 20, 31, 32])
def test_every_number_of_bits(bits: int, order: str) -> None:
    """12 bits are as bright as 16: their white is their largest number."""
    top = 2**bits - 1
    for photometric, samples in ((0, 1), (1, 1), (2, 3)):
        values = np.random.default_rng(1).integers(0, top, (5, 9, samples), endpoint=True)
        values[0, 0], values[0, 1] = 0, top
        data = by_hand(values, bits, photometric, order=order)
        want = values / top
        want = np.repeat(1 - want if photometric == 0 else want, 3 // samples, -1)
        found = whole(data, 3, bits=16).numpy().transpose(1, 2, 0)
        assert np.abs(found - want * 65535).max() <= 1


@pytest.mark.parametrize("photometric", [1, 2])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_samples_of_no_colour_are_numbers_of_their_own(kind: str, photometric: int) -> None:
    """Near infrared beside colour: all four where four are asked for, the colours where three are; of more, all."""
    name = ["minisblack", "rgb"][photometric - 1]
    for extras in (1, 2):
        values, white = drawn(kind, BASE[name] + extras, None, 0)
        data = written(values, name, extrasamples=[0] * extras)
        every = whole(data, values.shape[-1], bits=16).numpy().transpose(1, 2, 0)
        assert np.abs(every - values / white * 65535).max() <= 1
        assert pixels(data, 4, values.shape[-1]).shape == (values.shape[-1], 4, 4)
        if extras == 1:
            colour = whole(data, 3, bits=16).numpy().transpose(1, 2, 0)
            assert np.abs(colour - shown(values[..., :-1], name, None, white) * 65535).max() <= 1
    with pytest.raises(BadPicture, match=f"has {values.shape[-1]} channels; the recipe asks for 4"):
        whole(data, 4)
    assert examine(data)[2] == {"u1": "L", "u2": "I;16", "f4": "F"}[kind] + f" x {values.shape[-1]}"


def test_palettes_of_eight_and_sixteen_bits() -> None:
    for bits in (8, 16):
        table = np.random.default_rng(2).integers(0, 65536, (3, 2**bits)).astype(np.uint16)
        ids = np.random.default_rng(3).integers(0, 2**bits, (6, 6)).astype(f"u{bits // 8}")
        data = written(ids[..., None], "palette", colormap=table)
        found = whole(data, 3, bits=16).numpy().astype(int)
        assert np.abs(found - table[:, ids]).max() <= (257 if bits == 8 else 0)
        assert np.array_equal(class_ids(data), ids)


@pytest.mark.parametrize("kind", ["f4", "i2", "i4", "u4"])
def test_numbers_without_a_usual_range(kind: str) -> None:
    """They are read by their kind or by the data set's range, never by what a picture happens to hold."""
    half = {"f4": 0.5, "i2": 16384, "i4": 2**30, "u4": 2**31}[kind]
    beyond = {"f4": 1.004, "i2": -5, "i4": -1, "u4": None}[kind]
    values = np.full((5, 5, 1), half, kind)
    assert whole(written(values, "minisblack"), 1).unique().tolist() == [128]
    if beyond is not None:
        values[0, 0] = beyond
        with pytest.raises(BadPicture, match=r"holds numbers from .*--range LOW\.\.HIGH"):
            whole(written(values, "minisblack"), 1)
    data, span = written(values, "minisblack"), (-half, 3 * half)
    assert whole(data, 1, span=span)[0, 2, 2] == 128
    assert look(data, span).notes == ()
    (note,) = look(data, (0, half / 2)).notes
    assert "are clipped to 0 …" in note
    small = np.full((5, 5, 1), 100, "u4")
    for meaning in ("minisblack", "miniswhite"):
        with pytest.raises(BadPicture, match="from 100 to 100"):  # it would be of one black, or white
            whole(written(small, meaning), 1)
    assert whole(written(small, "minisblack"), 1, span=(0, 200))[0, 0, 0] == 128


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({262: 8}, r"CIE L\*a\*b\*"),
        ({262: 32803}, "camera"),
        ({262: 999}, "colours of kind 999"),
        ({258: 24}, "24 bits"),
        ({258: 70}, "70 bits"),
        ({259: 34712}, "compression"),
        ({277: 0}, "0 samples"),
        ({256: 2**31}, "pixels"),
    ],
)
def test_what_is_not_read_is_named(tags: dict[int, int], reason: str) -> None:
    data = bytearray(by_hand(np.zeros((4, 4, 1), int), 16, 1))
    for at in range(10, 10 + 12 * 10, 12):
        (tag,) = struct.unpack("<H", data[at : at + 2])
        if tag in tags:
            data[at + 8 : at + 12] = struct.pack("<I", tags[tag])
    with pytest.raises(BadPicture, match=reason):
        examine(bytes(data))


def test_a_tile_larger_than_memory_is_refused_before_it_is_made() -> None:
    data = written(np.zeros((32, 32, 1), np.uint16), "minisblack", tile=(16, 16))
    huge = data.replace(struct.pack("<HHII", 322, 4, 1, 16), struct.pack("<HHII", 322, 4, 1, 2**31 - 16))
    assert huge != data
    with pytest.raises(BadPicture, match=r"tiles|missing"):
        examine(huge)


def test_damaged_tags_never_take_a_default() -> None:
    """A tag that cannot be read would otherwise be left out: three samples become one, packed ones plain."""
    draw = random.Random(0)
    values = drawn("u2", 3, None, 3)[0]
    good = written(values, "rgb", compression="lzw")
    want = whole(good, 3, bits=16)
    for _ in range(100):
        data = bytearray(good)
        at = 10 + 12 * draw.randrange(12)
        data[at + draw.choice([2, 3, 4, 5, 6, 7])] = draw.randrange(256)  # its type and its count
        with suppress(BadPicture):
            assert whole(bytes(data), 3, bits=16).equal(want)


def test_maps_keep_the_numbers_of_the_file() -> None:
    ids = np.random.default_rng(4).integers(0, 4, (6, 6, 1))
    for bits in (2, 4, 8, 12, 16):
        assert np.array_equal(class_ids(by_hand(ids, bits, 1)), ids[..., 0])
    with pytest.raises(BadPicture, match="whose zero is white"):
        class_ids(by_hand(ids, 8, 0))
    inside = by_hand(ids % 2, 1, 0)  # of one bit, white is inside whatever number it has
    assert np.array_equal(class_ids(inside), 1 - ids[..., 0] % 2)
    with pytest.raises(BadPicture, match="2 pages; expected one number a pixel"):
        class_ids(written(np.zeros((2, 8, 8, 1), np.uint8), "minisblack"))
    with pytest.raises(BadPicture, match="JPEG changes numbers"):
        class_ids(written(np.zeros((16, 16, 1), np.uint8), "minisblack", compression="jpeg"))
