"""Pictures that belong to a picture: its map of classes, its depth, its edges, columns of their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from carrara.dataset.columns import KINDS
from carrara.errors import BadPicture

if TYPE_CHECKING:
    from torch import Tensor

    from carrara.geometry import SideOrSize
    from carrara.images.decode import Crop
    from carrara.images.tiff import Span


@dataclass(frozen=True)
class Beside:
    """A picture that a source offers beside another; ``read()`` as that of a `row.Row`."""

    source: str
    read: Callable[[], bytes]


def check(name: str, data: bytes, width: int, height: int, span: Span | None = None) -> tuple[str, ...]:
    """Decodes all of it; notes on what of it is clipped. BadPicture where it is none, or no such thing as belongs in
    the column ``name``, or has another ratio than the picture of this size (by more than a pixel)."""
    from carrara.images.decode import class_ids, look

    if KINDS[name].values == "numbers":
        own_height, own_width = class_ids(data).shape
        notes: tuple[str, ...] = ()
    else:
        own_width, own_height, _, _, notes = look(data, span, managed=False)
        read(name, data, 1, span=span)
    if (
        abs(own_width - width * own_height / height) >= 1
        and abs(own_height - height * own_width / width) >= 1
    ):
        raise BadPicture(
            f"is {own_width} x {own_height}, which has not the ratio of its picture of {width} x {height}"
        )
    return notes


def read(name: str, data: bytes, size: SideOrSize, crop: Crop = "centre", span: Span | None = None) -> Tensor:
    """The picture of the column ``name`` at a size, cropped as its picture is. Raises BadPicture.

    Numbers come as int64 ``[1 h w]`` by the nearest, depth as uint16 ``[1 h w]`` in 0 … 65535, edges as uint8
    ``[1 h w]``, the others as uint8 ``[3 h w]``. ``span`` as in `decode.decode`; none are colours, so that what a
    file says of its colours is not followed.
    """
    import numpy as np
    import torch

    from carrara.images.decode import class_ids, pixels

    kind = KINDS[name]
    if kind.values == "numbers":
        return torch.from_numpy(class_ids(data, size, crop=crop).astype(np.int64))[None]
    return pixels(data, size, kind.channels, bits=kind.bits, crop=crop, span=span, managed=False)


def mirror(name: str, pictures: Tensor) -> Tensor:
    """Pictures ``[b c h w]`` of the column ``name`` as those of mirrored pictures: a normal that pointed to the right
    points to the left. ValueError for one whose sides nobody can tell."""
    import torch

    if (how := KINDS[name].mirrored if name in KINDS else "as seen") == "swaps sides":
        raise ValueError(f"a mirrored {name} has its left and right swapped")
    bits = (
        pictures.view(torch.int16) if pictures.dtype == torch.uint16 else pictures
    )  # which cannot be turned
    turned = bits.flip(-1)
    if how == "negates red":
        turned[:, 0] = 255 - turned[:, 0]
    return turned.view(pictures.dtype)
