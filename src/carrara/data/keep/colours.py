"""Whether two glances show one picture: their colours compared after brightness and contrast are fitted, also where
one of the two is cut a little closer."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from carrara.data.perceptual_hash import SIDE

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
