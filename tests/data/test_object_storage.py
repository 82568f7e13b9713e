"""The same data set at s3://: imported by several at once, derived, tagged, trained on; against moto on loopback."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carrara.dataset import writer
from carrara.dataset.commits import append
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, derive, derived
from carrara.dataset.loader import Reading, load
from carrara.dataset.store import ObjectStore
from carrara.dataset.subset import subset
from carrara.dataset.versions import clean, tag, versions
from carrara.dataset.word_changes import amend
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from carrara.importing.summary import Summary

pytestmark = pytest.mark.skipif(
    find_spec("moto") is None or find_spec("flask_cors") is None, reason="moto's server is not installed"
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def place(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in a bucket, and the environment that leads there."""
    named = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ALLOW_HTTP": "true",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
    return f"s3://bucket/{tmp_path.name}"


def run(source: Path, destination: str | Path) -> Summary:
    *_, last = import_pictures(source, destination)
    assert last.summary is not None
    return last.summary


def means(columns: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.array([[len(data)] for data in columns["image"]], np.float32)


def broken(*_: Any) -> None:
    raise OSError("no way")


def test_what_cannot_be_reached(
    place: str, folder: Path, monkeypatch: pytest.MonkeyPatch, make_png: Callable[..., bytes]
) -> None:
    for elsewhere in ("gs://bucket/x", Path("gs://bucket/x")):
        with pytest.raises(UserError, match="expected a folder or s3://bucket/path, not gs://"):
            Dataset.open(elsewhere)
    run(folder, place)
    (folder / "more.png").write_bytes(make_png(99))
    with monkeypatch.context() as patched:
        patched.setattr(writer, "append", broken)
        with pytest.raises(UserError, match=f"import into {place} had to stop: no way"):
            run(folder, place)
    assert run(folder, place).added == 1
    monkeypatch.setattr(ObjectStore, "_files", broken)
    with pytest.raises(UserError, match=f"{place} cannot be reached: no way"):
        Dataset.open(place)


def test_the_same_as_in_a_folder(
    place: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=f"there is no data set at {place}"):
        Dataset.open(place)
    (folder / "broken.png").write_bytes(b"broken")
    summary = run(folder, place)
    assert (summary.added, summary.rejected) == (30, 1)
    assert run(folder, place).unchanged
    run(folder, tmp_path / "local")
    assert (
        ObjectStore(place[5:]).read("rejected.jsonl") == (tmp_path / "local" / "rejected.jsonl").read_text()
    )
    local, dataset = Dataset.open(tmp_path / "local"), Dataset.open(Path(place))  # as a command line gives it
    assert str(dataset.path) == place
    assert dataset.hash == local.hash
    assert dataset.about["sources"] == local.about["sources"]
    reports = derive(dataset, Derivation("bytes", {"k": 1}, means, batch=8))
    next(reports)
    reports.close()  # and it goes on after the last batch
    *_, last = derive(dataset, Derivation("bytes", {"k": 1}, means, batch=8))
    assert last.column
    assert dataset.column(last.column) == [[float(len(data))] for data in local.column("image")]
    batches, here = (
        load(d, Reading(["image", "caption"], size=8), batch=4, seed=1) for d in (dataset, local)
    )
    theirs, ours = next(batches), next(here)
    assert theirs.columns["caption"] == ours.columns["caption"]
    assert bool((theirs.columns["image"] == ours.columns["image"]).all())  # type: ignore[union-attr]
    batches.close()
    here.close()
    tag(dataset, "first")
    amend(dataset, {"caption": {2: "other words"}})
    assert Dataset.open(f"{place}@first").column("caption")[2] == "picture number 2"
    assert dataset.column("caption")[2] == "other words"
    part = subset(dataset, np.array([5, 2]), Path(f"{place}-part"), why="two")
    assert part.column("caption") == ["picture number 5", "other words"]
    assert derived(part, "bytes", {"k": 1})
    with monkeypatch.context() as patched:
        patched.setattr(Dataset, "take_arrow", broken)
        with pytest.raises(OSError, match="no way"):
            subset(dataset, np.array([5, 2]), Path(f"{place}-other"), why="two")
    assert len(subset(dataset, np.array([5, 2]), Path(f"{place}-other"), why="two")) == 2
    with pytest.raises(UserError, match="is there already"):
        subset(dataset, np.array([5, 2]), Path(f"{place}-other"), why="two")
    near = subset(dataset, np.array([5, 2]), tmp_path / "near", why="two")
    assert near.fingerprint() == part.fingerprint()
    clean(dataset, older_than=timedelta(0))
    assert ["first"] in [list(v.tags) for v in versions(dataset)]


def test_two_imports_from_two_machines(
    place: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_png: Callable[..., bytes]
) -> None:
    """No lock is shared: one commits in the moment between the other's reading and its commit."""
    other = tmp_path / "other"
    other.mkdir()
    for k in range(40):
        (other / f"o{k}.png").write_bytes(make_png(k))  # thirty of them are the folder's
    run(folder, place)
    old = append
    more = tmp_path / "more"
    more.mkdir()
    for k in range(35, 45):
        (more / f"m{k}.png").write_bytes(make_png(k))
    tries = []

    def interrupted(table: Any, fragments: Any) -> None:
        tries.append(table.version)
        if len(tries) == 1:
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
            run(more, place)
        old(table, fragments)

    monkeypatch.setattr(writer, "append", interrupted)
    summary = run(other, place)
    dataset = Dataset.open(place)
    assert len(tries) == 3  # the first was in vain
    assert len(dataset) == len(set(dataset.column("id"))) == 45
    assert (summary.added, summary.duplicates) == (5, 35)
    assert {Path(s["source"]).name for s in dataset.about["sources"]} == {"source", "other", "more"}


KILLED = """
import os, signal
from carrara.importing import importing; from carrara.dataset import writer
writer.BATCH_ROWS = 4
writer.Writer.commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
for report in importing.import_pictures({source!r}, {destination!r}):
    pass
"""


def test_killed_and_continued(place: str, folder: Path, start_python: Callable[[str], Any]) -> None:
    process = start_python(KILLED.format(source=str(folder), destination=place))
    assert process.wait(100) < 0
    with pytest.raises(UserError):
        Dataset.open(place)
    left = list(Path(os.environ["XDG_CACHE_HOME"]).rglob("journal.jsonl"))
    assert len(left) == 1
    assert run(folder, place).added == 30
    assert Dataset.open(place).column("source") == [f"x{k}.png" for k in range(30)]
    assert not list(Path(os.environ["XDG_CACHE_HOME"]).rglob("journal.jsonl"))


def test_killed_here_and_done_elsewhere(
    place: str,
    folder: Path,
    tmp_path: Path,
    start_python: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What tells how to go on is on the first machine: another begins anew, and nothing is left of the first."""
    assert start_python(KILLED.format(source=str(folder), destination=place)).wait(100) < 0
    files = set(ObjectStore(place[5:]).names("pictures.lance/data"))
    assert files
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
        assert run(folder, place).added == 30
        assert str(tmp_path / "another machine") in capsys.readouterr().out
    assert run(folder, place).unchanged
    assert Dataset.open(place).column("source") == [f"x{k}.png" for k in range(30)]
    assert files.isdisjoint(ObjectStore(place[5:]).names("pictures.lance/data"))
    assert not list(Path(os.environ["XDG_CACHE_HOME"]).rglob("journal.jsonl"))
