"""kill -9 at any moment of an import, then the same import again: the table of an undisturbed one."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.importing.importing import import_pictures

START = """
import os, signal, sys
from carrara.importing import importing; from carrara.dataset import store, description as told, writer
writer.BATCH_ROWS = 4
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
{sabotage}
for report in importing.import_pictures({source!r}, {destination!r}):
    print(report.done, flush=True)
"""

# Where it dies: while pictures come in, with a batch written but not noted, with all of them noted, with
# the rows published but nothing said about it, with everything said but the journal still there.
SABOTAGE = {
    "pictures": None,
    "batch": "old = writer.Writer._write; writer.Writer._write = lambda *a: (old(*a), die())",
    "journal": "writer.Writer.commit = lambda self: (self.flush(), self._settle(), die())",
    "published": "importing.description.tell = die",
    "listed": "old = store.Folder.write; store.Folder.write = lambda *a: (die if a[1] == told.ABOUT else old)(*a)",
    "told": "writer.Writer.finish = die",
}

Start = Callable[[str], "subprocess.Popen[bytes]"]


def everything(destination: Path) -> dict[str, list[Any]]:
    dataset = Dataset.open(destination)
    values: dict[str, list[Any]] = dataset.arrow(dataset.columns).to_pydict()
    return values


@pytest.fixture
def source(folder: Path) -> Path:
    (folder / "x13.png").write_bytes(b"broken")
    (folder / "x17.png").write_bytes((folder / "x2.png").read_bytes())
    (folder / "x22.fr.txt").write_text("vingt-deux")
    return folder


def kill_one(start: Start, source: Path, destination: Path, moment: str) -> None:
    sabotage = SABOTAGE[moment]
    program = START.format(sabotage=sabotage or "", source=str(source), destination=str(destination))
    process = start(program)
    assert process.stdout is not None
    if sabotage is None:
        for _ in range(19):
            assert process.stdout.readline()
        process.kill()
    process.stdout.read()
    assert process.wait(200) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["new", "grown"])
def test_killed_again_and_again(
    first: bool, source: Path, tmp_path: Path, start_python: Start, make_png: Callable[..., bytes]
) -> None:
    destination, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    moments = ["pictures", "batch", "listed"] if first else ["journal", "published", "told"]
    if not first:
        for place in (destination, undisturbed):
            list(import_pictures(source, place))
        for k in range(200, 212):
            (source / f"n{k}.png").write_bytes(make_png(k))
        (source / "x3.txt").write_text("corrected")
    for moment in moments:
        kill_one(start_python, source, destination, moment)
        if first:
            with pytest.raises(UserError, match="has not finished; the same `carrara data import` again"):
                Dataset.open(destination)
            (found,) = destination.glob("import.partial/*/journal.jsonl")
            with open(found, "ab") as journal:
                journal.write(b'{"consumed": 30, "fragm')  # as if the kill had come in the middle of a line
        elif moment == "journal":
            assert len(Dataset.open(destination)) == 28  # the old rows, and nothing by halves
    *_, resumed = import_pictures(source, destination)
    *_, plain = import_pictures(source, undisturbed)
    assert everything(destination) == everything(undisturbed)
    assert len(Dataset.open(destination)) == (28 if first else 40)
    assert (destination / "rejected.jsonl").read_text() == (undisturbed / "rejected.jsonl").read_text()
    assert (destination / "dataset.toml").read_text() == (undisturbed / "dataset.toml").read_text()
    assert resumed.summary is not None
    if moments[-1] != "told":
        assert resumed.summary == plain.summary
    assert not (destination / "import.partial").exists()


def test_a_journal_waits_for_its_source_as_it_was(
    source: Path, tmp_path: Path, start_python: Start, make_png: Callable[..., bytes]
) -> None:
    """Another import does not touch it; one of the source as it is now throws it away."""
    destination = tmp_path / "data"
    kill_one(start_python, source, destination, "journal")
    left = sorted((destination / "pictures.lance" / "data").iterdir())
    assert left
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes(make_png(77))
    list(import_pictures(other, destination))
    assert Dataset.open(destination).column("source") == ["a.png"]
    assert all(file.exists() for file in left)
    (source / "late.png").write_bytes(make_png(78))
    list(import_pictures(source, destination))
    assert "late.png" in Dataset.open(destination).column("source")
    assert not any(file.exists() for file in left)  # what the dead import wrote is gone
    assert not (destination / "import.partial").exists()
