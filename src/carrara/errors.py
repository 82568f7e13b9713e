"""The error that means "what was asked for cannot be done as asked", told in one readable line."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable


class BadPicture(ValueError):
    """These bytes give no picture; the message is the reason in a few words."""


DAMAGE = "a file of the table is damaged"  # how `of_lance` begins, of such
_SHOWN = 40  # names in a message
_REASON = 200  # characters of what another library says
_LONGEST = 160  # characters of a path in a message
_WRITING = tuple(map(os.strerror, (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))
_NOT_THE_REASON = re.compile(
    r"LanceError\(\w+\): |(External|C Data interface) error: |\.? ?Detail: Python .*|(, /[^\s)]+\.rs:\d+:\d+)+"
)
_LANCE = re.compile(r"LanceError\(\w+\)|\(os error \d+\)|\.rs:\d+:\d+$")
_MISSING = re.compile(r"Not found: /?(\S.*?(?:\.\w+|_versions))(?:, |$)")
_DAMAGE = re.compile(
    r"fill whole buffer|corrupt|magic number|size is too small|Invalid range|decod", re.IGNORECASE
)
_SYSTEM = re.compile(r"([A-Z][\w' -]*) \(os error \d+\)")
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|unable to allocate", re.IGNORECASE)


class UserError(ValueError):
    """What the user gave is at fault; the command line prints the message alone and exits with status 2."""


def likeliest(name: str, known: Iterable[str], *, here: str = "", between: str = ".") -> list[str]:
    """Of names with a path ("train.batch") those whose last part is most like ``name``; empty where none is.

    Those in the table ``here`` go before equally good ones elsewhere.
    """
    found: dict[float, list[str]] = {}
    for path in known:
        table, _, last = path.rpartition(between)
        like = difflib.SequenceMatcher(None, name, last).ratio()
        if like > 0.6:
            found.setdefault(like + 0.1 * (table == here), []).append(path)
    return found[max(found)] if found else []


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that names the closest known spelling and the choices: ``"; did you mean 'ddim'? (known: …)"``."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(choices[:_SHOWN]) + (f" … {len(choices)} in all" if len(choices) > _SHOWN else "")
    return f"{meant} (known: {shown})" if choices else meant


def one_line(error: BaseException) -> str:
    """Why it came, on one line: the system's reason without a path, else what it says, else its kind."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:_REASON] or type(error).__name__


def _of_system(error: OSError) -> str:
    """What the system refused, with the path and the reason, e.g. "cannot write d: Read-only file system"."""
    if error.strerror is None:
        return of_lance(error)
    if error.filename is None:
        return f"cannot go on: {error.strerror}"
    return f"cannot {_does(error.strerror)} {_short(error.filename)}: {error.strerror}"


def of_lance(error: BaseException) -> str:
    """What the table's library says of a fault, without the places in its own source."""
    said = _NOT_THE_REASON.sub("", " ".join(str(error).split()))
    if missing := _MISSING.search(said):
        return f"cannot read /{_short(missing[1])}: it is not there"
    reason, path = _SYSTEM.search(said), re.search(r"\"?(/[^\"]*?)[\":]? ?(?:, |: |$)", said)
    if reason:
        cannot = f"cannot {_does(reason[1])} {_short(path[1])}: " if path else ""
        return cannot + reason[1].strip()
    if _DAMAGE.search(said):
        return f"{DAMAGE}: {said[:200]}"
    return said[:300] or type(error).__name__


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust met what its authors held for impossible; it is no Exception."""
    return type(error).__name__ == "PanicException"


def refusal(error: BaseException) -> str | None:
    """One line for what the machine refused: a path, a disk, a table's file, memory. None for any other error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return "this machine has not enough memory for it"
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return f"the name {_short(error.object)} is not valid UTF-8; choose another name"
    if is_panic(error) or (isinstance(error, ValueError | RuntimeError) and _LANCE.search(str(error))):
        return of_lance(error)
    return None


def _does(reason: str) -> str:
    return "write" if reason.strip() in _WRITING else "use"


def _short(path: str | bytes | int) -> str:
    """A path on one line, its middle left out where it is long."""
    text = path.decode(errors="surrogateescape") if isinstance(path, bytes) else str(path)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 4 :]}"
