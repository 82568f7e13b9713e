"""Pictures are looked at in the order of their source, in threads or processes, and few wait for their turn."""

import errno
import os
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from carrara.dataset.dataset import Dataset
from carrara.errors import UserError
from carrara.importing import decode_pool
from carrara.importing import decode_processes as processes
from carrara.importing.caption_language import Spoken
from carrara.importing.decode_pool import looked_at
from carrara.importing.decode_processes import Lookers
from carrara.importing.formats.folder import rows
from carrara.importing.importing import import_pictures
from carrara.importing.options import Options
from carrara.importing.record import Looked
from carrara.importing.row import Rejected, Row

from .conftest import png

# Says that it is ready, and dies in the middle of its first answer.
DIES_ANSWERING = """
import os, pickle, sys
pickle.load(sys.stdin.buffer)
said = pickle.dumps("ready")
os.write(1, len(said).to_bytes(8, "big") + said)
sys.stdin.buffer.read(8)
os.write(1, (1000).to_bytes(8, "big") + b"x" * 500)
os._exit(9)
"""


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes at most."""
    monkeypatch.setattr(decode_pool, "THREADS", 2)


@pytest.mark.usefixtures("two")
def test_processes_and_threads_see_the_same(folder: Path) -> None:
    (folder / "x13.png").write_bytes(b"broken")
    (folder / "x2.txt").write_text("Ein Hund läuft über die grüne Wiese, und die Sonne scheint.")
    found = [
        list(looked_at(rows(str(folder), Options()), spoken=Spoken(), apart=apart)) for apart in (False, True)
    ]
    assert [looked for _, looked in found[0]] == [looked for _, looked in found[1]]
    assert [item.source for item, _ in found[1]] == [f"x{k}.png" for k in range(30)]
    second = found[1][2][1]
    assert isinstance(second, Looked)
    assert "caption_de" in second.record


@pytest.mark.usefixtures("two")
def test_what_breaks_a_process_is_one_bad_picture() -> None:
    items = [Row(source=f"{k}", read=partial(png, k)) for k in range(2)]
    items.insert(1, Row(source="killer", read=partial(os._exit, 9)))
    found = [looked for _, looked in looked_at(items, spoken=None, apart=True)]
    assert [isinstance(looked, Looked) for looked in found] == [True, False, True]
    assert isinstance(found[1], Rejected)
    assert "ended the process" in found[1].reason


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("how", ["no process", "no import"])
def test_a_process_that_does_not_start_blames_no_picture(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "no process":
        monkeypatch.setattr(subprocess, "Popen", failing)
    else:
        monkeypatch.setattr(processes, "_PROGRAM", "raise SystemExit(1)")
    items = [Row(source=f"{k}", read=partial(png, k)) for k in range(70)]
    found = [looked for _, looked in looked_at(items, spoken=None, apart=True)]
    assert [isinstance(looked, Looked) for looked in found] == [True] * 70
    assert capsys.readouterr().out.count("could not be started") == 1


def failing(*_: object, **__: object) -> None:
    raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


def test_one_that_dies_in_its_answer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PROGRAM", DIES_ANSWERING)
    lookers = Lookers(1)
    items: list[Any] = [Row(source="x", read=partial(png, 0))]
    assert "ended the process" in lookers.look(items, False, 1)[0].reason
    once, started = [True], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started(*a, **k) if once and once.pop() else failing()
    )
    with pytest.raises(UserError, match=r"at x or one of the next .* could be started: Resource"):
        lookers.look(items, False, 1)
    lookers.close()


def test_a_fault_of_our_own_is_no_bad_picture() -> None:
    items = [Row(source="x", read=partial(divmod, 1, 0))]
    for apart in (False, True):
        with pytest.raises((ZeroDivisionError, RuntimeError)):
            list(looked_at(items, spoken=None, apart=apart))


@pytest.mark.parametrize("apart", [False, True])
def test_few_bytes_wait_for_their_turn(apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some are read while nobody takes the first ones, then all come in order."""
    # What is counted does not depend on which process looks at it.
    monkeypatch.setattr(subprocess, "Popen", failing)
    monkeypatch.setattr(decode_pool, "HELD", 4000)
    monkeypatch.setattr(decode_pool, "PART", 2000)
    monkeypatch.setattr(decode_pool, "TOGETHER", 6)
    monkeypatch.setattr(decode_pool, "TOGETHER_APART", 6)
    size, most, full = max(len(png(k)) for k in range(60)), [0], threading.Event()
    held: Any = decode_pool._Held
    more = held.more

    def noted(self: Any, size: int) -> None:
        more(self, size)
        most[0] = max(most[0], self._bytes)
        if self._bytes >= 4000:
            full.set()

    monkeypatch.setattr(held, "more", noted)
    items = [Row(source=f"{k}", read=partial(png, k)) for k in range(60)]
    reports = looked_at(items, spoken=None, apart=apart)
    found = [next(reports)[0].source]
    assert full.wait(60)
    found += [item.source for item, _ in reports]
    assert found == [f"{k}" for k in range(60)]
    assert most[0] <= 4000 + decode_pool.THREADS * (2000 + size)


def test_who_stops_early_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "HELD", 1)
    before = threading.active_count()
    reports = looked_at((Row(source=f"{k}", read=partial(png, k)) for k in range(200)), spoken=None)
    next(reports)
    reports.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_import_of_many_is_the_same_as_of_few(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(import_pictures(folder, tmp_path / "few"))
    used: list[int] = []
    lookers: Callable[[int], Any] = Lookers
    monkeypatch.setattr(decode_pool, "Lookers", lambda count: used.append(count) or lookers(count))
    monkeypatch.setattr("carrara.importing.importing.MANY", 10)
    list(import_pictures(folder, tmp_path / "many"))
    assert len(used) == 1
    tables = [Dataset.open(tmp_path / name) for name in ("few", "many")]
    assert tables[0].arrow(tables[0].columns).equals(tables[1].arrow(tables[1].columns))
