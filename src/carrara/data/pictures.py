"""One safe way from the bytes of any picture to pixels: known formats, capped sizes, no silent damage."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
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
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# Pillow warns about damaged metadata (EXIF, TIFF tags), which does not touch the pixels, and about bombs,
# which `_open` refuses by itself from the header. `catch_warnings` would not be safe in the loader's thread.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadPicture(ValueError):
    """These bytes give no picture; the message is the reason in a few words."""


def decode(data: bytes, *, channels: int = 3, short_side: int | None = None) -> Image.Image:
    """The picture in ``data`` as people see it: upright, in sRGB, on white where it is transparent.

    ``channels`` 1 gives luminance ("L"), 3 colour ("RGB"), 4 keeps transparency ("RGBA"); always 8 bits a
    channel. With ``short_side`` a JPEG may come smaller, but never below twice that many pixels on its short
    side: several times faster where the picture is shrunk anyway. Raises BadPicture.
    """
    if channels not in MODES:
        raise ValueError(f"channels is {channels}; expected one of {sorted(MODES)}")
    picture, _ = _decode(data, short_side)
    return _to_mode(picture, MODES[channels])


def examine(data: bytes) -> tuple[int, int, str]:
    """(width, height, mode): size as shown, mode as in the file; decodes all of it. Raises BadPicture."""
    picture, mode = _decode(data, None)
    return picture.width, picture.height, mode


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle square of ``image``, scaled to ``size`` x ``size`` with an antialiased LANCZOS filter."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    # The crop is the box of the resize, so that half a pixel stays half a pixel.
    return image.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def to_tensor(image: Image.Image) -> Tensor:
    """``uint8 [c h w]`` in 0..255 of an "L", "RGB" or "RGBA" picture."""
    import torch

    pixels = np.array(image, dtype=np.uint8)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def stack(pictures: Sequence[bytes], size: int, channels: int = 3) -> Tensor:
    """``uint8 [n channels size size]``: each decoded, its middle square scaled. Raises BadPicture."""
    import torch

    if not pictures:
        return torch.empty(0, channels, size, size, dtype=torch.uint8)
    images = (decode(data, channels=channels, short_side=size) for data in pictures)
    return torch.stack([to_tensor(resize_and_crop(image, size)) for image in images])


def looks_like_picture(head: bytes) -> bool:
    """Whether the first bytes of a file are those of an allowed format, whatever its name says."""
    starts = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
    return head.startswith(starts) or head[8:12] == b"WEBP" or head[4:12] in (b"ftypavif", b"ftypavis")


def _decode(data: bytes, short_side: int | None) -> tuple[Image.Image, str]:
    """The picture as "L", "RGB" or "RGBA", with the mode that the file has."""
    if not data:
        raise BadPicture("the file is empty")
    if len(data) > MAX_BYTES:
        raise BadPicture(f"{len(data)} bytes; at most {MAX_BYTES} are read")
    try:
        picture = _open(data)
        mode = picture.mode
        if short_side is not None:
            picture.draft(None, _at_least(picture.size, 2 * short_side))
        picture.load()
        return _as_seen(picture), mode
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


def _open(data: bytes) -> Image.Image:
    """The header alone, with the size checked before a pixel is unpacked."""
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = picture.size
    if width < 1 or height < 1:
        raise BadPicture(f"has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{width} x {height} is more than {MAX_PIXELS} pixels")
    return picture


def _at_least(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    scale = min(1.0, short_side / min(size))
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def _as_seen(picture: Image.Image) -> Image.Image:
    """Upright, 8 bits, sRGB: "L" or "RGB", or "RGBA" where something is transparent."""
    turn, profile = _turn(picture), picture.info.get("icc_profile")
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


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What the camera's orientation tag asks for; damaged EXIF asks for nothing."""
    try:
        return _TURNS.get(picture.getexif().get(0x0112, 1))
    except Exception:
        return None


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float greys scaled to 8 bits (Pillow's own ``convert`` would clip them)."""
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    values = np.array(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadPicture("holds values that are not finite")
    transparent = picture.info.get("transparency")
    # "I;16" is 16 bits by name; 32-bit and float files do not say their range, so the smallest usual one that
    # holds their values is taken.
    ranges = (65535.0,) if picture.mode.startswith("I;16") else (65535.0, 2.0**31 - 1, 2.0**32 - 1)
    if picture.mode == "F":
        ranges = (1.0, 255.0, 65535.0)
    top = next((r for r in ranges if values.max() <= r), None)
    if top is None:
        raise BadPicture(f"holds values up to {values.max():g}; expected at most {ranges[-1]:g}")
    grey = Image.fromarray(np.rint(values.clip(0, top) * (255.0 / top)).astype(np.uint8))
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
    if picture.mode == "RGBA" and mode != "RGBA":
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
    if looks_like_picture(data[:16]):
        return "damaged: the header cannot be read"
    return f"not a picture; expected {known}"
