"""Import, encoding and indexes on Ray's workers: what one process makes of the same, whoever is killed meanwhile."""

import contextlib
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from carrara.autoencoders import kl
from carrara.autoencoders.stored import StoredAutoencoder, load_autoencoder
from carrara.dataset import latents
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import derive
from carrara.dataset.store import ObjectStore
from carrara.dataset.word_changes import amend
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from carrara.importing.summary import Summary
from carrara.ray_engine import deriving, session, source_parts
from carrara.ray_engine.importing import RayEngine
from carrara.search import by_vector
from carrara.search.indexes import covered
from conftest import Here

pytestmark = pytest.mark.slow
# Starting Ray takes seconds; each of pytest's processes that gets some of these starts one (--dist loadfile: one).
needs_moto = pytest.mark.skipif(
    find_spec("moto") is None or find_spec("flask_cors") is None, reason="moto's server is not installed"
)
RAY = RayEngine(2)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A place in object storage on loopback; where it is, is in the environment, also that of the workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    named = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ALLOW_HTTP": "true",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "NO_PROXY": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in named.items():
            patched.setenv(name, value)
        if find_spec("moto") is None or find_spec("flask_cors") is None:
            yield ""
            return
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                with socket.socket() as trial:
                    if trial.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None
                time.sleep(0.1)
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            opener.open(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
            yield "s3://bucket"
        finally:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def ray(bucket: str) -> Iterator[None]:
    """Two workers for all tests here."""
    with session.keeping(), session.cluster(2) as team:
        assert team.workers == 2
        yield


@pytest.fixture
def shards(tmp_path: Path, make_png: Callable[..., bytes]) -> Path:
    """Six tars of twelve pictures; two pictures come twice, and one is broken."""
    root = tmp_path / "shards"
    (root / "test").mkdir(parents=True)
    for number in range(6):
        place = root / ("test" if number == 4 else ".") / f"{number:03}.tar"
        with tarfile.open(place, "w") as tar:
            for k in range(12):
                seed = {(3, 1): 5, (5, 0): 30}.get((number, k), 12 * number + k)
                data = b"broken" if (number, k) == (2, 2) else make_png(seed)
                said = {"caption": f"picture number {12 * number + k}", "group": f"g{k}"}
                for suffix, content in (("png", data), ("json", json.dumps(said).encode())):
                    about = tarfile.TarInfo(f"{k:04}.{suffix}")
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
    return root


@pytest.fixture
def pictures(folder: Path, make_png: Callable[..., bytes]) -> Path:
    """A folder of a hundred and fifty in subfolders, with a table of words for some."""
    for k in range(30, 150):
        place = folder / f"class {k % 4}"
        place.mkdir(exist_ok=True)
        (place / f"x{k}.png").write_bytes(make_png(k))
    lines = [{"file_name": f"class {k % 4}/x{k}.png", "text": f"said of {k}"} for k in range(30, 150, 3)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "broken.png").write_bytes(b"broken")
    return folder


def run(source: Path, destination: str | Path, engine: RayEngine | None = RAY) -> Summary:
    # What tells languages takes each new process seconds to load, and has no part in who does the work.
    *_, last = import_pictures(source, destination, engine=engine, languages="keep")
    assert last.summary is not None
    return last.summary


def rows(destination: str | Path) -> dict[str, dict[str, Any]]:
    """Every row by its id, whatever their order."""
    dataset = Dataset.open(destination)
    found = {row["id"]: row for row in dataset.arrow(sorted(dataset.columns)).to_pylist()}
    assert len(found) == len(dataset)
    return found


def workers() -> list[psutil.Process]:
    """Ray's processes that are at an import or an encoding."""
    children = psutil.Process().children(recursive=True)
    return [p for p in children if p.name().startswith(("ray::Worker", "ray::Deriver"))]


def test_many_files_make_the_table_of_one_process(ray: None, shards: Path, tmp_path: Path) -> None:
    """Also the list of what was skipped, and which of two pictures of the same bytes is the row."""
    here, there = tmp_path / "here", tmp_path / "there"
    alone, many = run(shards, here, None), run(shards, there)
    assert alone == many
    assert (many.added, many.duplicates, many.rejected) == (69, 2, 1)
    assert rows(here) == rows(there)
    for name in ("rejected.jsonl", "dataset.toml"):
        assert (here / name).read_text() == (there / name).read_text()
    assert sorted(p.name for p in there.iterdir()) == ["dataset.toml", "pictures.lance", "rejected.jsonl"]
    assert run(shards, there, None).unchanged
    assert run(shards, here).unchanged


def test_a_folder_is_cut(ray: None, pictures: Path, tmp_path: Path) -> None:
    """Three parts, whose words come from tables and texts; a further import changes words."""
    here, there = tmp_path / "here", tmp_path / "there"
    assert run(pictures, here, None) == run(pictures, there)
    (pictures / "x3.txt").write_text("another\n")
    (pictures / "class 1/x33.de.txt").write_text("ein Bild")
    alone, many = run(pictures, here, None), run(pictures, there, RayEngine(1))
    assert alone == many
    assert many.updated == 2
    assert rows(here) == rows(there)


@needs_moto
def test_in_object_storage(ray: None, bucket: str, pictures: Path, tmp_path: Path) -> None:
    place = f"{bucket}/{tmp_path.name}"
    alone, many = run(pictures, tmp_path / "here", None), run(pictures, place, RayEngine(1))
    assert alone == many
    assert rows(place) == rows(tmp_path / "here")
    assert Dataset.open(place).about["sources"] == Dataset.open(tmp_path / "here").about["sources"]
    assert isinstance(Dataset.open(place).store, ObjectStore)


def test_killed_and_stopped(ray: None, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker by kill -9, then the whole import; it goes on with the parts that are not in. One tar is no tar."""
    run(shards, tmp_path / "here", None)
    (shards / "001a.tar").write_bytes(b"no tar at all")
    reports = import_pictures(shards, tmp_path / "data", engine=RAY, languages="keep")
    for report in reports:
        if report.kept:
            break
    for process in workers()[:1]:
        process.send_signal(signal.SIGKILL)
    before = report.kept
    for report in reports:
        if report.kept > before:
            break
    reports.close()
    asked: list[set[int]] = []
    cut = source_parts.parts

    def watched(job: Any, done: set[int]) -> Any:
        asked.append(done)
        return cut(job, done)

    monkeypatch.setattr("carrara.ray_engine.importing.parts", watched)
    assert run(shards, tmp_path / "data").added == 69
    assert len(asked[0]) >= 2
    assert rows(tmp_path / "data") == rows(tmp_path / "here")
    listed = [(tmp_path / name / "rejected.jsonl").read_text().splitlines() for name in ("data", "here")]
    entries = [[json.loads(line) for line in lines] for lines in listed]
    (bad,) = (entry for entry in entries[0] if entry not in entries[1])
    assert bad["file"] == "001a.tar"
    assert len(entries[0]) == len(entries[1]) + 1
    assert run(shards, tmp_path / "data").unchanged


def test_encoded_and_indexed_by_commands(
    ray: None, pictures: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pictures, tmp_path / "local", None)
    shutil.copytree("local", "ray")
    for command in (["local"], ["ray", "--engine", "ray", "--workers", 2]):
        assert here("data", "encode", *command, "--embedder", "ngrams").status == 0
    monkeypatch.setattr(by_vector, "EXACT", 1000)
    indexed = here("data", "index", "ray", "--engine", "ray", "--workers", 2)
    assert indexed.status == 0, indexed.err
    dataset = Dataset.open("ray")
    (column,) = [name for name in dataset.columns if name.startswith("meaning_caption_")]
    assert covered(dataset) == {"caption": 150, "label": 150, column: 150}
    assert "nothing to do" in here("data", "index", "ray", "--engine", "ray").out
    assert rows("ray") == rows("local")
    assert dataset.schema.field(column) == Dataset.open("local").schema.field(column)
    for query in (["said of 33", "--by", "words"], ["said of 33", "--by", "meaning"]):
        found = json.loads(here("data", "search", "ray", *query, "--json").out)
        assert found["hits"][0]["source"] == "class 1/x33.png"


def test_words_that_change_while_they_are_encoded(
    ray: None, folder: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed from the words before is not put beside the new ones."""
    publish, changed = deriving._Crew._publish, list[str]()

    def late(crew: Any) -> None:
        if crew.done and not changed:
            changed.append(Dataset.open("data").take(np.array([4]), ["id"])["id"][0])
            amend(Dataset.open("data"), {"caption": {4: "zebra crossing"}})
        publish(crew)

    run(folder, Path("data"), None)
    monkeypatch.setattr(deriving._Crew, "_publish", late)
    assert (
        here("data", "encode", "data", "--embedder", "ngrams", "--engine", "ray", "--workers", 1).status == 0
    )
    assert changed
    found = json.loads(here("data", "search", "data", "zebra crossing", "--by", "meaning", "--json").out)
    assert found["hits"][0]["id"] == changed[0]
    assert found["hits"][0]["score"] > 0.99


def test_latents_by_a_worker_that_is_killed(ray: None, folder: Path, tmp_path: Path) -> None:
    """Those of some rows: they are what this process makes, and the other rows have none."""
    from carrara.ray_engine.engine import Team

    run(folder, tmp_path / "data", None)
    shutil.copytree(tmp_path / "data", tmp_path / "local")
    config = kl.Config(channels=8, multipliers=(1, 2), blocks=1, middle_attention=False)
    StoredAutoencoder.of(config.build(), config, 16, {}).save(tmp_path / "model")
    model, chosen = load_autoencoder(tmp_path / "model"), np.arange(4)
    found = []
    for name, by in (("local", derive), ("data", Team(1).latents(tmp_path / "model", latents.CENTRE))):
        dataset = Dataset.open(tmp_path / name)
        reports = latents.encode(dataset, model, torch.device("cpu"), rows=chosen, by=by)
        if name == "data":
            next(reports)
            assert workers()
            for process in workers():
                process.send_signal(signal.SIGKILL)
        *_, last = reports
        assert last.column is not None
        assert dataset.without(last.column).tolist() == list(range(4, 30))
        found += latents.moments_of(dataset, last.column, chosen)
    torch.testing.assert_close(*found, rtol=0, atol=2e-2)


def test_workers_that_find_no_place(ray: None) -> None:
    """Those that come do the work; where none comes, it says so."""
    import ray as cluster

    kind = cluster.remote(deriving.Deriver)
    given = (Path(), "column", None, True)
    nowhere = kind.options(num_gpus=1)
    (there,) = session.arrived([kind.remote(*given), nowhere.remote(*given)], together=1)
    session.dismiss(there)
    with pytest.raises(UserError, match="no place for a worker in 1 s: others hold"):
        session.arrived([nowhere.remote(*given)], together=0.5, at_all=1)


def test_ray_keeps_to_itself(ray: None) -> None:
    """Its processes listen on loopback alone, and nothing is told of their use."""
    listening, told = [], []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            listening += [c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"]
            told.append(process.environ().get("RAY_USAGE_STATS_ENABLED"))
    assert len(listening) > 3
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    assert told.count("0") > 3


def test_what_is_not_there(here: Here, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = here("data", "import", folder, "data", "--engine", "rya").refusal
    assert refused == "no engine is called 'rya'; did you mean 'ray'? (known: local, ray)"
    assert (
        "--workers is for --engine ray" in here("data", "encode", "data", "--meaning", "--workers", 2).refusal
    )
    found = session.find_spec
    monkeypatch.setattr(session, "find_spec", lambda name: None if name == "lance_ray" else found(name))
    refused = here("data", "import", folder, "data", "--engine", "ray").refusal
    assert refused == "--engine ray needs lance-ray; install it: pip install 'carrara[scale]'"


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**how: Any) -> None:
        raise ConnectionError(f"no answer from {how['address']}")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(UserError, match=r"no Ray can be joined at RAY_ADDRESS=127\.0\.0\.1:1: no answer"),
        session._connected(2),
    ):
        pass
