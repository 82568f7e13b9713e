"""Pictures looked at in processes of their own: Python's lock in one does not hold up the others, and a decoder that
breaks down takes one picture along and not the import."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, BinaryIO

from carrara.errors import UserError, one_line
from carrara.importing.caption_language import Spoken
from carrara.importing.row import Rejected, Row
from carrara.terminal import console

# Not as `multiprocessing` starts them, which would run a script that imports pictures once more. Ctrl-C is for the
# import, which then asks no more.
_PROGRAM = (
    "import pickle, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "sys.path[:] = pickle.load(sys.stdin.buffer); from carrara.importing.decode_processes import serve; serve()"
)
_LENGTH = 8  # bytes that say how many follow
_DIED = (EOFError, OSError)


class Lookers:
    """So many processes, started as they are needed, that look at rows which can be pickled.

    In place of each that cannot be started, the thread that asks looks itself.
    """

    def __init__(self, count: int) -> None:
        self._free = SimpleQueue[_Process | _Here | None]()
        for _ in range(count):
            self._free.put(None)
        self._count = count
        self._said = threading.Lock()  # taken for good by who says that one could not be started

    def look(self, part: list[Row | Rejected], spoken: Spoken | None, most: int) -> list[Any]:
        """What `record.look_at` makes of the first of them, in order: of all unless they come to ``most`` bytes."""
        process = self._free.get()
        try:
            process = process or self._started()
            with suppress(*_DIED):
                found: list[Any] = process.ask((part, spoken, most))
                return found
            # One of them broke it. Each by itself tells which, and costs a start only where it breaks another.
            process.end()
            process = self._started_for(part[0])
            with suppress(*_DIED):
                return list(process.ask((part[:1], spoken, most)))
            process.end()
            process = None
            reason = "looking at it ended the process that did: the decoder breaks down, or memory"
            return [Rejected(part[0].source, reason)]
        except BaseException:  # it may be in the middle of an answer
            if process is not None:
                process.end()
                process = None
            raise
        finally:
            self._free.put(process)

    def _started(self) -> _Process | _Here:
        try:
            return _Process()
        except _DIED as error:
            if self._said.acquire(blocking=False):
                console.print(
                    f"a process that looks at pictures could not be started ({one_line(error)}); "
                    "this one looks at them itself",
                    soft_wrap=True,
                )
            return _Here()

    def _started_for(self, item: Row | Rejected) -> _Process:
        """One for what may break this process."""
        try:
            return _Process()
        except _DIED as error:
            raise UserError(
                f"looking at {item.source} or one of the next ended the process that did, and no other could be "
                f"started: {one_line(error)}; with more memory, or more processes allowed, the same import continues"
            ) from None

    def close(self) -> None:
        """Ends them, when none is asked any more."""
        for _ in range(self._count):
            if (process := self._free.get()) is not None:
                process.end()


class _Here:
    """In place of a process: this one."""

    def ask(self, what: Any) -> Any:
        from carrara.importing.record import look_in_part

        try:
            return look_in_part(*what)
        except OSError as error:  # nothing died
            raise RuntimeError("a picture could not be looked at") from error

    def end(self) -> None:
        pass


class _Process:
    def __init__(self) -> None:
        # -P: what lies in the current folder is no program.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        try:
            pickle.dump(sys.path, self._to)
            self._to.flush()
            _receive(self._from)  # it is ready: what ends it from now on is what it is asked
        except BaseException as error:
            self.end()
            if isinstance(error, _DIED):
                raise EOFError("it ended at once") from None
            raise

    def ask(self, what: Any) -> Any:
        """Its answer; raises what it raised. EOFError or OSError where it died."""
        _send(self._to, what)
        answer = pickle.loads(_receive(self._from))
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
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints does not come between
    from carrara.importing.record import look_in_part

    with suppress(*_DIED):
        _send(answers, "ready")
        while True:
            asked_now = _receive(asked)
            answer: Any
            try:
                answer = look_in_part(*pickle.loads(asked_now))
            except Exception as error:
                answer = RuntimeError(f"{type(error).__name__}: {error}")
            _send(answers, answer)


def _send(to: BinaryIO | Any, what: Any) -> None:
    data = pickle.dumps(what, pickle.HIGHEST_PROTOCOL)
    to.write(len(data).to_bytes(_LENGTH, "big"))
    to.write(data)
    to.flush()


def _receive(of: BinaryIO | Any) -> bytes:
    """What was sent, still pickled; EOFError where it is not whole."""
    length = int.from_bytes(_exactly(of, _LENGTH), "big")
    return _exactly(of, length)


def _exactly(of: BinaryIO | Any, count: int) -> bytes:
    data: bytes = of.read(count)
    if len(data) < count:
        raise EOFError
    return data
