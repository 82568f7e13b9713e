"""What a file says of its colours: an ICC profile, or gamma, primaries and white in tags of its own, as a way to sRGB.

Codes of primaries and transfer (cICP in PNG, nclx in AVIF) are those of ITU-T H.273.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

if TYPE_CHECKING:
    from carrara.images.tiff import Tiff

TOP = 65535
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_D65 = (0.3127, 0.329)
_BT709 = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_ADOBE = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_PRIMARIES = {  # by H.273's codes: white, then red, green and blue
    1: (*_D65, *_BT709),
    4: (0.31, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*_D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
_UNSTATED = 2
_LIKE_SRGB = (1, 6, 13, 14, 15)  # video's curves too, which browsers show like sRGB's
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_HIGH_RANGE = {16: "PQ", 18: "HLG"}
_NEAR = 2  # of 255: a profile that moves no colour by more is sRGB's, whatever its name
UNUSABLE = "its colour profile is damaged, or for another kind of picture; its numbers are taken for sRGB"


class Stated(NamedTuple):
    """The ICC profile of what a file says (None: sRGB), and a note where it cannot be followed."""

    profile: bytes | None = None
    note: str = ""


SRGB = Stated()


class Transform:
    """A way to sRGB from a profile ``space`` ("GRAY", "RGB " or "CMYK")."""

    def __init__(self, profile: bytes) -> None:
        self.profile, self.space = profile, profile[16:20].decode("latin-1")
        mode = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}[self.space]
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        self._eight: Any = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        self.mode = mode

    def eight(self, picture: Image.Image) -> Image.Image:
        """Of 8 bits: "RGB" of an "L", "RGB" or "CMYK" picture."""
        picture = picture if picture.mode == self.mode else picture.convert(self.mode)
        return ImageCms.applyTransform(picture, self._eight) or picture

    def sixteen(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """``[h w 3]`` of ``[h w 1, 3 or 4]``, floats in 0 … 65535."""
        if self.space == "RGB " and values.shape[-1] == 1:
            values = np.repeat(values, 3, -1)
        numbers = np.ascontiguousarray(np.rint(values).astype(np.uint16))
        numbers = numbers[..., 0] if self.space == "GRAY" else numbers
        space = self.space.strip().lower()
        found = imagecodecs.cms_transform(
            numbers, self.profile, _SRGB, colorspace=space, outcolorspace="rgb", outdtype="uint16"
        )
        return np.asarray(found).reshape(*values.shape[:2], 3).astype(np.float64)


@functools.lru_cache(maxsize=16)
def transform(profile: bytes, mode: str) -> Transform | None:
    """The way to sRGB of a picture of Pillow's ``mode`` ("L", "RGB", "CMYK"); None where it stays as it is.

    ValueError where the profile cannot be used for such a picture.
    """
    try:
        found = Transform(profile)
    except Exception as error:  # littlecms meets hostile bytes
        raise ValueError(UNUSABLE) from error
    if found.mode != mode and (mode, found.mode) != ("L", "RGB"):
        raise ValueError(UNUSABLE)
    if found.mode == "CMYK":
        return found
    ramp = np.arange(0, 256, 5, dtype=np.uint8)
    probe = np.repeat(ramp[:, None], 3, 1)
    if found.mode == "RGB":  # and all mixtures of a few brightnesses
        probe = np.concatenate([probe, np.stack(np.meshgrid(*[ramp[::10]] * 3), -1).reshape(-1, 3)])
    picture = Image.fromarray(probe[None] if found.mode == "RGB" else probe[None, :, 0])
    moved = np.asarray(found.eight(picture), np.int16) - probe[None]
    return None if np.abs(moved).max() <= _NEAR else found


def stated(data: bytes, picture: Image.Image | None, tiff: Tiff | None) -> Stated:
    """What a file says of its colours, its profile before its tags; damaged tags are a note."""
    try:
        if tiff is not None:
            return _of_tiff(tiff)
        assert picture is not None
        if picture.format == "PNG":
            return _of_png(data, picture.info)
        if picture.format == "BMP":
            return _of_bmp(data)
        if picture.format == "GIF":
            return _of_gif(data)
        if profile := picture.info.get("icc_profile"):
            return Stated(profile)
        if picture.format in ("AVIF", "HEIF") and (at := data.find(b"colrnclx")) >= 0:
            return coded(*struct.unpack(">HH", data[at + 8 : at + 12]))
        return _of_exif(picture)
    except Exception:
        return Stated(None, "what it says of its colours is damaged; its numbers are taken for sRGB")


def coded(primaries: int, transfer: int) -> Stated:
    """What H.273's codes mean; a note where it is nothing that 8 or 16 bits of sRGB can show."""
    if transfer in _HIGH_RANGE:
        return Stated(
            None, f"its brightness is {_HIGH_RANGE[transfer]}, of a high dynamic range; taken for sRGB"
        )
    if primaries not in (*_PRIMARIES, _UNSTATED) or transfer not in (*_LIKE_SRGB, *_GAMMAS, _UNSTATED):
        return Stated(
            None, f"its colours have the codes {primaries} and {transfer}, unknown here; taken for sRGB"
        )
    white_and_primaries = _PRIMARIES.get(primaries, _PRIMARIES[1])
    return _matrix(white_and_primaries, _GAMMAS.get(transfer))


def _matrix(white_and_primaries: Sequence[float], gamma: float | None, table: Any = None) -> Stated:
    """A profile of primaries with a curve: a power, a table uint16 (the light of each number), or sRGB's."""
    same = np.allclose(white_and_primaries, _PRIMARIES[1], atol=0.002)
    if same and gamma is None and table is None:
        return SRGB
    if not all(0 < n < 1 for n in white_and_primaries) or (gamma is not None and not 0.1 < gamma < 10):
        raise ValueError("no colours")
    if gamma is None and table is None:
        share = np.linspace(0, 1, 4096)
        light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        table = np.rint(light * TOP).astype(np.uint16)
    curve = {"gamma": gamma} if table is None else {"transferfunction": table}
    white, primaries = white_and_primaries[:2], list(white_and_primaries[2:])
    return Stated(imagecodecs.cms_profile("rgb", whitepoint=[*white, 1.0], primaries=primaries, **curve))


def _of_png(data: bytes, info: dict[Any, Any]) -> Stated:
    """By the order of the PNG specification, third edition: cICP, iCCP, sRGB, then gAMA and cHRM."""
    if (cicp := _png_chunk(data, b"cICP")) is not None:
        if not cicp[3]:
            return Stated(None, "its numbers are of video's narrow range; taken for the whole one")
        return coded(cicp[0], cicp[1])
    if "icc_profile" in info:
        return Stated(info["icc_profile"], "" if info["icc_profile"] else UNUSABLE)
    if "srgb" in info:
        return SRGB
    own = info.get("chromaticity", _PRIMARIES[1])
    like_srgb = np.allclose(own, _PRIMARIES[1], atol=0.002)
    gamma = 1 / info["gamma"] if info.get("gamma") else None
    if (
        gamma and like_srgb and abs(2.2 / gamma - 1) < 0.05
    ):  # libpng's threshold: what means sRGB without its chunk
        gamma = None
    return _matrix(own, gamma)


def _png_chunk(data: bytes, name: bytes) -> bytes | None:
    at = 8
    while at + 8 <= len(data) and (kind := data[at + 4 : at + 8]) != b"IDAT":
        (size,) = struct.unpack(">I", data[at : at + 4])
        if kind == name:
            return data[at + 8 : at + 8 + size]
        at += size + 12
    return None


def _of_bmp(data: bytes) -> Stated:
    """The space of a header of version 4 or 5."""
    (size,) = struct.unpack("<I", data[14:18])
    space = data[70:74] if size >= 108 else b"BGRs"
    if space == b"DEBM" and size >= 124:
        start, length = struct.unpack("<II", data[126:134])
        return Stated(data[14 + start : 14 + start + length])
    if space == b"KNIL":
        return Stated(None, "its colour profile is another file; its numbers are taken for sRGB")
    if space == bytes(
        4
    ):  # calibrated: the places of red, green and blue (2.30 fixed point), then gammas (16.16)
        ends = np.array(struct.unpack("<9i", data[74:110])).reshape(3, 3) / 2**30
        gammas = [g / 65536 for g in struct.unpack("<3I", data[110:122])]
        if ends.any() and all(gammas):
            xy = [part for end in (ends.sum(0), *ends) for part in end[:2] / end.sum()]
            curves = [np.rint(np.linspace(0, 1, 4096) ** gamma * TOP).astype(np.uint16) for gamma in gammas]
            return _matrix(xy, None, np.stack(curves))
    return SRGB


def _of_gif(data: bytes) -> Stated:
    """The application extension of the International Color Consortium."""
    at = data.find(b"\x21\xff\x0bICCRGBG1012")
    if at < 0:
        return SRGB
    at, profile = at + 14, b""
    while at < len(data) and (size := data[at]):
        profile += data[at + 1 : at + 1 + size]
        at += 1 + size
    return Stated(profile)


def _of_exif(picture: Image.Image) -> Stated:
    """Adobe RGB, as cameras say it: by a number of Adobe's, or "uncalibrated" with DCF's word R03."""
    exif = picture.getexif()
    space = exif.get_ifd(0x8769).get(0xA001)
    if space == 2 or (space == 0xFFFF and str(exif.get_ifd(0xA005).get(1, "")).startswith("R03")):
        return _matrix((*_D65, *_ADOBE), 563 / 256)
    return SRGB


def _of_tiff(tiff: Tiff) -> Stated:
    """A profile, or TransferFunction, WhitePoint and PrimaryChromaticities (TIFF 6.0, section 20)."""
    if profile := tiff.tag(34675):
        return Stated(bytes(profile))
    white, primaries, curve = tiff.tag(318), tiff.tag(319), tiff.tag(301)
    if white is None and primaries is None and curve is None:
        return SRGB
    pairs = [_fractions(white) if white else list(_D65), _fractions(primaries) if primaries else list(_BT709)]
    table = None
    if curve is not None:
        numbers = np.array(curve, np.uint16)
        of_one = 2**tiff.kind.bits
        if tiff.kind.bits > 16 or tiff.name == "CMYK" or numbers.size not in (of_one, 3 * of_one):
            return Stated(None, "its transfer function is not for its bits; its numbers are taken for sRGB")
        table = (
            _shorter(numbers)
            if numbers.size == of_one
            else np.stack([*map(_shorter, numbers.reshape(3, -1))])
        )
    return _matrix([*pairs[0], *pairs[1]], None, table)


def _shorter(curve: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """The curve with at most 4096 places: littlecms takes no more than 65530."""
    places = np.linspace(0, len(curve) - 1, min(len(curve), 4096))
    return np.rint(np.interp(places, np.arange(len(curve)), curve)).astype(np.uint16)


def _fractions(value: Sequence[int]) -> list[float]:
    """Rationals as tifffile gives them: numerators and denominators in turn."""
    return [a / b for a, b in zip(value[::2], value[1::2], strict=True)]
