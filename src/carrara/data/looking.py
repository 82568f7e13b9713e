"""Pictures of a source looked at in its order, several at a time, and never more of them in memory than is said.

Decoding lets go of Python's lock, so every core that this process may use has a picture to decode.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from carrara.data.apart import Lookers
from carrara.data.beside import check, id_column
from carrara.data.boxes import COLUMN, canonical
from carrara.data.captions import MAX_TEXT
from carrara.data.fetching import Unkept
from carrara.data.known import Record
from carrara.data.languages import Spoken, with_language
from carrara.data.pictures import look, orientation
from carrara.data.rows import (
    CAPTIONED_BY,
    KEPT,
    LANGUAGE,
    MORE_CAPTIONS,
    BadPicture,
    Rejected,
    Row,
    caption_column,
    content_id,
    tidy,
)
from carrara.data.sentence import BY
from carrara.data.table_files import size_of

THREADS = max(
    1, min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
)
PROCESSES = 8  # who writes the table keeps up with no more
TOGETHER = 8  # handing over costs about as much as a small picture
TOGETHER_APART = 32  # … and to another process twice that
MANY = 4000  # pictures, from which starting processes for them is worth it
HELD = 256 * 2**20  # bytes of pictures that wait for their turn, from which no further one is read
PART = 32 * 2**20  # bytes of those that are looked at together, from which the others wait


class Looked(NamedTuple):
    """The record of a row, and what of the row could not be used."""

    record: Record
    left_out: list[Rejected]


Item = Row | Rejected


def looked_at(
    items: Iterable[Item], *, spoken: Spoken | None, apart: bool = False
) -> Iterator[tuple[Item, Looked | Rejected]]:
    """Each item in order with what came of looking at it; what is ``spoken`` helps to find the languages of captions,
    which stay as given if it is None.

    ``apart`` looks at them in processes of their own, which takes a second or two to start: rows that can be pickled.
    """
    held = _Held()
    lookers = Lookers(min(THREADS, PROCESSES)) if apart and THREADS > 1 else None
    threads = THREADS if lookers is None else min(THREADS, PROCESSES)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="carrara-import")
    waiting: deque[tuple[list[Item], Future[list[Looked | Rejected]]]] = deque()
    left = iter(items)
    parts = enumerate(
        iter(lambda: list(itertools.islice(left, TOGETHER if lookers is None else TOGETHER_APART)), [])
    )

    def in_turn() -> Iterator[tuple[Item, Looked | Rejected]]:
        part, future = waiting.popleft()
        found = future.result()
        for item, looked in zip(part, found, strict=False):
            yield item, looked
            held.less(_size(looked))
        for item in part[len(found) :]:  # too large to wait together
            yield item, _look(item, spoken) if lookers is None else lookers.look([item], spoken, PART)[0]
        held.next()

    try:
        for turn, part in parts:
            waiting.append((part, pool.submit(_look_at_some, part, turn, held, spoken, lookers)))
            if len(waiting) > 3 * threads:
                yield from in_turn()
        while waiting:
            yield from in_turn()
    finally:
        held.stop()
        pool.shutdown(cancel_futures=True)
        if lookers is not None:
            lookers.close()


class _Held:
    """How many bytes wait for their turn: who would add to too many waits, unless it is the next one's turn."""

    def __init__(self) -> None:
        self._bytes, self._turn, self._stopped = 0, 0, False
        self._changed = threading.Condition()

    def wait(self, turn: int) -> bool:
        """Until there is room for more; False where nobody wants it any longer."""
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < HELD or self._turn == turn or self._stopped)
            return not self._stopped

    def more(self, size: int) -> None:
        with self._changed:
            self._bytes += size

    def less(self, size: int) -> None:
        with self._changed:
            full = self._bytes >= HELD
            self._bytes -= size
            if full and self._bytes < HELD:
                self._changed.notify_all()

    def next(self) -> None:
        """The turn of the next."""
        with self._changed:
            self._turn += 1
            if self._bytes >= HELD:
                self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def _look_at_some(
    part: list[Item], turn: int, held: _Held, spoken: Spoken | None, lookers: Lookers | None
) -> list[Looked | Rejected]:
    """What came of looking at the first of them: at all, unless they are large."""
    if lookers is not None:
        found = lookers.look(part, spoken, PART) if held.wait(turn) else []
        held.more(sum(map(_size, found)))
        return found
    found, size = [], 0
    for item in part:
        if size >= PART or not held.wait(turn):
            break
        found.append(_look(item, spoken))
        size += _size(found[-1])
        held.more(_size(found[-1]))
    return found


def look_in_part(part: list[Item], spoken: Spoken | None, most: int) -> list[Looked | Rejected]:
    """What comes of looking at the first of them, which together have at least ``most`` bytes, or at all."""
    found, size = list[Looked | Rejected](), 0
    for item in part:
        if size >= most:
            break
        found.append(_look(item, spoken))
        size += _size(found[-1])
    return found


def _size(looked: Looked | Rejected) -> int:
    return size_of(looked.record) if isinstance(looked, Looked) else 0


def _look(item: Item, spoken: Spoken | None) -> Looked | Rejected:
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
        return Rejected(item.source, f"cannot be read: {getattr(error, 'strerror', None) or error}")
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
            left_out.append(Rejected(beside.source, f"cannot be read: {error.strerror or error}"))
        else:
            found |= {name: data, id_column(name): content_id(data)}
            left_out += [Rejected(beside.source, f"{KEPT}{note}") for note in notes]
    return found, left_out
