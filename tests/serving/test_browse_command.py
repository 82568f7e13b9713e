"""`carrara data browse` from its start to Ctrl-C, and what it says where it cannot start."""

import signal
import socket
import sys
import urllib.request

import pytest
import uvicorn

from carrara.dataset.dataset import Dataset
from conftest import Command, Here


def test_it_says_its_address_and_ends_with_ctrl_c(carrara: Command, data: Dataset) -> None:
    process = carrara.start("data", "browse", data.path, "--no-open")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(f"{data.path}, 24 pictures: http://127.0.0.1:"), line
    address = next(word for word in line.split() if word.startswith("http:"))
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert b'<div id="page">' in answer.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "ended\n", "")


def test_who_may_only_look_gets_no_secret(here: Here, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    said = [
        here("data", "browse", data.path, "--no-open", *more).out
        for more in ((), ("--read-only",), ("--host", "0.0.0.0"))
    ]
    assert ["/#" in line for line in said] == [True, False, False]


def test_what_is_in_its_way_is_one_line(here: Here, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no data set" in here("data", "browse", "nowhere").refusal
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = here("data", "browse", data.path, "--port", port).refusal
    assert line.startswith(
        f"cannot listen on port {port} of 127.0.0.1: address already in use; another --port"
    )
    assert (
        "no address called 'no such host'"
        in here("data", "browse", data.path, "--host", "no such host").refusal
    )
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert here("data", "browse", data.path).refusal == (
        "uvicorn is not installed: pip install 'carrara[serve]'"
    )
