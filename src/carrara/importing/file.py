"""A file of a source, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from carrara.errors import BadPicture
from carrara.images.header import MAX_BYTES


class File(NamedTuple):
    """A file that can be read: its size, what changes when its bytes do (a time, a checksum), and how to open it.

    ``open()`` raises OSError or BadPicture.
    """

    size: int
    stamp: int
    open: Callable[[], BinaryIO]

    def read(self) -> bytes:
        """All bytes; BadPicture where they are too many."""
        if self.size > MAX_BYTES:
            raise BadPicture(f"{self.size} bytes; at most {MAX_BYTES} are read")
        with self.open() as file:
            # As many as there should be: Python makes room for all that it is asked for.
            data = file.read(self.size + 1)
            if self.size < len(data) <= MAX_BYTES:  # it has grown
                data += file.read(MAX_BYTES + 1 - len(data))
        if len(data) > MAX_BYTES:
            raise BadPicture(f"more than the {MAX_BYTES} bytes that are read")
        return data
