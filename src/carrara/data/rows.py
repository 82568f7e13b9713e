"""What an importer hands over: a picture with its words, or the reason why there is none."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carrara.data.beside import Beside
    from carrara.data.sentence import Sentence

UNSTATED = "und"  # BCP 47's word for a language that nobody named
# ASCII alone: other letters without regard to case are among [a-z] too, and İ is two characters as a small letter.
LANGUAGE = re.compile(r"[a-z]{2,3}([-_][a-z0-9]{2,8})*", re.IGNORECASE | re.ASCII)
SPLITS = ("train", "held_out")
CAPTIONED_BY = (
    "captioned_by"  # the column of who made captions, if no person: "en:blip" and so on, spaces between
)
FLAGS = "flags"  # the column of words to filter by, spaces between
LEFT_OUT = "left_out"  # the flag of a picture that is neither trained nor measured on
MORE_CAPTIONS = "captions_more"  # the column of further captions, a JSON list

KEPT = "kept, but "  # how a remark on a picture begins that came in all the same


class BadPicture(ValueError):
    """These bytes give no picture; the message is the reason in a few words."""


@dataclass(slots=True)  # frozen, it would take four times as long to make
class Row:
    """A picture that a source offers; its bytes are read only when they are needed.

    ``read()`` gives the bytes, or raises OSError or BadPicture. ``captions`` maps a language ("de", "zh-tw",
    or UNSTATED) to a text. ``group`` names what must not be split apart (default: the picture alone);
    ``split`` is one of SPLITS where the source decides it. ``boxes`` is JSON that `boxes.canonical` reads, whose
    numbered labels have the names ``box_names`` and which are meant for a picture of the ``sides`` (width, height)
    that the source states; ``beside`` maps a word of `beside.KINDS` to a picture. ``url`` is
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


def caption_column(language: str) -> str:
    """The column of a language: "caption" where it is not stated, "caption_de" …; ValueError where it is none."""
    if not LANGUAGE.fullmatch(language):
        raise ValueError(f"{language!r} is no language code")
    return "caption" if language == UNSTATED else f"caption_{language.lower().replace('-', '_')}"


def caption_language(column: str) -> str | None:
    """The language of a caption column; None for any other column."""
    if column == "caption":
        return UNSTATED
    language = column.removeprefix("caption_")
    is_one = language != column and language == language.lower() and LANGUAGE.fullmatch(language)
    return language.replace("_", "-") if is_one else None


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


def content_id(data: bytes) -> str:
    """The name of a picture everywhere in Carrara: the SHA-256 of its bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def chosen_by_hash(group: str, share: float) -> bool:
    """Whether a group is in a random ``share`` in [0, 1] of all groups: by its name, so in any order."""
    return group_hash(group) < share * 2.0**64


def group_hash(group: str) -> int:
    """A 64-bit number that belongs to a group for good."""
    return int.from_bytes(hashlib.sha256(b"split:" + group.encode()).digest()[:8], "big")
