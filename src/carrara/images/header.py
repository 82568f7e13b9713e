"""A picture whose headers were read and are no threat: known formats, capped sizes, and one way to its pixels."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from carrara.errors import BadPicture, one_line
from carrara.images import colours, planes, tiff
from carrara.images.tiff import Span, Tiff

# Importing a plugin makes its format known; Pillow would otherwise load all forty when puzzled.
FORMATS = [
    plugin.format
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        WebPImagePlugin.WebPImageFile,
        AvifImagePlugin.AvifImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
    )
]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif")
_HEIC = tuple(
    f"ftyp{brand}".encode() for brand in ("heic", "heix", "hevc", "hevx", "heim", "heis", "mif1", "msf1")
)
MAX_BYTES = 128 * 2**20
MAX_PIXELS = 89_478_485  # Pillow's own bomb limit; a 32-bit picture of that size is 358 MB
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

# Pillow warns about damaged metadata (EXIF, TIFF tags), which does not touch the pixels, and about bombs,
# which `open_header` refuses by itself from the header. `catch_warnings` would not be safe in the loader's thread.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Opened:
    """A picture of which the headers were read and are no threat; ``picture`` is Pillow's, where that reads it.

    ``managed`` False leaves numbers as they are, whatever the file says of colours.
    """

    def __init__(
        self, data: bytes, short_side: int | None = None, span: Span | None = None, managed: bool = True
    ) -> None:
        self.data, self.notes, self.managed = data, list[str](), managed
        self.tiff = Tiff(data, span) if data[:4] in tiff.STARTS else None
        if self.tiff is None or (self.tiff.plain and self.tiff.pages == 1):
            self.picture = open_header(data, short_side)
        if self.tiff is not None:
            self.size = _checked_size(self.tiff.width, self.tiff.height)
            self.mode, self.orientation = self.tiff.mode, self.tiff.orientation
            self.deep = not self.tiff.plain or self.tiff.pages > 1
            planes.check_amount(self.mode, *self.size, self.tiff.kind.bits)
        else:
            self.size, self.mode = self.picture.size, planes.png_mode(self.picture)
            self.orientation, self.deep = planes.orientation(self.picture), planes.is_deep(self.mode)
            planes.check_amount(self.mode, *self.size)
        self._large = planes.is_large(self.mode, *self.size)

    def flags(self) -> list[str]:
        """What the headers say: animated, alpha, cmyk, grey, rotated (shown otherwise than it lies in the file)."""
        kind = self.mode.partition(" x ")[0].partition(";")[0]
        transparent = self.tiff is None and "transparency" in self.picture.info
        found = {
            "animated": self.tiff is None and _is_animated(self.picture),
            "alpha": kind in ("LA", "PA", "RGBA", "La", "RGBa") or transparent,
            "cmyk": kind == "CMYK",
            "grey": kind in ("1", "L", "LA", "La", "LX", "F", "I"),
            "rotated": self.orientation in _TURNS,
        }
        return [flag for flag, holds in found.items() if holds]

    def to_srgb(self, mode: str) -> colours.Transform | None:
        """The way to sRGB of colours of Pillow's ``mode``, None for none; what cannot be followed is noted."""
        if not self.managed:
            return None
        stated = colours.stated(self.data, None if self.tiff else self.picture, self.tiff)
        note, found = stated.note, None
        if stated.profile is not None:
            try:
                found = colours.transform(stated.profile, mode)
            except ValueError as error:
                note = str(error)
        self.notes += [note] if note and note not in self.notes else []
        return found

    def shown(self, channels: int) -> Image.Image:
        """In 8 bits, with 1 to 4 channels; of several pages or samples what one sees."""
        if not self.deep:
            return _to_mode(self._in_eight_bits(), MODES[channels])
        eight = planes.to_eight_bits(planes.first_page(self._layer, channels, self._large), tiff.TOP)
        return Image.fromarray(eight[0] if channels == 1 else np.ascontiguousarray(np.moveaxis(eight, 0, -1)))

    def as_planes(self, channels: int) -> planes.Planes:
        """``uint16 [channels h w]``. BadPicture where it cannot have so many."""
        if planes.is_asked_whole(self.mode, channels):
            assert self.tiff is not None
            found = planes.all_samples(self.tiff, self._large)
        else:
            found = planes.first_page(self._layer, channels, self._large)
        if self.tiff is not None and self.tiff.note:
            self.notes.append(self.tiff.note)
        return found

    def _in_eight_bits(self) -> Image.Image:
        """As `_in_srgb`; Pillow turns a TIFF itself when it is loaded, and no longer says that it lay otherwise."""
        self.picture.load()
        return _in_srgb(
            self.picture, self.to_srgb(colour_mode(self.picture)), planes.orientation(self.picture)
        )

    def _layer(self) -> planes.Layer:
        if not self.deep:
            return planes.of_eight_bits(self._in_eight_bits())
        kind = self.mode.partition(" x ")[0].partition(";")[0]
        to_srgb = self.to_srgb("CMYK" if kind == "CMYK" else "RGB" if kind.startswith("RGB") else "L")
        if self.tiff is not None:
            return planes.of_tiff(self.tiff, to_srgb)
        return planes.of_png(lambda: open_header(self.data), self.mode, to_srgb)


def looks_like_picture(head: bytes) -> bool:
    """Whether the first bytes of a file are those of an allowed format, whatever its name says."""
    starts = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", *tiff.STARTS)
    return (
        head.startswith(starts) or head[8:12] == b"WEBP" or head[4:12] in (b"ftypavif", b"ftypavis", *_HEIC)
    )


@contextlib.contextmanager
def refusing_what_is_bad(data: bytes) -> Iterator[None]:
    """Whatever decoding these bytes raises is a BadPicture that says why."""
    if not data:
        raise BadPicture("the file is empty")
    if len(data) > MAX_BYTES:
        raise BadPicture(f"{len(data)} bytes; at most {MAX_BYTES} are read")
    try:
        yield
    except BadPicture:
        raise
    except UnidentifiedImageError:
        raise BadPicture(_what_instead(data)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPicture(f"more than {MAX_PIXELS} pixels") from None
    except MemoryError:
        raise BadPicture("needs more memory than there is") from None
    except Exception as error:
        # Decoders meet hostile bytes: any failure of theirs (SyntaxError, struct.error, IndexError, …) is one
        # bad picture and never the end of an import.
        raise BadPicture(f"damaged: {one_line(error)}") from None


def open_header(data: bytes, short_side: int | None = None) -> Image.Image:
    """The header alone, with the size checked before a pixel is unpacked; a JPEG may be set to come smaller."""
    heic = is_heic(data) and _reads_heic()
    picture = Image.open(io.BytesIO(data), formats=["HEIF"] if heic else FORMATS)
    _checked_size(*picture.size)
    if short_side is not None:
        picture.draft(None, _at_least(picture.size, 2 * short_side))
    return picture


def is_heic(data: bytes) -> bool:
    """Whether it is in the container of HEIF and not AVIF, which may have the container's general brands too."""
    brands = data[8 : max(16, int.from_bytes(data[:4], "big"))][:256]
    return data[4:12] in _HEIC and b"avif" not in brands and b"avis" not in brands


@functools.cache
def _reads_heic() -> bool:
    """Whether the library for HEIC is installed, which Pillow then knows."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _checked_size(width: int, height: int) -> tuple[int, int]:
    if width < 1 or height < 1:
        raise BadPicture(f"has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{width} x {height} is more than {MAX_PIXELS} pixels")
    return width, height


def _is_animated(picture: Image.Image) -> bool:
    """Whether it has frames that follow one another in time: not the other pictures of a photograph's file, nor the
    picture that an animated PNG shows where it cannot move."""
    if picture.format in ("JPEG", "MPO", "HEIF"):
        return False
    still = int(bool(getattr(picture, "default_image", False)))
    return getattr(picture, "n_frames", 1) - still > 1


def _at_least(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    scale = min(1.0, short_side / min(size))
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def colour_mode(picture: Image.Image) -> str:
    """What a profile of a picture is for: "L", "RGB" or "CMYK"."""
    if picture.mode in ("1", "L", "LA", "La"):
        return "L"
    return "CMYK" if picture.mode == "CMYK" else "RGB"


def _in_srgb(picture: Image.Image, to_srgb: colours.Transform | None, orientation: int) -> Image.Image:
    """Upright, 8 bits, sRGB: "L" or "RGB", or "RGBA" where something is transparent."""
    turn = _TURNS.get(orientation)
    picture = picture.convert("L") if picture.mode == "1" else picture
    if picture.mode in ("La", "RGBa"):  # premultiplied
        picture = picture.convert(picture.mode.upper())
    if picture.mode == "PA" or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    alpha = picture.getchannel("A") if picture.mode in ("RGBA", "LA") else None
    if picture.mode in ("LA", "P", "RGBA", "RGBX"):
        picture = picture.convert("L" if picture.mode == "LA" else "RGB")
    if to_srgb is not None:
        picture = to_srgb.eight(picture)
    picture = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
    if alpha is not None:
        picture = picture.convert("RGB")
        picture.putalpha(alpha)
    return picture if turn is None else picture.transpose(turn)


def _to_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in the asked mode; what is transparent becomes white, unless the mode keeps it."""
    if picture.mode == "RGBA" and mode not in ("LA", "RGBA"):
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        picture = white.convert("RGB")
    return picture if picture.mode == mode else picture.convert(mode)


def _what_instead(data: bytes) -> str:
    head = data[:1024].lstrip()
    known = "png, jpeg, webp, avif, gif, bmp or tiff"
    if b"<svg" in head or head.startswith(b"<?xml"):
        return f"an SVG or XML file, not pixels; expected {known}"
    if is_heic(data) and not _reads_heic():
        return "a HEIC picture: pip install 'carrara[heic]' and import again, or save it as JPEG or PNG"
    if data[4:8] == b"ftyp" and not looks_like_picture(data[:16]):
        return f"a video; expected {known}"
    if looks_like_picture(data[:16]):
        return "damaged: the header cannot be read"
    return f"not a picture; expected {known}"
