"""Downloads: what a table of urls names is fetched once, politely, and only from where it may be."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import math
import os
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin, urlsplit

from carrara import __version__
from carrara.data import told
from carrara.data.addresses import HEADERS, Connection, TooMuch, Unreachable, checked
from carrara.data.rows import BadPicture, Rejected, Row, tidy
from carrara.data.table import Dataset
from carrara.data.unfinished import DOWNLOADS, whole_lines
from carrara.data.writer import SAME

if TYPE_CHECKING:
    from carrara.data.importing import Options
    from carrara.data.store import Store

FAILED = "failed.jsonl"
AGENT = f"Carrara/{__version__} (data set import; honours X-Robots-Tag)"
TOKEN = "carrara"  # by which a header may name us
AHEAD = 256  # rows that are looked at before they are needed
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


@dataclass(frozen=True)
class Remote:
    """A `rows.Row.read` that is still to be fetched."""

    url: str

    def __call__(self) -> bytes:
        raise BadPicture("was not downloaded")


class Unkept(OSError):
    """What was downloaded could not be put down, or not be read again: the disk's fault, and no picture's."""


class Manners(NamedTuple):
    """How downloads are made."""

    private: bool = False
    robots: bool = True
    most_bytes: int = 32 * 2**20
    seconds: float = 60.0
    at_once: int = 16
    per_host: int = 4


class Answer(NamedTuple):
    """What a server said: a status, where it leads on to, the bytes, and after how many seconds to ask again."""

    status: int
    location: str | None
    data: bytes
    after: float | None


def fetch(url: str, manners: Manners, resting: dict[str, float] | None = None) -> bytes:
    """The bytes at a url. BadPicture says why there are none; what may pass by is tried again, each time later.

    A server that asks to wait is left alone until then, or for good where that is later than ``manners.seconds`` from
    now; ``resting`` remembers it by host, as a moment of `time.monotonic`, for all other urls of it.
    """
    resting = {} if resting is None else resting
    deadline = time.monotonic() + manners.seconds
    pause = PAUSE
    for attempt in range(1, TRIES + 1):
        _rest(url, resting, deadline)
        try:
            answer = _follow(url, manners, deadline)
            if answer.status == 200:
                return answer.data
            if answer.status not in _AGAIN:
                raise BadPicture(f"the server answered {answer.status}")
            fault = f"the server answered {answer.status}"
            if answer.after is not None:
                resting[_host(url)] = time.monotonic() + answer.after
                if attempt < TRIES:
                    _rest(url, resting, deadline, who=f"{fault} and")
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
    left = resting.get(_host(url), 0.0) - (now := time.monotonic())
    if left <= 0:
        return
    if now + left >= deadline:
        raise BadPicture(f"{who} asked to wait {math.ceil(left)} s (--retry, then, tries it again)")
    time.sleep(left)


def _follow(url: str, manners: Manners, deadline: float) -> Answer:
    for _ in range(REDIRECTS + 1):
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
        reply = connection.getresponse()
        if reply.status in (301, 302, 303, 307, 308) and (location := reply.headers.get("Location")):
            return Answer(reply.status, _utf8(location), b"", None)
        if reply.status != 200:
            return Answer(reply.status, None, b"", _seconds(reply.headers.get("Retry-After")))
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
        return Answer(200, None, bytes(data), None)
    except TooMuch:
        raise BadPicture(f"more than {manners.most_bytes} bytes{_LARGER}") from None
    finally:
        connection.close()


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


class Downloads:
    """A folder of what was fetched, and the threads that fetch ahead; what failed is remembered, not tried again."""

    def __init__(self, folder: Path, manners: Manners, *, failed: dict[str, str]) -> None:
        self.folder = folder
        self.manners = manners
        self._failed = failed
        self._lock = threading.Condition()
        self._waiting: deque[str] = deque()
        self._running: Counter[str] = Counter()
        self._done: dict[str, Future[None]] = {}
        self._threads = 0
        self._no_more = False
        self._resting: dict[str, float] = {}  # hosts that asked to be left alone, and until when

    def want(self, url: str) -> None:
        """Fetches it as soon as it is its turn."""
        with self._lock:
            if url in self._done or url in self._failed or self._path(url).exists():
                return
            self._done[url] = Future()
            self._waiting.append(url)
            if self._threads < self.manners.at_once:
                self._threads += 1
                threading.Thread(target=self._work, name="carrara-fetch", daemon=True).start()
            self._lock.notify()

    def get(self, url: str) -> bytes:
        """Its bytes, waited for. BadPicture says why there are none; Unkept where the disk is to blame."""
        self.want(url)
        with self._lock:
            done = self._done.get(url)
        if done is not None:
            done.result()
            with self._lock:
                self._done.pop(url, None)
        if url in self._failed:
            raise BadPicture(self._failed[url])
        with _the_disk():
            return self._path(url).read_bytes()

    def end(self, *, give_up: bool) -> None:
        """Lets the threads go when nothing waits any more; to give up, nothing waits at once."""
        with self._lock:
            self._no_more = True
            if give_up:
                for url in self._waiting:
                    self._done[url].cancel()
                self._waiting.clear()
            self._lock.notify_all()

    def _work(self) -> None:
        while (url := self._next()) is not None:
            done = self._done[url]
            try:
                self._try(url)
                done.set_result(None)
            except BaseException as error:  # whoever waits for it gets it
                done.set_exception(error)
            with self._lock:
                self._running[_host(url)] -= 1
                self._lock.notify_all()

    def _try(self, url: str) -> None:
        try:
            data = fetch(url, self.manners, self._resting)
        except BadPicture as error:
            with _the_disk():
                self._fail(url, str(error))
        else:
            with _the_disk():
                self._keep(url, data)

    def _next(self) -> str | None:
        """The first that waits whose host is not busy; None where this thread may go."""
        with self._lock:
            while True:
                for url in self._waiting:
                    if self._running[_host(url)] < self.manners.per_host:
                        self._waiting.remove(url)
                        self._running[_host(url)] += 1
                        return url
                if self._no_more and not self._waiting:
                    self._threads -= 1
                    return None
                self._lock.wait()

    def _keep(self, url: str, data: bytes) -> None:
        path = self._path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(data)
        os.replace(part, path)

    def _fail(self, url: str, reason: str) -> None:
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / FAILED, "a", encoding="utf-8") as file:
                file.write(json.dumps([url, reason]) + "\n")
            self._failed[url] = reason

    def _path(self, url: str) -> Path:
        name = hashlib.sha256(url.encode("utf-8", "backslashreplace")).hexdigest()
        return self.folder / name[:2] / name[2:]


class Present:
    """The pictures of a data set by where they were downloaded from."""

    def __init__(self, store: Store) -> None:
        self._dataset = Dataset.open(store.path) if told.about(store) and store.has_table() else None
        self._rows: dict[str, int] = {}
        if self._dataset is not None and "url" in self._dataset.columns:
            self._rows = {url: row for row, url in enumerate(self._dataset.column("url")) if url}

    def __contains__(self, url: str) -> bool:
        return tidy(url) in self._rows

    def get(self, url: str) -> bytes:
        assert self._dataset is not None
        data: bytes = self._dataset.take([self._rows[tidy(url) or ""]], ["image"])["image"][0]
        return data


def failures(store: Store, source: str, folder: Path, options: Options) -> dict[str, str]:
    """What an import of this source, complete or killed, could not have, and why; not what an option lets now."""
    lines = map(json.loads, filter(None, (store.read(told.REJECTED) or "").split("\n")))
    found = {
        line["file"]: line["reason"]
        for line in lines
        if line["from"] == source and not line["reason"].startswith(SAME)  # those came, under another name
    }
    found.update(map(tuple, whole_lines(folder / FAILED)))  # type: ignore[arg-type] # of lists, not of objects
    lets = {
        "--allow-private": options.allow_private,
        "--ignore-robots-tag": options.ignore_robots_tag,
        "--most-megabytes": True,
    }
    return {
        url: why for url, why in found.items() if not any(now and flag in why for flag, now in lets.items())
    }


def fetched(
    items: Iterator[Row | Rejected], store: Store, source: str, folder: Path, options: Options
) -> Iterator[Row | Rejected]:
    """The rows of a source, in their order, whose reads download what the data set in ``store`` has not yet.

    ``folder`` keeps what was downloaded until the import is complete. Nothing is fetched before the first read: after a
    kill, rows that were written before are passed over.
    """
    manners = Manners(
        private=options.allow_private,
        robots=not options.ignore_robots_tag,
        most_bytes=options.most_megabytes * 2**20,
        seconds=options.seconds,
        at_once=options.at_once,
        per_host=options.per_host,
    )
    if options.retry:
        (folder / DOWNLOADS / FAILED).unlink(missing_ok=True)
    failed = {} if options.retry else failures(store, source, folder / DOWNLOADS, options)
    downloads, present = Downloads(folder / DOWNLOADS, manners, failed=failed), Present(store)
    begun = threading.Event()

    def read(url: str) -> bytes:
        begun.set()
        return present.get(url) if url in present else downloads.get(url)

    ahead: deque[Row | Rejected] = deque()
    urls: deque[str] = deque()  # of those in `ahead` that are not yet wanted
    try:
        for item in items:
            if isinstance(item, Row) and isinstance(item.read, Remote):
                urls.append(item.read.url)
                item = replace(item, read=partial(read, item.read.url))
            ahead.append(item)
            if begun.is_set():
                _want(urls, downloads, present)
            else:
                while len(urls) > AHEAD:
                    urls.popleft()
            if len(ahead) > AHEAD:
                yield ahead.popleft()
        while ahead:
            if begun.is_set():
                _want(urls, downloads, present)
            yield ahead.popleft()
        downloads.end(give_up=False)
    except BaseException:
        downloads.end(give_up=True)
        raise


def _want(urls: deque[str], downloads: Downloads, present: Present) -> None:
    while urls:
        if (url := urls.popleft()) not in present:
            downloads.want(url)


def _host(url: str) -> str:
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


@contextmanager
def _the_disk() -> Iterator[None]:
    """What the disk does not take or give is none of the picture's faults."""
    try:
        yield
    except OSError as error:
        raise Unkept(error.errno, error.strerror or str(error), error.filename) from error


def _told(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return str(error) if "too long" in str(error) else "no answer in time"
    return _shown(str(error)) or type(error).__name__


def _shown(said: str) -> str:
    """A server's words as a reason: a line, of nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(said.split()))[:200]
