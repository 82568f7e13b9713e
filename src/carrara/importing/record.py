"""The record of a row: what the table gets of it, its pictures decoded once to be sure of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from carrara.dataset.columns import (
    CAPTIONED_BY,
    KEPT,
    LANGUAGE,
    MORE_CAPTIONS,
    caption_column,
    content_id,
    id_column,
)
from carrara.dataset.commits import size_of
from carrara.dataset.known_rows import Record
from carrara.dataset.picture_columns import check
from carrara.dataset.sentence import BY
from carrara.errors import BadPicture, one_line
from carrara.images.boxes import COLUMN, canonical
from carrara.images.decode import look, orientation
from carrara.importing.caption_files import MAX_TEXT
from carrara.importing.caption_language import with_language
from carrara.importing.row import Rejected, Row, Unkept
from carrara.text import tidy

if TYPE_CHECKING:
    from carrara.importing.caption_language import Spoken


class Looked(NamedTuple):
    """The record of a row, and what of the row could not be used."""

    record: Record
    left_out: list[Rejected]


Item = Row | Rejected


def look_in_part(part: list[Item], spoken: Spoken | None, most: int) -> list[Looked | Rejected]:
    """What comes of looking at the first of them, which together have at least ``most`` bytes, or at all."""
    found, size = list[Looked | Rejected](), 0
    for item in part:
        if size >= most:
            break
        found.append(look_with_language(item, spoken))
        size += record_size(found[-1])
    return found


def record_size(looked: Looked | Rejected) -> int:
    return size_of(looked.record) if isinstance(looked, Looked) else 0


def look_with_language(item: Item, spoken: Spoken | None) -> Looked | Rejected:
    return look_at(with_language(item, spoken) if spoken is not None and isinstance(item, Row) else item)


def look_at(item: Row | Rejected) -> Looked | Rejected:
    """The record of a row, its pictures decoded once to be sure of them."""
    if isinstance(item, Rejected):
        return item
    try:
        data = item.read()
        width, height, mode, measured, notes = look(data, item.spans.get("image"))
    except Unkept:  # the disk is full: no fault of this picture
        raise
    except BadPicture as error:
        return Rejected(item.source, str(error))
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return Rejected(item.source, f"cannot be read: {one_line(error)}")
    more, left_out = _more(item, width, height)
    if item.boxes is not None:
        turn = orientation(data) if item.sides and "rotated" in measured else 1
        try:
            more[COLUMN], note = canonical(item.boxes, width, height, item.box_names, item.sides, turn)
            notes += (note,) if note else ()
        except ValueError as error:
            left_out.append(Rejected(item.source, f"its boxes: {str(error)[:200]}"))
    left_out += [Rejected(item.source, f"{KEPT}{note}") for note in notes]
    captions = {}
    for language, text in ((language, tidy(raw)) for language, raw in item.captions.items()):
        if text and LANGUAGE.fullmatch(language):
            captions[caption_column(language)] = text
        elif text:
            left_out.append(Rejected(item.source, f"a caption in {language!r}, which is no language code"))
    for column in [name for name, text in captions.items() if len(text) > MAX_TEXT]:
        reason = f"a {column} of {len(captions.pop(column))} letters; at most {MAX_TEXT} are taken"
        left_out.append(Rejected(item.source, reason))
    if url := tidy(item.url):
        more["url"] = url
    if flags := " ".join(sorted({*item.flags, *measured})):
        more["flags"] = flags
    if item.captioned_by:
        more[CAPTIONED_BY] = item.captioned_by
    if further := [text for caption in item.more if (text := tidy(caption))]:
        more[MORE_CAPTIONS] = json.dumps(further, ensure_ascii=False)
    record = {
        "id": content_id(data),
        "image": data,
        "width": width,
        "height": height,
        "mode": mode,
        "label": tidy(item.label),
        "group": tidy(item.group),
        "category": tidy(item.category),
        "split": item.split,
        "source": item.source,
        "licence": tidy(item.licence),
        **captions,
        **more,
    }
    if item.sentence is not None and not captions and (text := tidy(item.sentence.filled(record))):
        language = item.sentence.language
        record |= {caption_column(language): text[:MAX_TEXT], CAPTIONED_BY: f"{language}:{BY}"}
    return Looked(record, left_out)


def _more(item: Row, width: int, height: int) -> tuple[Record, list[Rejected]]:
    """The pictures beside a picture of this size, and what of them cannot be used."""
    found: Record = {}
    left_out = []
    for name, beside in item.beside.items():
        try:
            data = beside.read()
            notes = check(name, data, width, height, item.spans.get(name))
        except BadPicture as error:
            left_out.append(Rejected(beside.source, f"a {name} that cannot be used: {error}"))
        except OSError as error:
            left_out.append(Rejected(beside.source, f"cannot be read: {one_line(error)}"))
        else:
            found |= {name: data, id_column(name): content_id(data)}
            left_out += [Rejected(beside.source, f"{KEPT}{note}") for note in notes]
    return found, left_out
