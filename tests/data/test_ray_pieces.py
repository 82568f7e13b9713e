"""What `--engine ray` is made of, in this process: how a source is cut, what a worker does and remembers, shares."""

import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from carrara.dataset.commits import add_said, opened
from carrara.dataset.store import lock, release, store_at
from carrara.errors import UserError
from carrara.importing import decode_pool
from carrara.importing.importing import Job
from carrara.importing.options import Options
from carrara.ray_engine import importing, session, source_parts
from carrara.ray_engine.worker import Worker


def job(source: Path, importer: str = "folder", **options: Any) -> Job:
    return Job(importer, str(source), str(source), Options(**options), 30)


def test_a_worker_knows_what_came_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second part on it reads what is new alone; a picture of another part is a duplicate."""
    monkeypatch.setattr(source_parts, "FEWEST", 10)
    monkeypatch.setattr(decode_pool, "THREADS", decode_pool.THREADS)  # which a worker sets
    (folder / "x30.png").write_bytes((folder / "x3.png").read_bytes())
    place, wanted = tmp_path / "data", job(folder)
    worker = Worker(place, json.dumps({"importer": "folder"}), wanted, 0)
    own, brought = [], []
    for part in source_parts.parts(wanted, set()):
        *_, _pictures = worker.gather(part)
        writer = worker._writers[part.number]
        own.append(len(writer._known))
        brought.append(worker.publish(part.number))
        worker.forget(part.number)
    assert own == [10, 10, 10, 0]
    assert [b.counts for b in brought] == [(10, 0, 0), (10, 0, 0), (10, 0, 0), (0, 0, 1)]
    assert len(worker.memory.known) == 30
    assert brought[-1].rejected[0]["reason"] == "the same picture as x3.png"


def test_two_begin_an_empty_table(tmp_path: Path) -> None:
    """Who opened it before the other brought a column sees that it has to open it again."""
    store = store_at(tmp_path)
    before = opened(store, tmp_path / "own")
    assert add_said(store, [{"flags": "tiny"}], before)
    assert add_said(store, [{"flags": "tiny"}], before)
    assert not add_said(store, [{"flags": "tiny"}], opened(store, tmp_path / "own"))


def test_only_a_source_that_cannot_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that cannot be reached is another thing."""
    source = tmp_path / "shards"
    source.mkdir()
    (source / "a.tar").write_bytes(b"no tar at all")
    part, wanted = source_parts.Part(0, "a.tar"), job(source, "webdataset")
    with pytest.raises(source_parts.Unreadable, match=r"shards/a\.tar"):
        list(Worker(tmp_path / "data", "{}", wanted, 0).gather(part))
    with tarfile.open(source / "a.tar", "w"):
        pass

    def worker() -> Iterator[int]:
        with part.rows(wanted):
            raise UserError("s3://bucket cannot be reached")
        yield 0

    run, at_work = object.__new__(importing._Run), worker()
    run.writer = SimpleNamespace(store=SimpleNamespace(path="s3://bucket"))  # type: ignore[assignment]
    run.publishing, run.hands = None, [importing._Hand(None, {0: part}, at_work)]  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"had to stop: s3://bucket cannot be reached; the same `carrara"):
        run._hear(at_work)


def test_bytes_that_travel_end_a_part(
    tmp_path: Path, make_png: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the parts that are left after a kill are the same ones."""
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for k in range(12):
            file.writestr(f"{k}.png", make_png(k))
    monkeypatch.setattr(source_parts, "MOST_CARRIED", 4 * len(make_png(0)))
    found = list(source_parts.parts(job(archive, "archive"), set()))
    counts = [len(pickle.loads(part.items)) for part in found]
    assert len(counts) > 2
    assert sum(counts) == 12
    assert list(source_parts.parts(job(archive, "archive"), {0, 1})) == found[2:]


@pytest.mark.parametrize(
    ("workers", "gpus", "share"), [(4, 3, 0.5), (4, 0, 0.0), (2, 8, 1.0), (3, 1, 0.3333), (8, 8, 1.0)]
)
def test_shares_of_gpus(workers: int, gpus: int, share: float) -> None:
    """Every worker finds a GPU that has its share left."""
    assert session.gpus_each(workers, gpus) == share


def test_no_more_workers_than_downloads_at_a_time(tmp_path: Path) -> None:
    assert importing.most_workers(16, job(tmp_path, "urls", per_host=3)) == 3
    assert importing.most_workers(16, job(tmp_path, "urls", at_once=2)) == 2
    assert importing.most_workers(16, job(tmp_path)) == 16


def test_what_killed_commands_left_is_removed(tmp_path: Path) -> None:
    """Not what others hold, nor what is so new that its maker may yet have to lock it."""
    names = ("carrara-ray-left", "carrara-ray-held", "carrara-ray-new", "another")
    for name in names:
        (tmp_path / name / "logs").mkdir(parents=True)
        if name != "carrara-ray-new":
            os.utime(tmp_path / name, (0, 0))
    held = lock(tmp_path / "carrara-ray-held")
    session.sweep(tmp_path)
    release(held)
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])


@pytest.mark.parametrize("address", ["local", ""])
def test_a_ray_of_its_own_where_no_cluster_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also then it keeps to itself."""
    import ray

    started = []

    @contextmanager
    def noted(processors: int) -> Iterator[None]:
        started.append(processors)
        yield

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session, "_started", noted)
    monkeypatch.setattr(session, "_gpus", lambda: 0)
    with session._connected(2) as team:
        assert team.workers == 2
    assert len(started) == 1
