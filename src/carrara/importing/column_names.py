"""What a source says of one picture, by the names that the columns of tables have in the wild."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from carrara.dataset.columns import CAPTIONED_BY, LANGUAGE, MORE_CAPTIONS, SPLITS, UNSTATED
from carrara.errors import UserError
from carrara.text import tidy

HELD_OUT = ("held_out", "held-out", "heldout", "test", "val", "valid", "validation", "dev")
BOXES = ("boxes", "objects")  # the columns of a table that may say them
TEXTS = (
    "text",
    "caption",
    "captions",
    "alt_text",
    "alt",
    "top_caption",
)  # the first that says one goes before
LICENCES = ("licence", "license")
LANGUAGES = ("language", "lang")
SIDES = ("width", "height")  # of the picture that boxes in pixels are meant for
_UNKNOWN = (
    "und",
    "nolang",
    "unknown",
    "none",
    "unk",
)  # languages of which somebody said that they are not known
COLUMNS = (
    *TEXTS, *LANGUAGES, "label", "split", "group", "category", *LICENCES, *BOXES, "url", "flags", MORE_CAPTIONS,
    CAPTIONED_BY, "nsfw", "punsafe", "pwatermark", *SIDES,
)  # fmt: skip
_UNSAFE, _WATERMARKED = 0.5, 0.8  # from which LAION's two probabilities count as a claim
_FLAGGING = ("flags", "nsfw", "punsafe", "pwatermark")
_FLAG = re.compile(r"(?!(?:true|false|null|none|nan)\b)(?=.*[^\W\d])[\w:.-]{1,64}", re.IGNORECASE)


@dataclass(slots=True)  # frozen, it would take four times as long to make
class Words:
    """What is said about one picture; ``unlabelled`` says that it has no class, whatever its folder is called."""

    captions: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    group: str | None = None
    split: str | None = None
    licence: str | None = None
    boxes: str | None = None
    sides: tuple[float, float] | None = None  # as of a `row.Row`
    category: str | None = None
    url: str | None = None
    flags: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    captioned_by: str | None = None
    settled: bool = False
    unlabelled: bool = False

    def over(self, other: Words) -> Words:
        """These words, with another's where these say nothing; a caption that these have another of in its language
        becomes one of ``more``. A text is said once, and in the language that either states."""
        if other == NOTHING:
            return self
        captions, more = dict(self.captions), [*self.more]
        for language, text in other.captions.items():
            if language == UNSTATED and text in captions.values():
                continue
            if captions.get(UNSTATED) == text:
                del captions[UNSTATED]
            more += [text] if captions.setdefault(language, text) != text else []
        with_boxes = self if self.boxes else other
        return Words(
            captions,
            self.label or (None if self.unlabelled else other.label),
            self.group or other.group,
            self.split or other.split,
            self.licence or other.licence,
            with_boxes.boxes,
            with_boxes.sides,
            self.category or other.category,
            self.url or other.url,
            tuple(sorted({*self.flags, *other.flags})),
            _further([*more, *other.more], captions),
            self.captioned_by or other.captioned_by,
            self.settled or other.settled,
            self.unlabelled or other.unlabelled,
        )

    def contradicts(self, other: Words) -> list[str]:
        """What another says that `over` leaves out, as these say otherwise."""
        return [
            name
            for name in ("label", "group", "split", "licence", "boxes", "category", "url")
            if (mine := getattr(self, name)) and getattr(other, name) not in (None, mine)
        ]

    def told(self, licence: str | None) -> dict[str, Any]:
        """The fields of a `row.Row` that words fill; ``licence`` is that of pictures that state none."""
        return {
            "captions": self.captions,
            "label": self.label,
            "group": self.group,
            "category": self.category,
            "split": self.split,
            "licence": self.licence or licence,
            "boxes": self.boxes,
            "sides": self.sides,
            "url": self.url,
            "flags": self.flags,
            "more": self.more,
            "captioned_by": self.captioned_by,
            "settled": self.settled,
        }


NOTHING = Words()


def row_words(row: Mapping[str, str | None], where: str) -> Words:
    """The words in one row of a table by its columns' names, in any case; UserError where its split is none."""
    said: dict[str, str | None] = {}
    for name, value in row.items():
        known = name.lower() if name.isascii() else name
        said[known] = said.get(known) or value
    found = [text for name in TEXTS for n, v in row.items() if n.lower() == name for text in _texts(v)]
    texts = [text for raw in found if (text := tidy(raw))]
    spoken = (tidy(_first(said, LANGUAGES)) or "").lower().replace("_", "-")
    unknown = spoken in _UNKNOWN
    stated = spoken and LANGUAGE.fullmatch(spoken) and not unknown
    captions = {spoken if stated else UNSTATED: texts[0]} if texts else {}
    for column, value in said.items():
        if column.startswith("caption_") and (text := tidy(value)):
            language = column.removeprefix("caption_").replace("_", "-")
            if LANGUAGE.fullmatch(language):
                captions[language] = text
    split = tidy(said.get("split"))
    if split is not None:
        split = "held_out" if split.lower() in HELD_OUT else split.lower()
        if split not in SPLITS:
            raise UserError(f"{where} has split {said['split']!r}; expected 'train' or 'held_out'")
    label = tidy(said.get("label"))
    return Words(
        captions,
        label=label,
        group=tidy(said.get("group")),
        category=tidy(said.get("category")),
        split=split,
        licence=tidy(_first(said, LICENCES)),
        boxes=next((text for name in BOXES if name in said and (text := tidy(said[name]))), None),
        sides=_sides(said),
        url=tidy(said.get("url")),
        flags=_flags(said),
        more=_further([*texts, *_texts(said.get(MORE_CAPTIONS))], captions),
        captioned_by=tidy(said.get(CAPTIONED_BY)),
        settled=unknown,
        unlabelled="label" in said and said["label"] is None,
    )


def _first(said: Mapping[str, str | None], names: tuple[str, ...]) -> str | None:
    """The first of these that says something."""
    for name in names:
        if value := said.get(name):
            return value
    return None


def plain(value: Any) -> str | None:
    """A value of a table as text; a whole number is one even where holes made its column floats. None for none.

    UnicodeDecodeError for bytes that are no text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        whole = int(value) if value.is_integer() else value
        return None if math.isnan(value) else str(whole)
    if isinstance(value, bytes):  # text that its writer did not declare as such
        return value.decode("utf-8")
    return json.dumps(value, default=str) if isinstance(value, int | list | dict) else str(value)


def json_row(text: str | bytes) -> dict[str, str | None]:
    """The values of a JSON object as texts; null only where it says that there is no label. ValueError for others."""
    try:
        # Holes that pandas left are NaN.
        row: Any = json.loads(text, object_pairs_hook=_each_once, parse_constant=lambda word: None)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError("expected {…}")
    return {
        key: v if isinstance(v, str | None) else json.dumps(v)
        for key, v in row.items()
        if v is not None or key.lower() == "label"
    }


def _texts(value: str | None) -> list[str]:
    """A text, or the texts of a JSON list. UserError for JSON that holds anything else."""
    if value and value.startswith(("[", "{")):
        found: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
        if isinstance(found, list) and all(text is None or isinstance(text, str) for text in found):
            return [text for text in found if text]
        if isinstance(found, list | dict):
            raise UserError(f"a text or a list of texts is expected, and not {value[:60]}")
    return [value] if value else []


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if found.setdefault(name, value) != value:
            raise ValueError(f"{name!r} stands twice in it")
    return found


def _further(texts: Iterable[str], captions: Mapping[str, str]) -> tuple[str, ...]:
    """Those that are no caption yet, each once."""
    return tuple(dict.fromkeys(text for text in texts if text and text not in captions.values()))


def _sides(said: Mapping[str, str | None]) -> tuple[float, float] | None:
    """The width and height of a picture that the source says, where both are some."""
    with contextlib.suppress(ValueError):
        width, height = (float(said.get(name) or "nan") for name in SIDES)
        if 0 < width < math.inf and 0 < height < math.inf:
            return width, height
    return None


def _flags(said: Mapping[str, str | None]) -> tuple[str, ...]:
    """What the source says one may want to filter by; LAION's columns among it."""
    if said.keys().isdisjoint(_FLAGGING):
        return ()
    flags = set[str]()
    with contextlib.suppress(UserError):  # an object of what is true or false is another program's
        words = (word for text in _texts(said.get("flags")) for word in re.split(r"[\s,;]+", text))
        flags = set(filter(_FLAG.fullmatch, words))
    if (said.get("nsfw") or "").lower() in ("nsfw", "unsafe", "true", "yes", "1"):
        flags.add("nsfw_claimed")
    for name, enough, flag in (
        ("punsafe", _UNSAFE, "nsfw_claimed"),
        ("pwatermark", _WATERMARKED, "watermark_claimed"),
    ):
        with contextlib.suppress(ValueError):
            if float(said.get(name) or "nan") >= enough:
                flags.add(flag)
    return tuple(sorted(flags))
