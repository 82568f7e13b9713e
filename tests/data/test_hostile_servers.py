"""Servers that lie, stall, flood and send elsewhere; disks that are full: a reason each, within limits."""

import errno
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from carrara.dataset.dataset import Dataset
from carrara.errors import BadPicture, UserError
from carrara.importing import addresses
from carrara.importing import url as asking
from carrara.importing.download import Downloads
from carrara.importing.importing import import_pictures
from carrara.importing.summary import Summary
from carrara.importing.url import Manners, fetch

from .conftest import png

PATIENT = Manners(private=True, most_bytes=100_000, seconds=5)
Say = Callable[[bytes], None]
asked: Counter[str] = Counter()


def ok(*headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *headers, "", ""]).encode() + body


def busy(wait: str) -> bytes:
    return f"HTTP/1.1 429 Slow down\r\nRetry-After: {wait}\r\n\r\n".encode()


def endless(say: Say, piece: bytes, *, pause: float = 0.0) -> None:
    while True:
        say(piece)
        time.sleep(pause)


def answer(path: str, say: Say) -> None:
    """What a path asks for, written by hand, as no honest server would."""
    name = path.strip("/")
    if name.isdigit():
        say(ok("Content-Length: 999", "Connection: close").replace(b"999", b"%d" % len(png(int(name)))))
        say(png(int(name)))
    elif name == "robots":
        say(ok("X-Robots-Tag: noai", body=png(50)))
    elif name == "gzip":
        say(ok("Content-Encoding: gzip", body=b"\x1f\x8b" + bytes(200)))
    elif name == "chunks":  # of a size that means "all there is"
        say(ok("Transfer-Encoding: chunked", body=b"-1\r\n"))
        endless(say, bytes(1 << 16))
    elif name == "floods":
        say(ok("Content-Length: -5"))
        endless(say, bytes(1 << 16))
    elif name == "continues":
        endless(say, b"HTTP/1.1 100 Continue\r\n\r\n" * 99)
    elif name == "headers":
        say(b"HTTP/1.1 200 OK\r\n")
        endless(say, b"X: y\r\n" * 99)
    elif name == "long":
        say(b"HTTP/1.1 200 OK\r\nX: ")
        endless(say, b"x" * 9999)
    elif name == "drips":
        say(b"HTTP/1.1 200 OK\r\n")
        endless(say, b"X", pause=0.05)
    elif name == "old":
        say(b"\x1b[31m<html>\x07 as HTTP/0.9 had it")
    elif name == "mute":
        pass
    elif name.startswith("to:"):
        say(b"HTTP/1.1 302 Found\r\nLocation: " + bytes.fromhex(name[3:]) + b"\r\n\r\n")
    elif name == "%C3%A4":
        say(ok(body=png(60)))
    elif name.startswith("busy:"):
        say(busy(bytes.fromhex(name[5:]).decode()))
    elif name == "once":
        say(busy("1") if asked[path] == 1 else ok(body=png(70)))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(asking, "PAUSE", 0.01)
    asked.clear()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client, client.makefile("rb") as heard:
            try:
                path = heard.readline().decode().split()[1]
                while heard.readline().strip():
                    pass
                asked[path] += 1
                answer(path, client.sendall)
            except (OSError, IndexError):  # it was hung up on
                pass

    def accept() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def to(place: str) -> str:
    return f"to:{place.encode().hex()}"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("gzip", "sent as gzip, which was not asked for"),
        ("chunks", "more than 100000 bytes"),
        ("floods", "more than 100000 bytes"),
        ("continues", "more than 100000 bytes"),
        ("headers", "got more than 100 headers"),
        ("long", "more than 65536 bytes"),
        ("old", r"could not be downloaded: \?\[31m<html>\? as HTTP/0\.9"),
        ("mute", "without response"),
        (to("http://[::1"), "leads to no address"),
        (to("file:///etc/passwd"), "expected http://"),
        (to("http://me:word@127.0.0.1/"), "with a password in it"),
    ],
)
def test_what_hostile_servers_send(path: str, reason: str, server: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        fetch(f"{server}/{path}", PATIENT)


def test_a_header_that_drips_ends_in_time(server: str) -> None:
    with pytest.raises(BadPicture, match=r"too long|no answer in time"):
        fetch(f"{server}/drips", PATIENT._replace(seconds=0.4))


def test_no_redirect_leads_to_where_a_url_may_not(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address on the way is checked anew; here one of loopback's stands for a public one."""
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    manners = PATIENT._replace(private=False)
    assert fetch(f"{server}/{to('/1')}", manners) == png(1)
    for place in ("127.0.0.2", "[::ffff:127.0.0.1]", "0.0.0.0"):
        port = server.rpartition(":")[2]
        with pytest.raises(BadPicture, match="not a public address"):
            fetch(f"{server}/{to(f'http://{place}:{port}/1')}", manners)
    assert fetch(f"{server}/{to('/ä')}", manners) == png(60)  # as UTF-8, which no header should be


def test_who_asks_to_wait_is_waited_for(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)  # of a second, not slept through
    assert fetch(f"{server}/once", PATIENT) == png(70)
    assert 0.9 < max(waited) <= 1
    resting: dict[str, float] = {}
    for wait in ("90", formatdate(time.time() + 90, usegmt=True)):
        resting.clear()
        with pytest.raises(BadPicture, match=r"answered 429 and asked to wait (8|9)\d s \(--retry"):
            fetch(f"{server}/busy:{wait.encode().hex()}", PATIENT, resting)
        # The whole host rests: nothing else is asked of it.
        with pytest.raises(BadPicture, match=r"its host has asked to wait (8|9)\d s"):
            fetch(f"{server}/2", PATIENT, resting)
    assert asked["/2"] == 0
    assert all(count == 1 for path, count in asked.items() if path.startswith("/busy"))
    for wait in ("soon", "-3", formatdate(0)):  # says nothing, or is over: as if it had not been said
        with pytest.raises(BadPicture, match=r"answered 429 \(4 tries\)"):
            fetch(f"{server}/busy:{wait.encode().hex()}", PATIENT, {})


def test_who_leads_on_does_not_rest_for_who_asked_to(server: str) -> None:
    resting: dict[str, float] = {}
    other = server.replace("127.0.0.1", "localhost")  # which is another host by name
    leads = [f"{server}/{to(f'{other}/{path}')}" for path in (f"busy:{b'90'.hex()}", "2")]
    with pytest.raises(BadPicture, match=r"answered 429 and asked to wait (8|9)\d s"):
        fetch(leads[0], PATIENT, resting)
    assert fetch(f"{server}/1", PATIENT, resting) == png(1)
    for url in (f"{other}/2", leads[1]):
        with pytest.raises(BadPicture, match=r"its host has asked to wait (8|9)\d s"):
            fetch(url, PATIENT, resting)
    assert asked["/2"] == 0


def test_one_certificate_store_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    class Context:
        def __init__(self) -> None:
            made.append(self)

        def wrap_socket(self, raw: socket.socket, **_: object) -> socket.socket:
            return raw

    monkeypatch.setattr(addresses.ssl, "create_default_context", Context)
    monkeypatch.setattr(socket, "create_connection", lambda *_: socket.socket())
    addresses._secure.cache_clear()
    target = addresses.Target(True, "a.test", 443, "/", ("93.184.216.34",))
    for _ in range(3):
        connection = addresses.Connection(target, patience=1, deadline=time.monotonic() + 9, most=9)
        connection.connect()
        connection.close()
    addresses._secure.cache_clear()
    assert len(made) == 1


def take_in(source: Path, destination: Path, **options: Any) -> tuple[Dataset, dict[str, str], Summary]:
    *_, last = import_pictures(source, destination, allow_private=True, seconds=20.0, **options)
    assert last.summary is not None
    lines = (destination / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return Dataset.open(destination), {e["file"]: e["reason"] for e in map(json.loads, lines)}, last.summary


@pytest.mark.parametrize("what", ["_keep", "_fail"])
def test_a_full_disk_stops_the_import_and_blames_no_picture(
    what: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{server}/{k}\n" for k in (1, 2, "gzip", 3, 4)))

    def full(downloads: Downloads, *_: object) -> None:
        downloads.folder.mkdir(parents=True, exist_ok=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Downloads, what, full)
        stops = r"had to stop: .*No space left.*the same `carrara data import` continues it"
        with pytest.raises(UserError, match=stops):
            take_in(tmp_path / "list.txt", tmp_path / "data")
    # A line that the disk took in part is no line, also when others come after it.
    (folder,) = (tmp_path / "data" / "import.partial").iterdir()
    with open(folder / "downloads" / "failed.jsonl", "a") as file:
        file.write(f'["{server}/9", "to')
    dataset, why, _ = take_in(tmp_path / "list.txt", tmp_path / "data")
    assert dataset.column("url") == [f"{server}/{k}" for k in (1, 2, 3, 4)]
    assert why.keys() == {f"{server}/gzip"}


def test_what_an_option_lets_in_is_looked_at_again(server: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{server}/1\n{server}/robots\n")
    _, why, _ = take_in(tmp_path / "list.txt", tmp_path / "data")
    assert "noai" in why[f"{server}/robots"]
    _, _, summary = take_in(tmp_path / "list.txt", tmp_path / "data")
    assert summary.lines()[:2] == [
        "nothing to do: the source is unchanged (1 in all)",
        "still left out of it: 1, listed in rejected.jsonl; --retry tries them again",
    ]
    _, why, summary = take_in(tmp_path / "list.txt", tmp_path / "data", ignore_robots_tag=True)
    assert (summary.added, summary.unchanged, why) == (1, False, {})
    assert asked == {"/1": 1, "/robots": 2}
    _, _, summary = take_in(tmp_path / "list.txt", tmp_path / "data", ignore_robots_tag=True)
    assert summary.lines()[0] == (
        "nothing to do: the source is unchanged, all of its pictures are in (2 in all)"
    )
