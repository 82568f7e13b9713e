"""A row: what an importer hands over, a picture with its words, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carrara.dataset.picture_columns import Beside
    from carrara.dataset.sentence import Sentence


class Unkept(OSError):
    """What was downloaded could not be put down, or not be read again: the disk's fault, and no picture's."""


@dataclass(slots=True)  # frozen, it would take four times as long to make
class Row:
    """A picture that a source offers; its bytes are read only when they are needed.

    ``read()`` gives the bytes, or raises OSError or BadPicture. ``captions`` maps a language ("de", "zh-tw",
    or UNSTATED) to a text. ``group`` names what must not be split apart (default: the picture alone);
    ``split`` is one of SPLITS where the source decides it. ``boxes`` is JSON that `boxes.canonical` reads, whose
    numbered labels have the names ``box_names`` and which are meant for a picture of the ``sides`` (width, height)
    that the source states; ``beside`` maps a word of `columns.KINDS` to a picture. ``url`` is
    where it was downloaded from; ``flags`` are single words that one may want to filter by. ``more`` are further
    captions, in the language of the first; ``captioned_by`` is as CAPTIONED_BY has it; ``settled`` says
    that nobody knows the language of an UNSTATED one. ``spans`` are those of `ranges`, by column; ``sentence`` makes
    a caption where there is none.
    """

    source: str
    read: Callable[[], bytes]
    captions: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    group: str | None = None
    category: str | None = None
    split: str | None = None
    licence: str | None = None
    boxes: str | None = None
    box_names: tuple[str, ...] = ()
    sides: tuple[float, float] | None = None
    beside: Mapping[str, Beside] = field(default_factory=dict)
    url: str | None = None
    flags: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    captioned_by: str | None = None
    settled: bool = False
    spans: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sentence: Sentence | None = None


@dataclass(frozen=True)
class Rejected:
    """Something in the source that does not become a row, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """A look at a source that opens no picture: how many pictures `rows` will give, and a digest.

    Two surveys with the same digest promise the same rows in the same order.
    """

    total: int
    digest: str
