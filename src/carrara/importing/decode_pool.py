"""A pool that decodes: pictures of a source looked at in its order, several at a time, and never more of them in
memory than is said.

Decoding lets go of Python's lock, so every core that this process may use has a picture to decode.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from carrara.importing.decode_processes import Lookers
from carrara.importing.record import look_with_language, record_size

if TYPE_CHECKING:
    from carrara.importing.caption_language import Spoken
    from carrara.importing.record import Item, Looked
    from carrara.importing.row import Rejected


THREADS = max(
    1, min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
)
PROCESSES = 8  # who writes the table keeps up with no more
TOGETHER = 8  # handing over costs about as much as a small picture
TOGETHER_APART = 32  # … and to another process twice that
MANY = 4000  # pictures, from which starting processes for them is worth it
HELD = 256 * 2**20  # bytes of pictures that wait for their turn, from which no further one is read
PART = 32 * 2**20  # bytes of those that are looked at together, from which the others wait


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
            held.less(record_size(looked))
        for item in part[len(found) :]:  # too large to wait together
            yield (
                item,
                look_with_language(item, spoken)
                if lookers is None
                else lookers.look([item], spoken, PART)[0],
            )
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
        held.more(sum(map(record_size, found)))
        return found
    found, size = [], 0
    for item in part:
        if size >= PART or not held.wait(turn):
            break
        found.append(look_with_language(item, spoken))
        size += record_size(found[-1])
        held.more(record_size(found[-1]))
    return found
