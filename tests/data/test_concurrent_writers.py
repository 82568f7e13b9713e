"""Several imports, derivations and corrections at once: nothing is lost, nothing is there twice."""

import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carrara.dataset import commits, writer
from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, derive
from carrara.dataset.loader import Reading
from carrara.dataset.word_changes import amend
from carrara.importing.importing import import_pictures
from carrara.importing.summary import Summary

MakePng = Callable[..., bytes]
Start = Callable[[str], "subprocess.Popen[bytes]"]

START = """
from carrara.importing import importing; from carrara.dataset import writer
writer.BATCH_ROWS = 5
for report in importing.import_pictures({source!r}, {destination!r}, held_out=0.2):
    pass
print(report.summary.added, report.summary.duplicates)
"""


def run(source: Path, destination: Path, **options: Any) -> Summary:
    *_, last = import_pictures(source, destination, **options)
    assert last.summary is not None
    return last.summary


@pytest.fixture
def four(tmp_path: Path, make_png: MakePng) -> list[Path]:
    """Four folders of sixteen pictures: twelve of their own, four that all of them have; captions in two columns."""
    folders = []
    for number in range(4):
        folder = tmp_path / f"source{number}"
        folder.mkdir()
        for k in range(16):
            seed = k if k < 4 else 100 * (number + 1) + k
            (folder / f"{number}-{k}.png").write_bytes(make_png(seed))
            (folder / f"{number}-{k}{'.de' if number % 2 else ''}.txt").write_text(f"caption {number} {k}")
        folders.append(folder)
    return folders


def check(destination: Path, folders: list[Path]) -> None:
    dataset = Dataset.open(destination)
    ids = dataset.column("id")
    assert len(ids) == len(set(ids)) == 4 * 12 + 4
    by_source = dict(zip(dataset.column("source"), dataset.column("image"), strict=True))
    for folder in folders:
        own = [p for p in folder.glob("*.png") if int(p.stem.partition("-")[2]) >= 4]
        assert all(by_source[p.name] == p.read_bytes() for p in own)
    captions = zip(dataset.column("caption"), dataset.column("caption_de"), strict=True)
    for name, said in zip(dataset.column("source"), captions, strict=True):
        assert f"caption {name[:-4].replace('-', ' ')}" in said  # beside it perhaps that of a copy
    assert {s["source"] for s in dataset.about["sources"]} == {str(folder) for folder in folders}
    skipped = (destination / "rejected.jsonl").read_text().splitlines()
    assert sum("the same picture as" in line for line in skipped) == 12
    assert sorted(p.name for p in destination.iterdir()) == [
        "dataset.toml",
        "pictures.lance",
        "rejected.jsonl",
    ]


def test_four_imports_at_once(four: list[Path], tmp_path: Path, start_python: Start) -> None:
    """The second round after each of them was killed at any moment."""
    destination = tmp_path / "data"
    programs = [START.format(source=str(f), destination=str(destination)) for f in four]
    draw = random.Random(0)
    begun = [start_python(program) for program in programs]
    for process in begun:
        time.sleep(draw.uniform(0.2, 0.6))
        process.send_signal(signal.SIGKILL)
    said = []
    for process in [start_python(program) for program in programs]:
        out, _ = process.communicate(timeout=100)
        assert process.returncode == 0
        said.append([int(word) for word in out.split()[-2:]])  # it may have said that it waits
    check(destination, four)
    assert sum(added for added, _ in said) <= 52  # some may have been complete before the kill


def test_what_comes_between_the_files_and_their_commit(
    four: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four have written all of their files before any of them commits; conflicts are met by going on."""
    destination = tmp_path / "data"
    monkeypatch.setattr(writer, "BATCH_ROWS", 5)
    writers = []
    for folder in four:
        reports = import_pictures(folder, destination)
        while next(reports).done < 16:
            pass
        writers.append(reports)
    with ThreadPoolExecutor(4) as pool:
        last = [r[-1].summary for r in pool.map(list, writers)]
    added = [summary.added for summary in last if summary]
    assert sorted(added) == [12, 12, 12, 16]
    assert sum(summary.duplicates for summary in last if summary) == 12
    check(destination, four)


def test_a_group_keeps_its_split_across_imports(tmp_path: Path, make_png: MakePng) -> None:
    """Its first import's source holds it out; the other, which had chosen by hash, follows."""
    folders = []
    for number, split in enumerate(["", "test"]):
        folder = tmp_path / f"s{number}"
        folder.mkdir()
        lines = ["file_name,group,split"]
        for k in range(3):
            (folder / f"{number}{k}.png").write_bytes(make_png(10 * number + k))
            lines.append(f"{number}{k}.png,house,{split}")
        (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
        folders.append(folder)
    first = import_pictures(folders[0], tmp_path / "data", held_out=0)
    while next(first).done < 3:
        pass
    run(folders[1], tmp_path / "data", held_out=0)
    list(first)
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.column("group") == ["house"] * 6
    assert dataset.column("split") == ["held_out"] * 6


def means(columns: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.array([[len(data)] for data in columns["image"]], np.float32)


def test_deriving_while_pictures_come(four: list[Path], tmp_path: Path) -> None:
    destination = tmp_path / "data"
    run(four[0], destination)
    dataset = Dataset.open(destination)
    reports = derive(dataset, Derivation("bytes", {"k": 1}, means, batch=8))
    assert next(reports).column is None
    run(four[1], destination)  # while the derivation is under way
    *_, last = reports
    assert last.column
    assert len(dataset) == 28
    assert dataset.column(last.column) == [[float(len(data))] for data in dataset.column("image")]
    # Two columns at once.
    other = derive(dataset, Derivation("bytes", {"k": 2}, means, batch=8))
    next(other)
    list(derive(Dataset.open(destination), Derivation("bytes", {"k": 3}, means, batch=8)))
    *_, done = other
    assert done.column
    assert dataset.column(done.column) == dataset.column(last.column)


def lengths(columns: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.array([[len(text or "")] for text in columns["caption"]], np.float32)


def test_words_that_change_while_something_is_derived_from_them(four: list[Path], tmp_path: Path) -> None:
    run(four[0], tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    reports = derive(dataset, Derivation("length", {"k": 1}, lengths, batch=8, reading=Reading(("caption",))))
    next(reports)
    amend(Dataset.open(tmp_path / "data"), {"caption": {2: "other words, and more of them"}})
    *_, last = reports
    assert last.column
    assert dataset.column(last.column)[2] == [29.0]
    assert dataset.column(last.column)[3] == [float(len(dataset.column("caption")[3]))]


def test_conflicts_are_met_by_trying_again(four: list[Path], tmp_path: Path) -> None:
    """Between the reading and the commit of one, another appends, adds a column, changes words."""
    run(four[0], tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    ids = dataset.column("id")
    others: list[Callable[[], object]] = [
        lambda: run(four[1], tmp_path / "data"),
        lambda: list(derive(Dataset.open(tmp_path / "data"), Derivation("bytes", {"k": 1}, means, batch=8))),
        lambda: amend(Dataset.open(tmp_path / "data"), {"caption": {0: "by another"}}),
    ]
    tries = []

    def change(table: Any) -> None:
        tries.append(table.version)
        if others:
            others.pop(0)()
        commits.update(table, {"caption": {ids[1]: "mine"}})

    while others:
        commits.committed(dataset.store, change)
    dataset.refresh()
    assert len(tries) >= 4  # at least the same words of the same rows were in each other's way
    assert dataset.column("caption")[:3] == ["by another", "mine", "caption 0 2"]
    assert len(dataset) == 28
