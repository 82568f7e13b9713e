"""Text as it is stored and shown: in Unicode's NFC, without space around it, printable."""

from __future__ import annotations

import unicodedata


def printable(name: str) -> str:
    """A file name as valid Unicode, composed: bytes that are not UTF-8 are written as \\xNN."""
    if name.isascii():
        return name
    try:
        return nfc(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
    except UnicodeEncodeError:  # half a surrogate pair that stands for no byte
        return nfc(name.encode("utf-8", "backslashreplace").decode())


def tidy(text: str | None) -> str | None:
    """A text in Unicode's NFC without space around it; None where nothing is left."""
    if text is None:
        return None
    if not text.isascii():
        # Half a surrogate pair (JSON can hold one) is no text that could be stored.
        text = nfc(text.encode("utf-8", "backslashreplace").decode("utf-8"))
    return text.strip() or None


def nfc(text: str) -> str:
    """The same letters, composed (é as one code point): so texts, names and what is asked for are compared."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
