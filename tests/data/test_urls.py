"""Tables of urls and of paths: fetched from where it may be, within limits, politely, and only once."""

import json
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carrara.dataset.dataset import Dataset
from carrara.errors import BadPicture, UserError
from carrara.importing import addresses
from carrara.importing import url as asking
from carrara.importing.addresses import checked, is_public
from carrara.importing.importing import import_pictures
from carrara.importing.summary import Summary
from carrara.importing.url import Manners, fetch, forbidden

from .conftest import png

asked: Counter[str] = Counter()


class Server(BaseHTTPRequestHandler):
    """Says what its paths ask for."""

    def do_GET(self) -> None:
        name, _, how = self.path.strip("/").partition("/")
        asked[self.path] += 1
        headers = {"agent": ("X-Robots-Tag", "otherbot: noai"), "robots": ("X-Robots-Tag", "noai, nofollow")}
        data = b"<html>" if how == "html" else png(int(name)) if name.isdigit() else b"x" * 300_000
        if how == "busy" and asked[self.path] < 3:
            self.send_response(503)
            self.end_headers()
        elif how in ("gone", "busy2"):
            self.send_response(404 if how == "gone" else 500)
            self.end_headers()
        elif how == "leads":
            self.send_response(302)
            self.send_header("Location", name.replace("_", "/"))
            self.end_headers()
        elif how == "round":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
        else:
            self.send_response(200)
            if how in headers:
                self.send_header(*headers[how])
            if how != "endless":
                self.send_header("Content-Length", str(len(data) + 9 * (how == "cut")))
            self.end_headers()
            for start in range(0, len(data), 40 if how == "drips" else len(data)):
                self.wfile.write(data[start : start + 40] if how == "drips" else data)
                if how == "drips":
                    time.sleep(0.1)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(asking, "PAUSE", 0.02)
    asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.daemon_threads = True
        running.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that hangs up is no news
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def take_in(source: Path, destination: Path, **options: Any) -> tuple[Dataset, dict[str, str], Summary]:
    *_, last = import_pictures(source, destination, **options)
    assert last.summary is not None
    lines = (destination / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return Dataset.open(destination), {e["file"]: e["reason"] for e in map(json.loads, lines)}, last.summary


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d822", True),  # the first one, by way of NAT64
        *(
            (a, False)
            for a in ("127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0")
        ),
        *(
            (a, False)
            for a in ("::1", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::")
        ),
        *(
            (a, False)
            for a in ("100.64.0.1", "224.0.0.1", "240.0.0.1", "ff02::1", "fe80::1%eth0", "::", "nonsense")
        ),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://a.test/x", "expected http://"),
        ("file:///etc/passwd", "expected http://"),
        ("no url", "expected http://"),
        ("http://me:secret@127.0.0.1/", "password"),
        ("http:///x", "without a host"),
        ("http://[::1", "no address"),
        ("http://a:99999/", "no address"),
        *(
            (f"http://{host}/", "is not a public address")
            for host in ("localhost", "127.1", "0x7f000001", "2130706433")
        ),
        ("http://[::ffff:10.0.0.1]/", "is not a public address"),
    ],
)
def test_urls_that_are_not_followed(url: str, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        checked(url, private=False)


def test_one_private_address_of_a_name_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the connection goes to the address that was checked, whatever the name says next time."""
    found = [["93.184.216.34", "127.0.0.1"], ["93.184.216.34"], ["127.0.0.1"]]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (a, 0)) for a in found.pop(0)])
    with pytest.raises(BadPicture, match=r"'a\.test' is 127\.0\.0\.1, which is not a public address"):
        checked("http://a.test/", private=False)
    target = checked("https://a.test/ä b?c=d e", private=False)
    assert target[:4] == (True, "a.test", 443, "/%C3%A4%20b?c=d%20e")
    connected = []
    monkeypatch.setattr(
        "socket.create_connection", lambda to, _: connected.append(to) or (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(OSError):  # noqa: PT011
        addresses.Connection(target, patience=1, deadline=time.monotonic() + 9, most=9).connect()
    assert connected == [("93.184.216.34", 443)]


def test_robots_tags() -> None:
    for said in ("noai", "all, NoIndex", "carrara: none", "*: noimageai", "unavailable_after: 1 Jan, noai"):
        assert forbidden([said]), said
    for said in ("", "all", "googlebot: noindex, noai", "nofollow", "max-snippet: 3"):
        assert forbidden([said]) is None, said
    assert forbidden(["otherbot: noai", "noimageindex"]) == "noimageindex"


def test_what_a_server_may_say(server: str) -> None:
    manners = Manners(private=True, most_bytes=100_000, seconds=5)
    assert fetch(f"{server}/1", manners) == png(1)
    assert fetch(f"{server}/2/busy", manners) == png(2)
    assert asked["/2/busy"] == 3
    assert fetch(f"{server}/_3/leads", manners) == png(3)
    assert fetch(f"{server}/4/agent", manners) == png(4)
    assert fetch(f"{server}/5/endless", manners) == png(5)  # no length is said: to the end
    assert fetch(f"{server}/6/robots", manners._replace(robots=False)) == png(6)
    for path, reason in {
        "7/gone": "answered 404",
        "7/busy2": r"answered 500 \(4 tries\)",
        "7/robots": "X-Robots-Tag says noai",
        "7/round": "leads on more than 5",
        "7/cut": "could not be downloaded",
        "big": "300000 bytes; at most 100000",
        "big/endless": "more than 100000 bytes",
        "ftp:__a.test_/leads": "expected http://",
    }.items():
        with pytest.raises(BadPicture, match=reason):
            fetch(f"{server}/{path}", manners)
    assert (asked["/7/gone"], asked["/7/busy2"]) == (1, 4)
    started = time.monotonic()
    with pytest.raises(BadPicture, match=r"too long|no answer in time"):
        fetch(f"{server}/big/drips", manners._replace(seconds=0.4, most_bytes=1 << 20))
    assert time.monotonic() - started < 10
    with pytest.raises(BadPicture, match="not a public address"):
        fetch(f"{server}/1", Manners())


@pytest.fixture
def table(server: str, tmp_path: Path) -> Path:
    lines = ["URL,TEXT,LANGUAGE,NSFW,pwatermark,LICENSE\n"]
    lines += [
        f'{server}/{k},"picture, {k}",{"de" if k % 2 else "nolang"},UNLIKELY,0.9,CC0\n' for k in range(12)
    ]
    lines += [
        f"{server}/20/gone,gone\n",
        f"{server}/21/html,html\n",
        ",nothing\n",
        "http://127.0.0.1:1/x,refused\n",
    ]
    (tmp_path / "list.csv").write_text("".join(lines))
    return tmp_path / "list.csv"


def test_a_table_of_urls(table: Path, server: str, tmp_path: Path) -> None:
    dataset, why, _ = take_in(table, tmp_path / "data", allow_private=True, seconds=30.0, per_host=2)
    assert dataset.column("url") == dataset.column("source") == [f"{server}/{k}" for k in range(12)]
    assert dataset.column("caption_de")[:2] == [None, "picture, 1"]
    assert dataset.column("caption")[:2] == ["picture, 0", None]
    assert set(dataset.column("flags")) == {"tiny watermark_claimed"}
    assert "answered 404" in why[f"{server}/20/gone"]
    assert "not a picture" in why[f"{server}/21/html"]
    assert why["list.csv:16"] == "the row has no URL"
    assert asked.total() == 14
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "dataset.toml",
        "pictures.lance",
        "rejected.jsonl",
    ]
    # A longer list asks for what is new alone; what failed is tried again when it is said.
    table.write_text(table.read_text() + f"{server}/30,new,en,,,\n")
    again, still, summary = take_in(table, tmp_path / "data", allow_private=True, seconds=30.0)
    assert (len(again), summary.added, summary.updated, still) == (13, 1, 0, why)
    assert asked.total() == 15
    _, _, summary = take_in(table, tmp_path / "data", allow_private=True, seconds=30.0, retry=True)
    assert (summary.added, asked["/20/gone"], asked["/1"]) == (0, 2, 1)


def test_nothing_private_unless_it_is_said(table: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no picture in .*list.csv could be read .*not a public address.*; --retry asks"
    ):
        take_in(table, tmp_path / "data")
    assert asked.total() == 0
    # What is refused is not kept from one who lets it.
    dataset, _, _ = take_in(table, tmp_path / "data", allow_private=True, seconds=30.0)
    assert len(dataset) == 12


def test_killed_while_downloading(
    table: Path, tmp_path: Path, start_python: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    process = start_python(f"""
import os, signal
from carrara.importing import url as asking, importing
asking.PAUSE = 0.01
for report in importing.import_pictures({str(table)!r}, {str(tmp_path / "data")!r}, allow_private=True, seconds=30.0):
    if report.kept == 9:
        os.kill(os.getpid(), signal.SIGKILL)
""")
    assert process.wait(200) == -signal.SIGKILL
    before = asked.copy()
    dataset, _, _ = take_in(table, tmp_path / "data", allow_private=True, seconds=30.0)
    assert dataset.column("caption_de")[:2] == [None, "picture, 1"]
    assert len(dataset) == 12
    assert all(asked[f"/{k}"] == before[f"/{k}"] == 1 for k in range(9))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tsv"])
def test_a_table_of_paths(kind: str, tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    (tmp_path / "in" / "p").mkdir(parents=True)
    (tmp_path / "out.png").write_bytes(make_png(9))
    for k in range(3):
        (tmp_path / "in" / "p" / f"{k}.png").write_bytes(make_png(k))
    (tmp_path / "in" / "p" / "link.png").symlink_to(tmp_path / "out.png")
    names = [
        "p/0.png",
        "p/1.png",
        "p/2.png",
        "../out.png",
        str(tmp_path / "out.png"),
        "p/link.png",
        "p/none.png",
    ]
    rows = [{"image_path": name, "caption": f"c {k}", "license": "MIT"} for k, name in enumerate(names)]
    path = tmp_path / "in" / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "[[[\n")
    else:
        path.write_text(
            "image_path\tcaption\tlicense\n" + "".join("\t".join(row.values()) + "\n" for row in rows)
        )
    dataset, why, _ = take_in(path, tmp_path / "data")
    assert dataset.column("caption") == ["c 0", "c 1", "c 2"]
    assert set(dataset.column("licence")) == {"MIT"}
    assert "climbs out" in why["../out.png"]
    assert "absolute" in why[str(tmp_path / "out.png")]
    assert "a link out" in why["p/link.png"]
    assert "cannot be read" in why["p/none.png"]
    assert ("table.jsonl:8" in why) == (kind == "jsonl")


def test_odd_tables(tmp_path: Path) -> None:
    """Holes, NULs, fields of a megabyte, bytes that are no text: a reason each."""
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"url;text\nftp://a/1;\xff\xfe\nftp://a/2;x\0y\nftp://a/3;"
        + b"z" * (2 << 20)
        + b'\nftp://a/4;"open\n'
    )
    with pytest.raises(UserError, match="no picture in"):
        take_in(path, tmp_path / "data")
    (tmp_path / "list.txt").write_text("http://127.0.0.1:1/a\n\nhttp://127.0.0.1:1/b\n")
    with pytest.raises(UserError, match="not a public address"):
        take_in(tmp_path / "list.txt", tmp_path / "data2")
    (tmp_path / "words.txt").write_text("words\n")
    with pytest.raises(UserError, match=r"words\.txt is a file; expected a folder of pictures, an archive"):
        take_in(tmp_path / "words.txt", tmp_path / "data3")
