"""The fingerprint of a picture, what it is at a glance: 64 signs of its lowest frequencies, and sixteen by sixteen
colours (after Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions").

Scaling, re-encoding and small changes leave a glance nearly as it was. It is derived once for every picture; what
lies near by its signs is looked at once more by its colours, since a red heart has the signs of a blue one.

Whether two glances show one picture: their colours compared after brightness and contrast are fitted, also where
one of the two is cut a little closer.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from carrara.errors import BadPicture
from carrara.images.decode import decode, whole

if TYPE_CHECKING:
    from carrara.images.tiff import Span


RADIUS = 8  # bits of 64; docs/data.md has what it finds and what it misses

BITS = 64
SIDE = 16  # of the colours
_FINE = 32  # the side of the grey picture whose frequencies are taken
FLAT = 2.0  # standard deviation, of 255, below which a picture has no structure that a hash could name
_THERE = 0.01  # of all frequencies' length: a weaker one counts as zero

_WORDS = 4  # of 16 bits, which a float32 holds exactly, as it does a colour of 24 bits

_NUMBERS = 2 * _WORDS + SIDE * SIDE

Hashes = npt.NDArray[np.uint64]


class Glances(NamedTuple):
    """Of n pictures: ``hashes`` [n], those of the pictures mirrored [n], and ``colours`` uint8 [n 16 16 3].

    The hashes of a picture in which there is nothing to see (`flat`) are 0 where it is one colour and no more,
    otherwise they are of all its numbers: only one with the very same is like it.
    """

    hashes: Hashes
    mirrored: Hashes
    colours: npt.NDArray[np.uint8]


def look(data: bytes, span: Span | None = None, mode: str = "") -> npt.NDArray[np.float32]:
    """The glance of one picture as it is stored: read it with `unpack`. Raises BadPicture.

    Of a stack of pages, whose ``mode`` says so, only the first is seen, so nothing but itself is like it.
    """
    seen = decode(data, channels=3, short_side=_FINE, span=span)
    small = seen.resize((_FINE, _FINE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    grey = np.asarray(small.convert("L"), np.float64)
    block = _FINE // SIDE
    fine = np.asarray(small, np.float64).reshape(SIDE, block, SIDE, block, 3)
    colours = np.rint(fine.mean((1, 3))).astype(np.uint32)
    packed = (colours << np.array([16, 8, 0], np.uint32)).sum(2)
    if flat(colours[None])[0] or " x " in mode:
        words = _of_all_numbers(data, colours[0, 0], span)
    else:
        words = [_words(_signs(found)) for found in _spectra(grey)]
    return np.concatenate([*words, packed.reshape(-1)]).astype(np.float32)


def flat(colours: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Of which glances ``[n 16 16 3]`` all colours are as good as one: on white and in 8 bits there is nothing to see,
    whatever the picture's alpha or its other bits hold."""
    spread: npt.NDArray[np.float64] = colours.astype(np.float64).std((1, 2)).max(1)
    return np.asarray(spread < FLAT)


def _of_all_numbers(
    data: bytes, colour: npt.NDArray[np.uint32], span: Span | None
) -> list[npt.NDArray[np.float64]]:
    """Words of a hash of all the numbers of a picture, its alpha and all of its bits, and of its mirror image's; none
    where all of them are that ``colour``."""
    try:
        numbers = whole(data, 4, bits=16, span=span).numpy()
    except BadPicture:  # of channels of its own
        numbers = np.frombuffer(data, np.uint8)
    else:
        if (numbers == np.array([*(257 * colour), 65535])[:, None, None]).all():
            return [np.zeros(_WORDS)] * 2
    both = (numbers, np.ascontiguousarray(numbers[..., ::-1]))
    digests = [hashlib.sha256(repr(some.shape).encode() + some.tobytes()).digest() for some in both]
    return [np.frombuffer(digest[: 2 * _WORDS], np.uint16).astype(np.float64) for digest in digests]


def unpack(stored: npt.NDArray[np.float32]) -> Glances:
    """What ``[n numbers]`` of `look` mean."""
    words = stored[:, : 2 * _WORDS].astype(np.uint64).reshape(-1, 2, _WORDS)
    both = (words << (np.arange(_WORDS, dtype=np.uint64) * np.uint64(16))).sum(2, dtype=np.uint64)
    packed = stored[:, 2 * _WORDS :].astype(np.uint32).reshape(-1, SIDE, SIDE, 1)
    colours = (packed >> np.array([16, 8, 0], np.uint32)).astype(np.uint8)
    return Glances(both[:, 0], both[:, 1], colours)


def distance(a: Hashes, b: Hashes) -> npt.NDArray[np.uint8]:
    """How many of 64 bits differ."""
    found: npt.NDArray[np.uint8] = np.bitwise_count(a ^ b)
    return found


def numbers_of(values: Any) -> npt.NDArray[np.float32]:
    """Lists of one length as ``[n numbers]``."""
    flat: npt.NDArray[np.float32] = values.flatten().to_numpy()
    return flat.reshape(len(values), -1)


def _spectra(grey: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The 64 lowest frequencies but the mean, of a grey picture and of its mirror image."""
    cosines, down, across = _frequencies()
    found = (cosines @ grey @ cosines.T)[down, across]
    return found, np.where(across % 2, -found, found)


@functools.cache
def _frequencies() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The matrix of an orthonormal DCT-II, and which of its products are the lowest, down and across."""
    k = np.arange(_FINE)
    cosines = np.cos(np.pi / _FINE * np.outer(k, k + 0.5)) * np.sqrt(2 / _FINE)
    cosines[0] /= np.sqrt(2)
    down, across = (index.reshape(-1) for index in np.indices((_FINE, _FINE)))
    lowest = np.argsort(down**2 + across**2, kind="stable")[1 : BITS + 1]
    return cosines, down[lowest], across[lowest]


def _signs(spectrum: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which frequencies are positive, of those that are there: half of a symmetric drawing's are zero but for noise,
    and their signs would be chance. None are in a picture that is flat."""
    length = np.linalg.norm(spectrum)
    if length < FLAT * _FINE:
        return np.zeros(BITS, bool)
    return np.asarray(spectrum > _THERE * length)


def _words(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    return bits.reshape(_WORDS, 16) @ 2.0 ** np.arange(16)


TINT = 8.0  # of 255: how far colours may be apart on average …
SPOT = 28.0  # … and in any two by two of the pixels, where a mouth or a word may differ
SHARE = 0.3  # of how far the colours of one are from their own mean, since white on white differs in little
_NOISE = 1.0  # of 255: what a flat picture may be off all the same
_GAIN, _SHIFT = 1.33, 48.0  # of contrast and brightness, at most
_CLOSER = 0.95  # of each side

Colours = npt.NDArray[np.uint8]
_Values = npt.NDArray[np.float32]


def one_picture(a: Colours, b: Colours) -> npt.NDArray[np.bool_]:
    """Whether ``a[k]`` and ``b[k]``, uint8 [n side side 3], show the same."""
    first, second = a.astype(np.float32), b.astype(np.float32)
    same = _close(first, second)
    for left, right in ((_closer(first), second), (first, _closer(second))):
        same |= _close(left, right)
    return same


def _close(a: _Values, b: _Values) -> npt.NDArray[np.bool_]:
    """After the gain and shift, one each for all colours, that bring ``a`` nearest to ``b``."""
    count = len(a)
    x, y = a.reshape(count, -1), b.reshape(count, -1)
    middle_x, middle_y = x.mean(1, keepdims=True), y.mean(1, keepdims=True)
    x, y = x - middle_x, y - middle_y
    gain = ((x * y).sum(1, keepdims=True) / np.maximum((x * x).sum(1, keepdims=True), 1)).clip(
        1 / _GAIN, _GAIN
    )
    shift = middle_y - middle_x
    left_over = shift - shift.clip(-_SHIFT, _SHIFT)
    apart = np.abs((gain * x - y - left_over) / np.maximum(gain, 1)).reshape(count, SIDE, SIDE, 3).mean(3)
    spots = apart.reshape(count, SIDE // 2, 2, SIDE // 2, 2).mean((2, 4)).reshape(count, -1)
    spread = np.minimum(np.abs(x).mean(1), np.abs(y).mean(1))
    allowed = np.minimum(TINT, _NOISE + SHARE * spread)
    close: npt.NDArray[np.bool_] = (apart.mean((1, 2)) <= allowed) & (spots.max(1, initial=0) <= SPOT)
    return close


def _closer(values: _Values) -> _Values:
    """The middle of a glance, scaled up to all of it."""
    scale = _scaling()
    larger: _Values = np.einsum("ij,njkc,lk->nilc", scale, values, scale, optimize=True)
    return larger


@functools.cache
def _scaling() -> _Values:
    """``[side side]``: each of the new pixels between the two old ones that its middle lies between."""
    places = SIDE / 2 + (np.arange(SIDE) + 0.5 - SIDE / 2) * _CLOSER - 0.5
    weights = 1 - np.abs(places[:, None] - np.arange(SIDE))
    return np.asarray(weights.clip(0, 1), np.float32)
