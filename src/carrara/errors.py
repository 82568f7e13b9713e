"""The one exception that means "what was asked for cannot be done as asked", told in one readable line."""

import difflib
from collections.abc import Iterable

_SHOWN = 40  # names in a message


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
