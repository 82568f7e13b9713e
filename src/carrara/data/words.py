"""What a source says of one picture, by the names that the columns of tables have in the wild."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from carrara.data.rows import CAPTIONED_BY, MORE_CAPTIONS, SPLITS, UNSTATED, tidy
from carrara.errors import UserError

LANGUAGE = re.compile(r"[a-z]{2,3}([-_][a-z0-9]{2,8})*", re.IGNORECASE)
HELD_OUT = ("held_out", "held-out", "heldout", "test", "val", "valid", "validation", "dev")
BOXES = ("boxes", "objects")  # the columns of a table that may say them
TEXTS = ("text", "caption", "captions")
LICENCES = ("licence", "license")
LANGUAGES = ("language", "lang")
_UNKNOWN = (
    "und",
    "nolang",
    "unknown",
    "none",
    "unk",
)  # languages of which somebody said that they are not known
COLUMNS = (
    *TEXTS, *LANGUAGES, "label", "split", "group", "category", *LICENCES, *BOXES, "url", "flags", MORE_CAPTIONS,
    CAPTIONED_BY, "nsfw", "punsafe", "pwatermark",
)  # fmt: skip
_UNSAFE, _WATERMARKED = 0.5, 0.8  # from which LAION's two probabilities count as a claim
_FLAGGING = ("flags", "nsfw", "punsafe", "pwatermark")
_FLAG = re.compile(r"[\w:.-]{1,64}")


@dataclass(slots=True)  # frozen, it would take four times as long to make
class Words:
    """What is said about one picture; ``unlabelled`` says that it has no class, whatever its folder is called."""

    captions: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    group: str | None = None
    split: str | None = None
    licence: str | None = None
    boxes: str | None = None
    category: str | None = None
    url: str | None = None
    flags: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    captioned_by: str | None = None
    settled: bool = False
    unlabelled: bool = False

    def over(self, other: Words) -> Words:
        """These words, with another's where these say nothing; a text that is said here is not said twice."""
        if other == NOTHING:
            return self
        mine = {*self.captions.values(), *self.more}
        captions = {k: v for k, v in other.captions.items() if k != UNSTATED or v not in mine}
        return Words(
            {**captions, **self.captions},
            self.label or (None if self.unlabelled else other.label),
            self.group or other.group,
            self.split or other.split,
            self.licence or other.licence,
            self.boxes or other.boxes,
            self.category or other.category,
            self.url or other.url,
            tuple(sorted({*self.flags, *other.flags})),
            self.more or other.more,
            self.captioned_by or other.captioned_by,
            self.settled or other.settled,
            self.unlabelled or other.unlabelled,
        )

    def told(self, licence: str | None) -> dict[str, Any]:
        """The fields of a `rows.Row` that words fill; ``licence`` is that of pictures that state none."""
        return {
            "captions": self.captions,
            "label": self.label,
            "group": self.group,
            "category": self.category,
            "split": self.split,
            "licence": self.licence or licence,
            "boxes": self.boxes,
            "url": self.url,
            "flags": self.flags,
            "more": self.more,
            "captioned_by": self.captioned_by,
            "settled": self.settled,
        }


NOTHING = Words()


def row_words(row: Mapping[str, str | None], where: str) -> Words:
    """The words in one row of a table by its columns' names, in any case; UserError where its split is none."""
    said = {name.lower(): value for name, value in row.items()}
    texts = _texts(_first(said, TEXTS))
    spoken = (tidy(_first(said, LANGUAGES)) or "").lower().replace("_", "-")
    unknown = spoken in _UNKNOWN
    captions: dict[str, str | None] = {
        spoken if spoken and LANGUAGE.fullmatch(spoken) and not unknown else UNSTATED: texts[0]
        if texts
        else None
    }
    for column, value in said.items():
        if column.startswith("caption_"):
            language = column.removeprefix("caption_").replace("_", "-")
            if LANGUAGE.fullmatch(language):
                captions[language] = value
    split = tidy(said.get("split"))
    if split is not None:
        split = "held_out" if split.lower() in HELD_OUT else split.lower()
        if split not in SPLITS:
            raise UserError(f"{where} has split {said['split']!r}; expected 'train' or 'held_out'")
    label = tidy(said.get("label"))
    return Words(
        {language: text for language, value in captions.items() if (text := tidy(value))},
        label=label,
        group=tidy(said.get("group")),
        category=tidy(said.get("category")),
        split=split,
        licence=tidy(_first(said, LICENCES)),
        boxes=next((text for name in BOXES if name in said and (text := tidy(said[name]))), None),
        url=tidy(said.get("url")),
        flags=_flags(said),
        more=tuple(text for text in (*texts[1:], *_texts(said.get(MORE_CAPTIONS))) if text),
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
    """A value of a table as text; a whole number is one even where holes made its column floats. None for none."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        whole = int(value) if value.is_integer() else value
        return None if math.isnan(value) else str(whole)
    if isinstance(value, bytes):  # text that its writer did not declare as such
        return value.decode("utf-8", "backslashreplace")
    return json.dumps(value, default=str) if isinstance(value, int | list | dict) else str(value)


def json_row(text: str | bytes) -> dict[str, str | None]:
    """The values of a JSON object as texts; null only where it says that there is no label. ValueError for others."""
    try:
        row: Any = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError("expected {…}")
    return {
        key: v if isinstance(v, str | None) else json.dumps(v)
        for key, v in row.items()
        if v is not None or key.lower() == "label"
    }


def split_named(path: str) -> str | None:
    """The split that a file's name, or else its folder's, begins with, e.g. train-00000-of-00004."""
    for part in reversed(path.lower().split("/")):
        if found := re.match(rf"(train|{'|'.join(HELD_OUT)})(?![a-z])", part):
            return "train" if found[1] == "train" else "held_out"
    return None


def _texts(value: str | None) -> list[str]:
    """A text, or the texts of a JSON list."""
    if value and value.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
            if isinstance(found, list) and all(isinstance(text, str) for text in found):
                return found
    return [value] if value else []


def _flags(said: Mapping[str, str | None]) -> tuple[str, ...]:
    """What the source says one may want to filter by; LAION's columns among it."""
    if said.keys().isdisjoint(_FLAGGING):
        return ()
    flags = set(_FLAG.findall(said.get("flags") or ""))
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
