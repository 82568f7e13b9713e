"""Downloads: what a table of urls names is fetched once, politely, and only from where it may be."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from carrara.dataset import description
from carrara.dataset.dataset import Dataset
from carrara.dataset.import_journal import SAME
from carrara.dataset.unfinished_imports import DOWNLOADS
from carrara.errors import BadPicture, one_line
from carrara.files import Journal, replacing
from carrara.importing.row import Row, Unkept
from carrara.importing.url import Manners, fetch, host_of
from carrara.text import tidy

if TYPE_CHECKING:
    from carrara.dataset.store import Store
    from carrara.importing.options import Options
    from carrara.importing.row import Rejected


FAILED = "failed.jsonl"
AHEAD = 256  # rows that are looked at before they are needed


@dataclass(frozen=True)
class Remote:
    """A `row.Row.read` that is still to be fetched."""

    url: str

    def __call__(self) -> bytes:
        raise BadPicture("was not downloaded")


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
                self._running[host_of(url)] -= 1
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
                    if self._running[host_of(url)] < self.manners.per_host:
                        self._waiting.remove(url)
                        self._running[host_of(url)] += 1
                        return url
                if self._no_more and not self._waiting:
                    self._threads -= 1
                    return None
                self._lock.wait()

    def _keep(self, url: str, data: bytes) -> None:
        path = self._path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)

    def _fail(self, url: str, reason: str) -> None:
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            Journal(self.folder / FAILED, durable=False).add([url, reason])
            self._failed[url] = reason

    def _path(self, url: str) -> Path:
        name = hashlib.sha256(url.encode("utf-8", "backslashreplace")).hexdigest()
        return self.folder / name[:2] / name[2:]


class Present:
    """The pictures of a data set by where they were downloaded from."""

    def __init__(self, store: Store) -> None:
        self._dataset = Dataset.open(store.path) if description.about(store) and store.has_table() else None
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
    found = {
        line["file"]: line["reason"]
        for line in description.rejected(store)
        if line["from"] == source and not line["reason"].startswith(SAME)  # those came, under another name
    }
    found.update(map(tuple, Journal(folder / FAILED)))
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


@contextmanager
def _the_disk() -> Iterator[None]:
    """What the disk does not take or give is none of the picture's faults."""
    try:
        yield
    except OSError as error:
        raise Unkept(error.errno, one_line(error), error.filename) from error
