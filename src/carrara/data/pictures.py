"""One safe way from the bytes of any picture to pixels: known formats, capped sizes, no silent damage."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from carrara.data import planes
from carrara.data.buckets import Size, extent
from carrara.data.channels import channels_of
from carrara.data.rows import BadPicture as BadPicture

if TYPE_CHECKING:
    from torch import Tensor

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
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
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
_SIDEWAYS = (5, 6, 7, 8)
_PLANAR, _BITS = 284, 258  # tags of a TIFF; Pillow reads such a one of 16 bits as if it had 8, to nonsense
TINY = 32  # pixels of a side, below which a picture is worth a flag
LARGE = 64_000_000  # pixels, above which it is
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

Crop = Literal["centre", "start", "end"]  # which part of a picture, along the side of which some is cut off

# Pillow warns about damaged metadata (EXIF, TIFF tags), which does not touch the pixels, and about bombs,
# which `_open` refuses by itself from the header. `catch_warnings` would not be safe in the loader's thread.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(data: bytes, *, channels: int = 3, short_side: int | None = None) -> Image.Image:
    """The picture in ``data`` as people see it: upright, in sRGB, on white where it is transparent.

    ``channels`` 1 gives luminance ("L"), 3 colour ("RGB"), 2 and 4 keep transparency ("LA", "RGBA"); always
    8 bits a channel, of a stack of pages the first. With ``short_side`` a JPEG may come smaller, but never
    below twice that many pixels on its short side: several times faster where the picture is shrunk anyway.
    Raises BadPicture.
    """
    if channels not in MODES:
        raise ValueError(f"channels is {channels}; expected one of {sorted(MODES)}")
    with _refusing_what_is_bad(data):
        return _seen(_open(data, short_side), channels)


class Looked(NamedTuple):
    """Size as shown, mode as in the file ("RGB;16" for deep colour, "I;16 x 5" for a stack of five pages), and words
    that one may want to filter by."""

    width: int
    height: int
    mode: str
    flags: tuple[str, ...]


def examine(data: bytes) -> tuple[int, int, str]:
    """(width, height, mode) of `look`."""
    return look(data)[:3]


def look(data: bytes) -> Looked:
    """Decodes all of a picture, to be sure of it. Raises BadPicture."""
    with _refusing_what_is_bad(data):
        picture = _open(data)
        mode, flags = planes.nature(picture), _flags(picture)
        if planes.is_deep(mode):
            found, _ = planes.read(lambda: _open(data), mode, channels_of(mode), _as_seen)
            width, height = found.shape[2], found.shape[1]
        else:
            width, height = picture.size
            if jpeg := picture.format == "JPEG":  # one page, so it stands where it stood
                # All bits are read and checked also where few pixels are made of them.
                picture.draft(None, (1, 1))
            else:
                picture = _open(data)
            picture.load()
            seen = _as_seen(picture).size
            if not jpeg:
                width, height = seen
            elif planes.orientation(picture) in _SIDEWAYS:
                width, height = height, width
        if min(width, height) < TINY:
            flags.append("tiny")
        if width * height > LARGE:
            flags.append("large")
        return Looked(width, height, mode, tuple(flags))


def orientation(data: bytes) -> int:
    """How a picture lies in its file, as EXIF says (1 … 8; 1 is as it is shown). Raises BadPicture."""
    with _refusing_what_is_bad(data):
        picture = _open(data)
        picture.load()  # a PNG may say it behind its pixels
        return planes.orientation(picture)


def _flags(picture: Image.Image) -> list[str]:
    """What the header tells: animated, alpha, cmyk, grey, rotated (shown otherwise than it lies in the file)."""
    mode, stack = picture.mode, picture.format == "TIFF"
    found = {
        "animated": not stack and bool(getattr(picture, "is_animated", False)),
        "alpha": mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info,
        "cmyk": mode == "CMYK",
        "grey": mode in ("1", "L", "LA", "La", "F") or mode.startswith("I"),
        "rotated": planes.orientation(picture) in _TURNS,
    }
    return [flag for flag, holds in found.items() if holds]


def pixels(data: bytes, size: Size, channels: int = 3, *, bits: int = 8, crop: Crop = "centre") -> Tensor:
    """``[channels h w]``, uint8 in 0..255 or, with 16 ``bits``, uint16 in 0..65535: scaled to cover ``size``, and
    what is too long cut off where ``crop`` says.

    A picture of 16 bits keeps them all the way; one of 8 bits becomes 257 times its number. More than four
    channels (or two to four, of pages in grey) are the pages of a TIFF. Raises BadPicture where the picture
    has other channels than can become these.
    """
    with _refusing_what_is_bad(data):
        area, at_least = extent(size), max(extent(size))
        picture = _open(data, at_least)
        mode = planes.nature(picture)
        if bits == 8 and channels in MODES and " x " not in mode:
            return to_tensor(resize_and_crop(_seen(picture, channels), area, crop))
        found, alpha = planes.read(lambda: _open(data, at_least), mode, channels, _as_seen)
        height, width = found.shape[1:]
        return _of_depth(planes.resize(found, alpha, area, window((width, height), area, crop)), bits)


def class_ids(data: bytes, size: Size | None = None, *, crop: Crop = "centre") -> npt.NDArray[np.uint16]:
    """``[h w]``: the numbers as they are in the file, a palette's indices or a grey's values, cropped as `pixels`
    crops and scaled by taking the nearest; without ``size`` all of them. Raises BadPicture where a colour stands
    instead of a number."""
    with _refusing_what_is_bad(data):
        ids = planes.numbers(_open(data))
    if size is None:
        return ids
    area = extent(size)
    left, top, right, bottom = window((ids.shape[1], ids.shape[0]), area, crop)
    return ids[np.ix_(_nearest(top, bottom, area[0]), _nearest(left, right, area[1]))]


def _nearest(start: float, end: float, count: int) -> npt.NDArray[np.int64]:
    """The pixels under the middles of ``count`` equal parts of a line."""
    return (start + (np.arange(count) + 0.5) * ((end - start) / count)).astype(np.int64)


def whole(data: bytes, channels: int = 3, *, bits: int = 8) -> Tensor:
    """``[channels h w]`` at the picture's own size, upright; depth, channels and errors as in `pixels`."""
    with _refusing_what_is_bad(data):
        picture = _open(data)
        mode = planes.nature(picture)
        if bits == 8 and channels in MODES and " x " not in mode:
            return to_tensor(_seen(picture, channels))
        found, _ = planes.read(lambda: _open(data), mode, channels, _as_seen)
        return _of_depth(found, bits)


def _of_depth(values: npt.NDArray[np.uint16], bits: int) -> Tensor:
    import torch

    return torch.from_numpy(planes.to_eight_bits(values, planes.TOP) if bits == 8 else values)


def resize_and_crop(image: Image.Image, size: Size, crop: Crop = "centre") -> Image.Image:
    """``image`` scaled to cover ``size`` with an antialiased LANCZOS filter, and cropped to it."""
    height, width = extent(size)
    if image.size == (width, height):
        return image
    # The crop is the box of the resize, so that half a pixel stays half a pixel.
    box = window(image.size, (height, width), crop)
    return image.resize((width, height), Image.Resampling.LANCZOS, box)


def window(
    size: tuple[int, int], area: tuple[int, int], crop: Crop = "centre"
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom): the largest part of a picture of ``size`` (width, height) with the ratio of
    ``area`` (height, width), in the middle or where the side that is too long starts or ends."""
    width, height = size
    if width * area[0] > height * area[1]:
        across, down = height * area[1] / area[0], float(height)
    else:
        across, down = float(width), width * area[0] / area[1]
    share = {"start": 0.0, "centre": 0.5, "end": 1.0}[crop]
    left, top = (width - across) * share, (height - down) * share
    return left, top, left + across, top + down


def to_tensor(image: Image.Image) -> Tensor:
    """``uint8 [c h w]`` in 0..255 of an "L", "LA", "RGB" or "RGBA" picture."""
    import torch

    values = np.array(image, dtype=np.uint8)
    return torch.from_numpy(values[None] if values.ndim == 2 else values.transpose(2, 0, 1).copy())


def stack(
    pictures: Sequence[bytes], size: Size, channels: int = 3, *, bits: int = 8, crop: Crop = "centre"
) -> Tensor:
    """``[n channels h w]``: the `pixels` of each, uint8 or, with 16 ``bits``, uint16. Raises BadPicture."""
    import torch

    if not pictures:
        return torch.empty(0, channels, *extent(size), dtype=torch.uint8 if bits == 8 else torch.uint16)
    return torch.stack([pixels(data, size, channels, bits=bits, crop=crop) for data in pictures])


def looks_like_picture(head: bytes) -> bool:
    """Whether the first bytes of a file are those of an allowed format, whatever its name says."""
    starts = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
    return head.startswith(starts) or head[8:12] == b"WEBP" or head[4:12] in (b"ftypavif", b"ftypavis")


@contextlib.contextmanager
def _refusing_what_is_bad(data: bytes) -> Iterator[None]:
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
        text = " ".join(str(error).split()) or type(error).__name__
        raise BadPicture(f"damaged: {text[:200]}") from None


def _open(data: bytes, short_side: int | None = None) -> Image.Image:
    """The header alone, with the size checked before a pixel is unpacked; a JPEG may be set to come smaller."""
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = picture.size
    if width < 1 or height < 1:
        raise BadPicture(f"has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{width} x {height} is more than {MAX_PIXELS} pixels")
    tags = getattr(picture, "tag_v2", {})
    if tags.get(_PLANAR) == 2 and max(tags.get(_BITS, (8,))) > 8:
        raise BadPicture("a TIFF of 16 bits whose channels lie one after the other; save them pixel by pixel")
    if short_side is not None:
        picture.draft(None, _at_least(picture.size, 2 * short_side))
    return picture


def _seen(picture: Image.Image, channels: int) -> Image.Image:
    picture.load()
    return _to_mode(_as_seen(picture), MODES[channels])


def _at_least(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    scale = min(1.0, short_side / min(size))
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def _as_seen(picture: Image.Image) -> Image.Image:
    """Upright, 8 bits, sRGB: "L" or "RGB", or "RGBA" where something is transparent."""
    turn, profile = _TURNS.get(planes.orientation(picture)), picture.info.get("icc_profile")
    picture = _to_eight_bits(picture)
    if picture.mode in ("La", "RGBa"):  # premultiplied
        picture = picture.convert(picture.mode.upper())
    if picture.mode == "PA" or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    alpha = picture.getchannel("A") if picture.mode in ("RGBA", "LA") else None
    if picture.mode in ("LA", "P", "RGBA", "RGBX"):
        picture = picture.convert("L" if picture.mode == "LA" else "RGB")
    picture = _to_srgb(picture, profile)
    if alpha is not None:
        picture = picture.convert("RGB")
        picture.putalpha(alpha)
    return picture if turn is None else picture.transpose(turn)


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float greys scaled to 8 bits (Pillow's own ``convert`` would clip them)."""
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    values, top = planes.grey_values(picture)
    transparent = picture.info.get("transparency")
    grey = Image.fromarray(planes.to_eight_bits(values, top))
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """ "L" or "RGB" in sRGB; a profile that is damaged or not for this kind of picture is passed over."""
    if profile and (transform := _transform(profile, picture.mode)) is not None:
        with contextlib.suppress(ImageCms.PyCMSError, ValueError, OSError):
            return ImageCms.applyTransform(picture, transform) or picture
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except Exception:
        return None


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
    if data[4:8] == b"ftyp":
        return f"a HEIC picture or a video; expected {known}"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "a TIFF that is damaged, or of a kind that is not read (expected 1, 3 or 4 samples a pixel)"
    if looks_like_picture(data[:16]):
        return "damaged: the header cannot be read"
    return f"not a picture; expected {known}"
