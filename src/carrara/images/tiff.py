"""TIFF as its tags say: any bits a sample, sign, photometric meaning, planes, extra samples, pages (TIFF 6.0).

`tifffile` reads tags and pixels, `imagecodecs` unpacks them; both allocate what the tags claim, so all sizes are
checked before. Pillow reads the everyday kinds (`Tiff.plain`), and what is packed as JPEG or fax.
"""

from __future__ import annotations

import io
import itertools
import logging
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from carrara.errors import BadPicture

Values = npt.NDArray[Any]
Span = tuple[float, float]  # the numbers that are black and white

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TOP = 65535
MAX_PAGES = 1024
_MAX_SEGMENT = 2**28  # numbers in a tile or strip, which may be larger than the picture
_PACKED = {
    1: "none",
    5: "LZW",
    8: "deflate",
    32946: "deflate",
    32773: "PackBits",
    34925: "LZMA",
    50000: "Zstandard",
}
_FAX = (2, 3, 4, 32771)
_COLOURS = {0: ("L", 1), 1: ("L", 1), 2: ("RGB", 3), 3: ("P", 1), 5: ("CMYK", 4), 6: ("YCbCr", 3)}
_UNREAD = {
    4: "a mask",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a camera's raw",
    34892: "a camera's raw",
}
# What decides how pixels are read: size, bits, packing, meaning, places of strips and tiles, planes, palette, extras.
_DECIDING = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339}
_ASSOCIATED, _UNASSOCIATED = 1, 2
_DIM = 256  # a picture of 32 bits none of whose numbers reaches this part of them would be black in 8 bits

logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("tifffile").propagate = False  # damage that touches no pixel is nobody's concern


class Kind(NamedTuple):
    """What the pages of one picture have in common."""

    width: int
    height: int
    samples: int
    bits: int
    form: int  # 1 unsigned, 2 signed, 3 float
    meaning: int  # the PhotometricInterpretation
    extra: tuple[int, ...]


class Tiff:
    """A TIFF's first page, or all that are alike: ``mode`` as in the table, ``width`` and ``height`` as stored.

    ``span`` is the black and the white of numbers whose kind does not say them (floats, signed ones, more than 16
    bits). BadPicture where the tags make no picture that is read.
    """

    def __init__(self, data: bytes, span: Span | None = None) -> None:
        self.data, self._span, self.note = data, span, ""
        self._file = tifffile.TiffFile(io.BytesIO(data))
        first = self._page(0)
        self.kind = _kind(first)
        self.width, self.height = self.kind.width, self.kind.height
        self.compression = int(first.compression)
        self.orientation = int(self.tag(274, 1))
        self.name, self.colours = _COLOURS[self.kind.meaning]
        # Pillow takes planes for lines where there is one sample.
        self.plain = self._is_usual() and (first.planarconfig == 1 or self.compression not in _PACKED)
        if not self.plain and self.compression not in _PACKED:
            raise BadPicture(
                f"a TIFF of {self._words()} with the compression {_name(self.compression)}; "
                f"expected one of {', '.join(dict.fromkeys(_PACKED.values()))}"
            )
        self.pages = self._alike()
        self.mode = self._mode()

    def tag(self, code: int, default: Any = None) -> Any:
        """The value of a tag of the first page."""
        found = self._page(0).tags.get(code)
        return default if found is None or found.value is None else found.value

    def numbers(self, page: int = 0) -> Values:
        """``[h w samples]`` as they are in the file, before any meaning; BadPicture where some are missing."""
        if self.compression not in _PACKED:
            picture = Image.open(io.BytesIO(self.data), formats=["TIFF"])
            picture.seek(page)
            found = np.asarray(picture)
            return found[..., None] if found.ndim == 2 else found
        read = self._page(page)
        self._check_parts(read)
        stored = read.asarray(maxworkers=1)
        planes, depth, height, width, samples = read.shaped
        found = np.moveaxis(stored.reshape(planes, height, width, samples), 0, -1)
        found = found.reshape(height, width, planes * samples) if depth == 1 else found[:0]
        if found.shape != (self.height, self.width, self.kind.samples):
            raise BadPicture(f"a TIFF whose tags contradict each other ({read.shape} for {self._words()})")
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise BadPicture("holds values that are not finite")
        return found.astype(np.uint8) if found.dtype == bool else found

    def class_numbers(self) -> Values:
        """`numbers` of a map; BadPicture where how they are packed, or what zero means, leaves open which they are."""
        if self.compression not in (*_PACKED, *_FAX):
            raise BadPicture(
                f"a TIFF with the compression {_name(self.compression)} changes numbers; expected PNG"
            )
        if self.kind.meaning == 0 and self.kind.bits > 1:
            raise BadPicture(
                "a TIFF whose zero is white: are its numbers the classes, or their negatives? expected PNG"
            )
        if self.pages > 1:
            raise BadPicture(f"a TIFF of {self.pages} pages; expected one number a pixel")
        found = self.numbers()
        negative = self.kind.meaning == 0 and self.compression in _PACKED
        return 1 - found if negative else found

    def span(self, low: float, high: float) -> Span:
        """What is black and what is white: as the kind says or the data set, of a picture with numbers from ``low`` to
        ``high``. Where these go beyond the data set's, ``note`` says so; BadPicture where they go beyond the kind's, or
        are so small that the picture would be of one black or white."""
        kind = self.kind
        if self.stated:
            return 0.0, self._white
        if self._span is not None:
            black, white = self._span
            if low < black or high > white:
                self.note = f"its numbers from {low:g} to {high:g} are clipped to {black:g} … {white:g}"
            return self._span
        white = self._white
        # Those of a kind whose zero is white may also be so large.
        most = (high, white - low) if kind.meaning == 0 else (high,)
        dim = kind.form < 3 and kind.bits > 16 and any(0 < n < white / _DIM for n in most)
        if low < 0 or high > white or dim:
            raise BadPicture(
                f"holds numbers from {low:g} to {high:g}, out of the range: {self._words()} are read as "
                f"0 … {white:g}; say what is black and white at the import, with --range LOW..HIGH"
            )
        return 0.0, white

    @property
    def stated(self) -> bool:
        """Whether the kind of the numbers says what is black and white: whole ones of 16 bits or fewer."""
        return self.kind.form == 1 and self.kind.bits <= 16

    @property
    def _white(self) -> float:
        return 1.0 if self.kind.form == 3 else 2.0 ** (self.kind.bits - (self.kind.form == 2)) - 1

    def scaled(self, numbers: Values, span: Span) -> Values:
        """``float [h w samples]`` of a block of numbers, 0 … 65535, zero is black."""
        low, high = span
        values = ((numbers.astype(np.float64) - low) * (TOP / (high - low))).clip(0, TOP)
        if self.kind.meaning == 0:
            values[..., 0] = TOP - values[..., 0]
        return values

    def coloured(self, numbers: Values, span: Span) -> Values:
        """`scaled` as grey or colour, with its transparency last if it has any; what else there is is left out."""
        if self.name == "P":
            return self._palette()[numbers[..., 0]].astype(np.float64)
        values = self.scaled(numbers, span)
        colour, rest = values[..., : self.colours], values[..., self.colours :]
        if self.name == "CMYK":
            colour = (TOP - colour[..., :3]) * (1 - colour[..., 3:] / TOP)
        if not self.transparent:
            return colour
        if not self.stated:  # a data set's range is that of its colours
            rest = (numbers[..., self.colours :].astype(np.float64) * (TOP / self._white)).clip(0, TOP)
        if self.kind.extra[0] == _ASSOCIATED:  # the colours were multiplied by it
            colour = np.divide(colour * TOP, rest, out=np.zeros_like(colour), where=rest > 0).clip(0, TOP)
        return np.concatenate([colour, rest], -1)

    @property
    def transparent(self) -> bool:
        """Whether there is one sample beside the colours, and it says how much of them is seen."""
        return len(self.kind.extra) == 1 and self.kind.extra[0] in (_ASSOCIATED, _UNASSOCIATED)

    def _page(self, number: int) -> tifffile.TiffPage:
        page = self._file.pages.get(number, cache=True)
        assert isinstance(page, tifffile.TiffPage)
        if lost := self._entries(page)[0] & _DECIDING - set(page.tags.keys()):
            # tifffile leaves such out, and takes the default for it
            raise BadPicture(f"damaged: the tag {min(lost)} cannot be read")
        return page

    def _entries(self, page: tifffile.TiffPage) -> tuple[set[int], int]:
        """The codes of all tags that a page's directory lists, and where the next directory is (0: nowhere)."""
        form, order = self._file.tiff, self._file.byteorder
        (count,) = struct.unpack_from(form.tagnoformat, self.data, page.offset)
        start = page.offset + form.tagnosize
        codes = {
            struct.unpack_from(f"{order}H", self.data, start + k * form.tagsize)[0] for k in range(count)
        }
        (after,) = struct.unpack_from(form.offsetformat, self.data, start + count * form.tagsize)
        return codes, after

    def _palette(self) -> npt.NDArray[np.uint16]:
        table = np.asarray(self.tag(320, ()), np.uint16)
        if table.size != 3 * 2**self.kind.bits:
            raise BadPicture(f"a TIFF of {self._words()} with a palette of {table.size} numbers")
        return table.reshape(3, -1).T

    def _is_usual(self) -> bool:
        """Whether it is one of the everyday kinds, which Pillow reads right. BadPicture for what nobody means."""
        kind, extra = self.kind, self.kind.extra
        whole = kind.form == 1 and kind.bits in (1, 2, 4, 8)
        eight = kind.form == 1 and kind.bits == 8
        if self.name == "YCbCr" and not (eight and not extra):
            raise BadPicture(f"a TIFF of {self._words()} in YCbCr; expected three of 8 bits a pixel")
        if self.name == "P":
            pixels_and_alpha = eight and extra == (_UNASSOCIATED,) and self._page(0).planarconfig == 1
            if not (whole or (kind.form == 1 and kind.bits == 16)) or (extra and not pixels_and_alpha):
                raise BadPicture(
                    f"a TIFF of {self._words()} as a palette's; expected one of 1, 2, 4, 8 or 16 bits a pixel"
                )
            return whole
        if self.name == "CMYK":
            if self.tag(332, 1) != 1 or (extra and not self.transparent):
                raise BadPicture("a TIFF of other inks than cyan, magenta, yellow and black")
            return eight and not extra
        if self.name == "L":
            return whole and not extra
        return eight and (not extra or self.transparent)

    def _alike(self) -> int:
        """How many pages make the picture: all where they are alike in size and kind, else 1."""
        if self.name not in ("L", "RGB") or self.kind.bits == 1:
            return 1
        for number in itertools.count(1):
            if number > MAX_PAGES:
                raise BadPicture(f"more than {MAX_PAGES} pages")
            try:
                page = self._page(number)
            except IndexError:
                if self._entries(self._page(number - 1))[1]:
                    raise BadPicture("damaged: a page lies beyond the end of the file") from None
                return number
            try:
                alike = _kind(page) == self.kind
            except BadPicture:
                alike = False
            if not alike:
                return 1  # a smaller copy, a mask: the first page is the picture
        raise AssertionError("counting does not end")

    def _mode(self) -> str:
        """Like Pillow's: L, I (whole numbers), F (floats), RGB, LA, RGBA, CMYK, with X one more of no stated meaning;
        after ";" their bits beyond 8; "I;16 x 5" for five pages or for five samples of which most have no colour."""
        kind, extra = self.kind, self.kind.extra
        grey = "F" if kind.form == 3 else "L" if self.stated and kind.bits <= 8 else "I"
        depth = "" if self.stated and kind.bits <= 8 else ";16" if self.stated else f";{kind.bits}"
        if len(extra) > 1 or (extra and self.pages > 1 and not self.transparent):
            return f"{grey}{';16' if grey == 'I' and self.stated else ''} x {kind.samples * self.pages}"
        name = self.name + ("" if not extra else "A" if self.transparent else "X")
        if name == "L":
            one = (
                "1"
                if kind.bits == 1 and self.stated
                else f"{grey}{';16' if grey == 'I' and self.stated else ''}"
            )
        else:
            one = {"P": "RGB" if depth else "P", "CMYKA": "RGBA", "YCbCr": "RGB"}.get(name, name) + depth
        return f"{one} x {self.pages}" if self.pages > 1 else one

    def _check_parts(self, page: tifffile.TiffPage) -> None:
        """BadPicture before memory is taken for what the file cannot hold, or where parts of it are missing."""
        sides = (page.tilewidth, page.tilelength) if page.is_tiled else (self.width, 1)
        if sides[0] * sides[1] * self.kind.samples > _MAX_SEGMENT:
            raise BadPicture(f"a TIFF with tiles of {sides[0]} x {sides[1]}")
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
        if len(parts) < int(np.prod(page.chunked)):
            raise BadPicture("damaged: some of its strips or tiles are missing")
        if any(start < 8 or size < 1 or start + size > len(self.data) for start, size in parts):
            raise BadPicture("damaged: a strip or tile lies beyond the end of the file")

    def _words(self) -> str:
        what = {1: "whole numbers", 2: "signed whole numbers", 3: "floating-point numbers"}[self.kind.form]
        return f"{self.kind.bits}-bit {what}"


def _name(compression: int) -> str:
    try:
        return tifffile.COMPRESSION(compression).name
    except ValueError:
        return str(compression)


def _kind(page: tifffile.TiffPage) -> Kind:
    """What a page is by its tags; BadPicture for what no reader of ours makes a picture of."""
    meaning = int(page.photometric)
    if meaning not in _COLOURS:
        raise BadPicture(
            f"a TIFF of {_UNREAD.get(meaning, f'colours of kind {meaning}')}; expected grey, RGB or CMYK"
        )
    if not isinstance(page.bitspersample, int):
        raise BadPicture(
            f"a TIFF whose samples have different bits ({', '.join(map(str, page.bitspersample))})"
        )
    form = {4: 1}.get(int(page.sampleformat), int(page.sampleformat))
    bits, samples = page.bitspersample, int(page.samplesperpixel)
    widths: Callable[[int], bool] = {
        1: lambda b: (1 <= b <= 32 and b != 24) or b == 64,  # of 24, writers differ in the order of the bytes
        2: lambda b: b in (8, 16, 32, 64),
        3: lambda b: b in (16, 24, 32, 64),
    }.get(form, lambda b: False)
    if not widths(bits):
        raise BadPicture(f"a TIFF of {bits} bits in sample format {form}; expected whole numbers or floats")
    if int(page.planarconfig) not in (1, 2) or int(page.fillorder) not in (1, 2):
        raise BadPicture("damaged: its planes or the order of its bits are of no kind that there is")
    extra = samples - _COLOURS[meaning][1]
    if extra < 0 or page.imagedepth > 1:
        raise BadPicture(f"a TIFF of {samples} samples a pixel; expected {_COLOURS[meaning][1]} of its kind")
    told = tuple(map(int, page.extrasamples))[:extra]
    return Kind(
        int(page.imagewidth),
        int(page.imagelength),
        samples,
        bits,
        form,
        meaning,
        told + (0,) * (extra - len(told)),
    )
