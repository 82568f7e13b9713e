"""One url asked for, politely: limits of time and bytes, tries again, waiting when asked to, X-Robots-Tag."""

from __future__ import annotations

import contextlib
import http.client
import math
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from carrara.errors import BadPicture
from carrara.importing.addresses import HEADERS, Connection, TooMuch, Unreachable, checked
from carrara.version import __version__

AGENT = f"Carrara/{__version__} (data set import; honours X-Robots-Tag)"
TOKEN = "carrara"  # by which a header may name us
REDIRECTS = 5
TRIES = 4
PAUSE = 1.0  # seconds before the second try; twice as many before each further one
_PIECE = 1 << 16
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_LARGER = " (--most-megabytes lets more)"
_FORBIDDEN = ("noai", "noimageai", "noindex", "noimageindex", "none")
_TIMED = (
    "unavailable_after",
    "max-snippet",
    "max-image-preview",
    "max-video-preview",
)  # words before a colon


class Manners(NamedTuple):
    """How downloads are made."""

    private: bool = False
    robots: bool = True
    most_bytes: int = 32 * 2**20
    seconds: float = 60.0
    at_once: int = 16
    per_host: int = 4


class Answer(NamedTuple):
    """What the server of ``url`` said: where it leads on to, the bytes, and after how many seconds to ask again."""

    url: str
    status: int
    location: str | None
    data: bytes
    after: float | None


def fetch(url: str, manners: Manners, resting: dict[str, float] | None = None) -> bytes:
    """The bytes at a url. BadPicture says why there are none; what may pass by is tried again, each time later.

    A server that asks to wait is left alone until then, or for good where that is later than ``manners.seconds`` from
    now; ``resting`` remembers it by host, as a moment of `time.monotonic`, for all urls that are or lead there.
    """
    resting = {} if resting is None else resting
    deadline = time.monotonic() + manners.seconds
    pause = PAUSE
    for attempt in range(1, TRIES + 1):
        try:
            answer = _follow(url, manners, deadline, resting)
            if answer.status == 200:
                return answer.data
            if answer.status not in _AGAIN:
                raise BadPicture(f"the server answered {answer.status}")
            fault = f"the server answered {answer.status}"
            if answer.after is not None:
                resting[host_of(answer.url)] = time.monotonic() + answer.after
                if attempt < TRIES:
                    _rest(answer.url, resting, deadline, who=f"{fault} and")
        except ssl.SSLCertVerificationError as error:
            raise BadPicture(f"its certificate does not hold: {error.verify_message}") from None
        except (OSError, http.client.HTTPException, Unreachable) as error:
            fault = _told(error)
        if attempt == TRIES or time.monotonic() + pause >= deadline:
            raise BadPicture(
                f"could not be downloaded: {fault}" + (f" ({attempt} tries)" if attempt > 1 else "")
            )
        time.sleep(pause)
        pause *= 2
    raise AssertionError("the last try returns or raises")


def _rest(url: str, resting: dict[str, float], deadline: float, *, who: str = "its host has") -> None:
    """Waits for as long as the host of a url asked to be left alone. BadPicture where that is too long."""
    left = resting.get(host_of(url), 0.0) - (now := time.monotonic())
    if left <= 0:
        return
    if now + left >= deadline:
        raise BadPicture(f"{who} asked to wait {math.ceil(left)} s (--retry, then, tries it again)")
    time.sleep(left)


def _follow(url: str, manners: Manners, deadline: float, resting: dict[str, float]) -> Answer:
    for _ in range(REDIRECTS + 1):
        _rest(url, resting, deadline)
        answer = _ask(url, manners, deadline)
        if answer.location is None:
            return answer
        try:
            url = urljoin(url, answer.location)
        except ValueError as error:
            raise BadPicture(f"it leads to no address: {error}") from None
    raise BadPicture(f"it leads on more than {REDIRECTS} times")


def _ask(url: str, manners: Manners, deadline: float) -> Answer:
    """One question to one server; every one on the way is checked anew."""
    target = checked(url, private=manners.private)
    connection = Connection(
        target, patience=min(20.0, manners.seconds), deadline=deadline, most=manners.most_bytes + HEADERS
    )
    try:
        connection.request(
            "GET",
            target.path,
            headers={"User-Agent": AGENT, "Accept": "image/*", "Accept-Encoding": "identity"},
        )
        with connection.getresponse() as reply:
            return _heard(url, reply, manners)
    except TooMuch:
        raise BadPicture(f"more than {manners.most_bytes} bytes{_LARGER}") from None
    finally:
        connection.close()


def _heard(url: str, reply: http.client.HTTPResponse, manners: Manners) -> Answer:
    if reply.status in (301, 302, 303, 307, 308) and (location := reply.headers.get("Location")):
        return Answer(url, reply.status, _utf8(location), b"", None)
    if reply.status != 200:
        return Answer(url, reply.status, None, b"", _seconds(reply.headers.get("Retry-After")))
    if manners.robots and (word := forbidden(reply.headers.get_all("X-Robots-Tag") or [])):
        raise BadPicture(f"its X-Robots-Tag says {word} (--ignore-robots-tag takes it all the same)")
    encoding = reply.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise BadPicture(f"it was sent as {_shown(encoding[:20])}, which was not asked for")
    length = reply.length
    if length is not None and length > manners.most_bytes:
        raise BadPicture(f"{length} bytes; at most {manners.most_bytes} are downloaded{_LARGER}")
    data = bytearray()
    while piece := reply.read(_PIECE):
        data += piece
        if len(data) > manners.most_bytes:
            raise BadPicture(f"more than {manners.most_bytes} bytes{_LARGER}")
    if length is not None and len(data) < length:
        raise http.client.IncompleteRead(bytes(data), length - len(data))
    return Answer(url, 200, None, bytes(data), None)


def forbidden(headers: list[str]) -> str | None:
    """The word of X-Robots-Tag headers that forbids us to take a picture; what is said to other agents is not."""
    for header in headers:
        agent = ""
        for part in header.lower().split(","):
            before, colon, word = part.strip().partition(":")
            if colon and before.strip() not in _TIMED:
                agent, part = before.strip(), word
            if part.strip() in _FORBIDDEN and agent in ("", "*", TOKEN):
                return part.strip()
    return None


def host_of(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _seconds(text: str | None) -> float | None:
    """How long a Retry-After asks to wait, which says so in seconds or by a date."""
    if not text:
        return None
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    with contextlib.suppress(ValueError, OverflowError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None


def _utf8(header: str) -> str:
    """A header, which `http.client` takes for Latin-1, as the UTF-8 that it is more likely to be."""
    try:
        return header.encode("iso-8859-1").decode("utf-8")
    except UnicodeError:
        return header


def _told(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return str(error) if "too long" in str(error) else "no answer in time"
    return _shown(str(error)) or type(error).__name__


def _shown(said: str) -> str:
    """A server's words as a reason: a line, of nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(said.split()))[:200]
