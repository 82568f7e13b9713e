"""Pictures looked at in processes of their own: Python's lock in one does not hold up the others, and a decoder that
breaks down takes one picture along and not the import."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, BinaryIO

from carrara.data.rows import Rejected, Row

# Not as `multiprocessing` starts them, which would run a script that imports pictures once more.
_PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from carrara.data.apart import serve; serve()"
)
_LENGTH = 8  # bytes that say how many follow
_DIED = (EOFError, OSError)


class Lookers:
    """So many processes, started as they are needed, that look at rows which can be pickled."""

    def __init__(self, count: int) -> None:
        self._free = SimpleQueue[_Process | None]()
        for _ in range(count):
            self._free.put(None)
        self._count = count

    def look(self, part: list[Row | Rejected], detect: bool, most: int) -> list[Any]:
        """What `looking.look_at` makes of the first of them, in order: of all unless they come to ``most`` bytes."""
        with suppress(*_DIED), self._one() as process:
            found: list[Any] = process.ask((part, detect, most))
            return found
        # One of them broke it. Each by itself tells which, and costs a start only where it breaks another.
        return [self._alone(item, detect, most) for item in part[:1]]

    def _alone(self, item: Row | Rejected, detect: bool, most: int) -> Any:
        with suppress(*_DIED), self._one() as process:
            return process.ask(([item], detect, most))[0]
        return Rejected(
            item.source, "looking at it ended the process that did: the decoder breaks down, or memory"
        )

    @contextmanager
    def _one(self) -> Iterator[_Process]:
        """One that is free; where it dies, the next one asked for is another."""
        process = self._free.get()
        try:
            process = process or _Process()
            yield process
        except _DIED:
            if process is not None:
                process.end()
                process = None
            raise
        finally:
            self._free.put(process)

    def close(self) -> None:
        """Ends them, when none is asked any more."""
        for _ in range(self._count):
            if (process := self._free.get()) is not None:
                process.end()


class _Process:
    def __init__(self) -> None:
        # -P: what lies in the current folder is no program.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        pickle.dump(sys.path, self._to)

    def ask(self, what: Any) -> Any:
        """Its answer; raises what it raised. EOFError or OSError where it died."""
        _send(self._to, what)
        answer = _receive(self._from)
        if isinstance(answer, BaseException):
            raise RuntimeError("a picture could not be looked at") from answer
        return answer

    def end(self) -> None:
        with suppress(OSError):
            self._to.close()
        self._from.close()
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """Answers what `_Process.ask` asks until nobody does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the import, which then asks no more
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints does not come between
    from carrara.data.looking import look_in_part

    with suppress(*_DIED):
        while True:
            part, detect, most = _receive(asked)
            try:
                _send(answers, look_in_part(part, detect, most))
            except _DIED:
                raise
            except Exception as error:
                _send(answers, RuntimeError(f"{type(error).__name__}: {error}"))


def _send(to: BinaryIO | Any, what: Any) -> None:
    data = pickle.dumps(what, pickle.HIGHEST_PROTOCOL)
    to.write(len(data).to_bytes(_LENGTH, "big"))
    to.write(data)
    to.flush()


def _receive(of: BinaryIO | Any) -> Any:
    length = of.read(_LENGTH)
    if len(length) < _LENGTH:
        raise EOFError
    data = of.read(int.from_bytes(length, "big"))
    return pickle.loads(data)
