"""Places that cannot be written, and names that mean two things: one line before any work, nothing half-written."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from carrara.dataset.dataset import Dataset
from carrara.dataset.store import lock, store_at
from carrara.dataset.versions import clean, versions
from carrara.errors import UserError, refusal
from carrara.files import check_writable
from carrara.importing.importing import import_pictures
from conftest import Here, Trained, write_pictures

LANCE = ", /home/someone/rust/lance-io/src/object_store.rs:1013:21"


def below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.fixture
def files(tmp_path: Path, trained: Trained) -> Path:
    (tmp_path / "data").symlink_to(trained.dataset.path)
    (tmp_path / "runs").symlink_to(trained.autoencoder.parent)
    (tmp_path / "file").write_text("no folder")
    write_pictures(tmp_path / "mine")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "data import mine {}", "data filter data {} --where width>1", "data dedup data --into {}",
        "data dedup data --out {}.html", "data stats data --out {}.html", "data search data red --into {}",
        "data search data red --sheet {}.png", "data export data {} --format folder",
        "train kl_autoencoder data --out {}",
        "sample runs/diffusion red --out {}", "adopt runs/autoencoder/model {}", "export runs/autoencoder {}",
        "average runs/autoencoder --out {}", "reconstruct runs/autoencoder mine/red-disc-0.png --out {}.png",
        "inspect autoencoder runs/autoencoder data --out {}.html", "show schedules --out {}.png",
        "show forward mine/red-disc-0.png --out {}.png", "quickstart --out {}",
    ],
)  # fmt: skip
def test_below_a_file_nothing_can_be_written(here: Here, files: Path, command: str) -> None:
    before = below(files)
    said = here(*command.replace("{}", "file/new").split()).refusal
    assert said.startswith("cannot write file/new")
    assert said.endswith("file is a file, expected a folder")
    assert below(files) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 260, "xxx: File name too long"),
        ("a\tb", r"the path 'a\tb' has a tab"),
        ("a\nb", r"the path 'a\nb' has a tab, newline"),
        ("a\udcffb", r"the path 'a\udcffb' is not valid UTF-8"),
    ],
)
@pytest.mark.parametrize(
    "command", ["data import mine", "data filter data --where width>1", "train x data --out"]
)
def test_a_name_that_no_file_can_have(here: Here, files: Path, command: str, name: str, said: str) -> None:
    before = below(files)
    assert said in here(*command.split(), name).refusal
    assert below(files) == before


def test_the_check_leaves_nothing_and_sees_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "a" / "b")
    (tmp_path / "there").write_text("kept")
    check_writable(tmp_path / "there")
    assert below(tmp_path) == {"there"}
    assert (tmp_path / "there").read_text() == "kept"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match=r"^cannot write .*/a/b: No space left on device$"):
        check_writable(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EROFS, "Read-only file system", "d/x"), "cannot write d/x: Read-only file system"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", b"f/x"), "cannot use f/x: Not a directory"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot go on: No space left on device"),
        (OSError(f'LanceError(IO): Read-only file system (os error 30) at path "/d/t/_transactions/.tmp"{LANCE}'),
         "cannot write /d/t/_transactions/.tmp: Read-only file system"),
        (ValueError(f"LanceError(IO): Generic LocalFileSystem error: Unable to create dir /d/_refs/tags: "
                    f"Permission denied (os error 13){LANCE}"), "cannot use /d/_refs/tags: Permission denied"),
        (RuntimeError(f"LanceError(IO): Input/output error{LANCE}"), "Input/output error"),
        (MemoryError(), "this machine has not enough memory for it"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
         "this machine has not enough memory for it"),
        (UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"),
         "the name 'a\\udcff' is not valid UTF-8; choose another name"),
    ],
)  # fmt: skip
def test_what_the_machine_refuses_is_one_line(
    here: Here, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    monkeypatch.setattr("carrara.dataset.dataset.Dataset.open", lambda *_, **__: (_ for _ in ()).throw(error))
    assert here("data", "versions", "d").refusal == line


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    assert refusal(ValueError("shapes differ")) is None
    assert refusal(KeyError("x")) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_output_on_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [Path(sys.executable).with_name("carrara"), "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.returncode == 2
    assert ended.stderr == "carrara: cannot write standard output: No space left on device\n"


def test_a_folder_that_no_place_takes_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Path, *_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))

    monkeypatch.setattr(Path, "mkdir", never)
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "new", make=True, wait=True)


def test_the_current_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="the current folder is no longer there"):
        list(import_pictures(tmp_path, "d"))


@pytest.mark.parametrize("words", ["data import {} d", "sample starter x", "train ddpm d --out r"])
def test_every_command_says_that_the_current_folder_is_gone(tmp_path: Path, words: str) -> None:
    """In a process of its own: without a current folder torch ends it when it is imported."""
    code = (
        "import os, sys; os.mkdir('x'); os.chdir('x'); os.rmdir('../x'); from carrara.cli import main; "
        f"sys.argv = ['carrara', *{words.format(tmp_path).split()!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "carrara: the current folder is no longer there; change to another one\n"


@pytest.mark.parametrize(
    "name", ["~", "~/d", "~root", "a:b", "file:", "s3x:d", "a%20b", "a?b#c", " d ", "-d", "ü"]
)
def test_a_name_means_one_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """To Python and to Lance, which for itself takes a relative path for a url or for one in the home folder."""
    for folder in ("home", "here"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    list(import_pictures(write_pictures(tmp_path / "mine", captions=False), name))
    assert not below(tmp_path / "home")
    assert len(Dataset.open(name)) == len(Dataset.open(tmp_path / "here" / name)) == 24
    assert (tmp_path / "here" / name / "pictures.lance" / "_versions").is_dir()


def test_a_link_is_followed_as_the_system_does(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    assert store_at(tmp_path / "link" / ".." / "d").table == str(
        tmp_path.resolve() / "a" / "d" / "pictures.lance"
    )


@pytest.mark.parametrize("what", ["a version", "unfinished work"])
def test_cleaning_counts_nothing_that_stays(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path = tmp_path / "d"
    shutil.copytree(trained.dataset.path, path)
    if what == "a version":
        freed = type("Removed", (), {"bytes_removed": 9})()
        monkeypatch.setattr("lance.LanceDataset.cleanup_old_versions", lambda *_, **__: freed)
        expected = f"cannot remove version 1 of {path}"
    else:
        (path / "derive.partial" / "x").mkdir(parents=True)
        expected = f"cannot remove {path / 'derive.partial' / 'x'}: Operation not permitted"
        monkeypatch.setattr(shutil, "rmtree", _not_permitted)
    with pytest.raises(UserError, match=expected):
        clean(Dataset.open(path), older_than=timedelta(0))


def test_cleaning_a_full_disk_makes_room_before_it_joins_files(
    here: Here, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.dataset.path, tmp_path / "d")
    old = [v for v in versions(Dataset.open(tmp_path / "d"))[:-1] if not v.tags]
    (tmp_path / "d" / "derive.partial" / "x").mkdir(parents=True)

    def full(*_: object, **__: object) -> None:
        raise OSError(f"LanceError(IO): No space left on device (os error 28){LANCE}")

    with monkeypatch.context() as patch:
        patch.setattr("carrara.dataset.versions._compact", full)
        refusal = here("data", "clean", "d", "--keep-hours", 0).refusal
    assert refusal.startswith(f"{len(old)} old versions removed, 0.")
    assert refusal.endswith(
        "; 1 unfinished imports and encodings removed; the small files of d are not joined: No space left on device"
    )
    assert all(v.tags for v in versions(Dataset.open(tmp_path / "d"))[:-1])
    assert not below(tmp_path / "d" / "derive.partial")
    assert here("data", "clean", "d", "--keep-hours", 0).out.startswith("cleaned: ")


def _not_permitted(
    path: Path, ignore_errors: bool = False, onexc: Callable[..., object] | None = None
) -> None:
    if not ignore_errors:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
