"""What is written is whole or not there, journals outlive kills, and errors and progress are told in one way."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from carrara.errors import UserError, one_line
from carrara.files import Journal, read_bytes, replacing, replacing_folder, set_aside, write_atomically
from carrara.progress import Progress
from carrara.tensors import misfit, under


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_file_is_the_old_or_the_new_one(tmp_path: Path, before: str | None, fault: BaseException) -> None:
    file = tmp_path / "a.json"
    if before is not None:
        write_atomically(file, before)

    def write() -> None:
        with replacing(file) as new:
            new.write(b"half")
            raise fault

    with pytest.raises(type(fault)):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ([file.name] if before else [])
    assert not before or file.read_text() == before
    write_atomically(file, "neü")
    assert file.read_bytes() == "neü".encode()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda place: write_atomically(place, b""), "cannot write {}: Not a directory"),
        (read_bytes, "cannot read {}: Not a directory"),
    ],
)
def test_where_no_file_can_be(tmp_path: Path, act: Callable[[Path], object], words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as told:
        act(tmp_path / "file" / "below")
    assert str(told.value) == words.format(tmp_path / "file" / "below")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_the_old_or_the_new_one(tmp_path: Path, there: bool, fails: bool) -> None:
    folder = tmp_path / "f"
    if there:
        (folder / "old").mkdir(parents=True)
    (tmp_path / "f.part" / "left by a kill").mkdir(parents=True)

    def write() -> None:
        with replacing_folder(folder) as part:
            (part / "new").touch()
            if fails:
                raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            write()
    else:
        write()
    expected = ({"f", "f/old"} if there else set()) if fails else {"f", "f/new"}
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")} == expected


@pytest.mark.parametrize(
    ("end", "count"),
    [(b"", 3), (b'{"a": 3', 3), (b'{"a": 3}', 3), (b"\x00\x00\n[1]\n", 3), (b'{"a": 3}\n', 4)],
)
def test_a_journal_goes_on_behind_its_whole_lines(tmp_path: Path, end: bytes, count: int) -> None:
    journal = Journal(tmp_path / "j")
    assert list(journal) == []
    journal.add({"a": 0}, {"a": 1})
    journal.add({"a": 2})
    with open(journal.path, "ab") as file:
        file.write(end)
    assert list(journal) == [{"a": k} for k in range(count)]
    journal.add("é")
    assert list(Journal(journal.path, durable=False)) == [*({"a": k} for k in range(count)), "é"]


def test_what_is_damaged_takes_the_place_of_what_was(tmp_path: Path) -> None:
    for text in ("first", "second"):
        (tmp_path / "a").write_text(text)
        aside = set_aside(tmp_path / "a")
    assert (aside.name, aside.read_text(), list(tmp_path.iterdir())) == ("a.damaged", "second", [aside])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EROFS, "Read-only file system", "x"), "Read-only file system"),
        (OSError("a picture\n that is cut"), "a picture that is cut"),
        (RuntimeError(), "RuntimeError"),
        (ValueError("x" * 500), "x" * 200),
    ],
)
def test_any_error_is_a_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


@pytest.mark.parametrize("total", [0, 1, 3, 10**9 + 7])
def test_progress_counts(total: int) -> None:
    done = total // 3
    report = Progress.of(done, total, unit="rows")
    assert (report.done, report.total, report.words) == (done, total, f"{done} of {total} rows")
    assert report.fraction == (done / total if total else 1)


def test_tensors_that_do_not_fit() -> None:
    wanted = {"a": torch.zeros(2, 1), "b": torch.zeros(())}
    stored = {"m.a": torch.zeros(2, 1), "m.b": torch.zeros(()), "other": torch.zeros(1)}
    assert misfit(under("m.", stored), wanted) == ""
    assert misfit(under("m.", stored) | {"a": torch.zeros(2)}, wanted) == "a is (2,), expected (2, 1)"
    assert misfit({"b": torch.zeros(())}, wanted) == "a is nothing, expected (2, 1)"
    assert misfit({**wanted, "c": torch.zeros(1)}, wanted) == "c is (1,), expected nothing"
