"""Parts of a batch computed at the same time, one thread each.

Threads inside every operation wait for each other at its end: some hundred times a step, and each time for as long
as another program holds one of the cores. Parts meet once a step, so small operations gain too and a busy neighbour
costs no more than its share. What comes out depends on the parts alone, never on the threads that computed them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


@cache
def processors() -> int:
    """Threads that this process may use: torch's own setting at first, but no more than the cores it is allowed."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), allowed))


def at_once(work: Sequence[Callable[[], T]], threads: int | None = None) -> list[T]:
    """The results in order; on ``threads`` threads (those of this machine) that compute alone.

    All have ended when it returns or raises what the first of them raised. Whether gradients are kept, and in which
    precision is computed, goes with it. With one thread, or one piece of work, it is done here and now.
    """
    threads = min(len(work), processors()) if threads is None else threads
    if threads == 1 or len(work) < 2:
        return [piece() for piece in work]
    inference, slopes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    casting, kind = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def run(piece: Callable[[], T]) -> T:
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(slopes),
            torch.autocast("cpu", kind, enabled=casting),
        ):
            return piece()

    running = [_pool(threads).submit(run, piece) for piece in work]
    wait(running)
    return [piece.result() for piece in running]


@contextmanager
def alone(wanted: bool = True) -> Iterator[None]:
    """Within it, operations of this thread use no other thread; afterwards as before."""
    processors()  # is what it was before
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if wanted:
            torch.set_num_threads(before)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    ready = threading.Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # takes up the setting for new threads, which would otherwise come later
        torch.set_num_threads(1)

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "carrara-part", initializer=begin)
    for _ in range(threads):
        pool.submit(ready.wait)
    ready.wait()
    torch.set_num_threads(before)  # the setting for threads to come is shared; those of the pool keep theirs
    return pool
