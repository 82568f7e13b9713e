"""Thumbnails, and what else a browser gets to see of a picture: its record, its bytes as given, and it as it is
seen, in any size."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from carrara.dataset.columns import DERIVED_KEY, DERIVED_SHAPE, KINDS, MORE_CAPTIONS, UNSTATED, id_column
from carrara.dataset.source_places import places_of
from carrara.errors import UserError
from carrara.images import boxes
from carrara.images.decode import class_ids, decode
from carrara.images.header import is_heic
from carrara.images.tiff import Span

if TYPE_CHECKING:
    from carrara.dataset.dataset import Dataset

SIDES = (96, 192, 384, 1024)  # of a picture as it is seen; only these, so that a browser keeps few
_PIXELATED = 128  # up to this side nothing is lost on the way
_STARTS = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
    b"II+\0": "image/tiff",
    b"MM\0+": "image/tiff",
}
_APART = ("id", "image", "boxes", MORE_CAPTIONS)  # columns that a record shows in a way of their own


class NotThere(LookupError):
    """The data set has no such picture."""


def kind_of(data: bytes) -> str:
    """The media type of a picture's bytes; of anything else, that of no type, so that a browser runs nothing."""
    if data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    if is_heic(data):
        return "image/heic"
    return next(
        (kind for start, kind in _STARTS.items() if data.startswith(start)), "application/octet-stream"
    )


def as_given(dataset: Dataset, row: int, name: str, column: str = "image") -> bytes:
    """The bytes of the picture, or of the one beside it in ``column``. NotThere where row ``row`` is not ``name``."""
    if not 0 <= row < len(dataset) or column not in dataset.columns:
        raise NotThere(row)
    found = dataset.take([row], ["id", column])
    data = found[column][0]
    if found["id"][0] != name or data is None:
        raise NotThere(row)
    return bytes(data)


def seen(data: bytes, side: int, span: Span | None = None) -> bytes:
    """A WebP of the picture upright and in sRGB, at most ``side`` long. Raises BadPicture."""
    picture = decode(data, channels=3, short_side=side // 2, span=span)  # at least the side, often twice
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return _webp(picture)


def seen_beside(data: bytes, column: str, side: int, span: Span | None = None) -> bytes:
    """The picture beside: numbers as a colour each, zero black; depth and the like as they are. Raises BadPicture."""
    if KINDS[column].values != "numbers":
        return seen(data, side, span)
    numbers = class_ids(data)
    hue = np.arange(65536, dtype=np.float64) * 0.381966 % 1  # the golden angle keeps neighbours apart
    wheel = np.stack([hue + third for third in (0, 1 / 3, 2 / 3)], axis=1)
    colours = np.rint(150 + 100 * np.cos(2 * np.pi * wheel)).astype(np.uint8)
    colours[0] = 0
    picture = Image.fromarray(colours[numbers])
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.NEAREST)
    return _webp(picture, lossless=True)


def _webp(picture: Image.Image, *, lossless: bool = False) -> bytes:
    out = io.BytesIO()
    small = max(picture.size) <= _PIXELATED
    picture.convert("RGB").save(out, "WEBP", lossless=lossless or small, quality=85, method=2)
    return out.getvalue()


def record(dataset: Dataset, row: int) -> dict[str, Any]:
    """All that is known of a picture, ready for JSON. UserError where there is no such row."""
    if not 0 <= row < len(dataset):
        raise UserError(f"there is no row {row}: expected a number from 0 to {len(dataset) - 1}")
    derived = {f.name: f.metadata for f in dataset.schema if f.metadata and DERIVED_KEY in f.metadata}
    pictures = [name for name in KINDS if name in dataset.columns]
    spoken = {column: language for language, column in dataset.captions.items()}
    hidden = {*_APART, *derived, *pictures, *map(id_column, pictures), *spoken}
    plain = [name for name in dataset.columns if name not in hidden]
    wanted = [name for name in ("id", boxes.COLUMN, MORE_CAPTIONS) if name in dataset.columns]
    there = [id_column(name) for name in pictures]
    told = {
        name: values[0] for name, values in dataset.take([row], [*wanted, *plain, *spoken, *there]).items()
    }
    captions: list[dict[str, Any]] = [
        {"language": lang, "text": told[c]} for c, lang in spoken.items() if told[c] is not None
    ]
    further = told.get(MORE_CAPTIONS)
    captions += [
        {"language": UNSTATED, "text": text, "further": True}
        for text in (json.loads(further) if further else [])
    ]
    found = boxes.parse(told.get(boxes.COLUMN))
    (told["from"],) = places_of(dataset, [row])
    return {
        "row": row,
        "id": told["id"],
        "captions": captions,
        "boxes": None if found is None else [dataclasses.asdict(box) for box in found],
        "beside": [name for name in pictures if told[id_column(name)] is not None],
        "columns": [
            {"name": name, "value": value if isinstance(value, str | int) else str(value)}
            for name in [*plain, "from"]
            if (value := told[name]) is not None
            and not isinstance(value, bytes | list | dict)
            and value != told["id"]
        ],
        "derived": [{"name": name, "made": _made(metadata)} for name, metadata in derived.items()],
        "version": dataset.version,
    }


def _made(metadata: dict[bytes, bytes]) -> str:
    """A derived column in a few words: by whom, and its shape."""
    key = json.loads(metadata[DERIVED_KEY])
    shape = json.loads(metadata.get(DERIVED_SHAPE, b"[]"))
    by = key.get("embedder") or key.get("autoencoder") or ""
    of = f"of {key['of']}" if "of" in key else ""
    size = " × ".join(map(str, shape))
    return ", ".join(part for part in (f"by {str(by)[:40]}" if by else "", of, size) if part)
