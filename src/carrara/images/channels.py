"""How many channels and bits pictures have, and whether they can become those that a recipe asks for."""

from __future__ import annotations

_ONE = ("1", "L", "I", "F")
_TWO = ("LA", "La", "LX")
_FOUR = ("RGBA", "RGBa", "PA", "RGBX")


def channels_of(mode: str) -> int:
    """The channels of a picture by its ``mode`` in the table: "L" 1, "LA" 2, "RGB;16" 3, "I;16 x 5" 5."""
    kind, _, pages = mode.partition(" x ")
    kind = kind.partition(";")[0]
    bands = 1 if kind in _ONE else 2 if kind in _TWO else 4 if kind in _FOUR else 3
    return bands * int(pages or 1)


def bits_of(mode: str) -> int:
    """Its bits a channel: 16, or 8 (also for fewer)."""
    kind = mode.partition(" x ")[0]
    return 16 if ";" in kind or kind in ("I", "F") else 8


def has_more(mode: str) -> bool:
    """Whether a picture has a sample beside its colours that is no transparency, such as near infrared."""
    return mode.partition(";")[0].endswith("X")


def can_become(mode: str, channels: int) -> bool:
    """Whether a picture can have ``channels``: grey, colour and alpha become one another, a stack stays one."""
    kind, _, pages = mode.partition(" x ")
    if pages and channels_of(kind) == 1:
        return int(pages) == channels
    # Pages in colour are a document as well as a stack: of few channels, the first page is the picture.
    return channels <= 4 or channels_of(mode) == channels
