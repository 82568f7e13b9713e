"""What is exported in any format comes in again as the same table; a killed export goes on behind what is whole."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from carrara.dataset.dataset import Dataset
from carrara.dataset.word_changes import amend
from carrara.errors import UserError
from carrara.exporting.exporting import export_pictures, exporters
from carrara.exporting.formats import folder as folder_format
from carrara.exporting.formats import webdataset as webdataset_format
from carrara.importing.importing import import_pictures

from .conftest import png

MakePng = Callable[..., bytes]
FORMATS = sorted(exporters())


def take_in(source: Path | str, destination: Path, **options: Any) -> Dataset:
    list(import_pictures(source, destination, **options))
    return Dataset.open(destination)


def everything(dataset: Dataset) -> dict[str, list[Any]]:
    names = sorted(set(dataset.columns) - {"source"})
    values: dict[str, list[Any]] = dataset.arrow(names).to_pydict()
    return values


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Thirty pictures of which different things are said."""
    root = tmp_path_factory.mktemp("mixed")
    (root / "in" / "cats").mkdir(parents=True)
    lines = []
    for k in range(30):
        name = f"cats/{k}.png" if k % 2 else f"{k}.png"
        (root / "in" / name).write_bytes(png(k))
        line: dict[str, Any] = {"file_name": name, "text": f"  picture „{k}“\n☃ \u2028"}
        if k == 4:
            line = {"file_name": name, "caption": ["one", "two", "three"], "language": "en"}
        if k in (5, 6):
            line |= {"caption_zh-TW": "一", "category": "c", "group": "g", "licence": "MIT", "split": "test"}
        if k == 7:
            line |= {
                "url": "http://x.test/?a=1&b",
                "flags": "good old",
                "boxes": [{"label": "x", "box": [1, 2, 5, 1 / 3]}],
            }
        if k == 8:
            line = {"file_name": name, "captioned_by": "en:blip", "caption_en": 'a, "b"'}
        if k == 9:
            del line["text"]
        lines.append(line)
    (root / "in" / "11.txt").write_text("not for 11")
    (root / "in" / "cats" / "9.map.png").write_bytes(png(99, (12, 10), "L"))
    (root / "in" / "cats" / "3.depth.png").write_bytes(png(98, (12, 10), "L"))
    (root / "in" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return take_in(root / "in", root / "data", licence="CC0")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_format, "FOLDER_ROWS", 7)
    monkeypatch.setattr(webdataset_format, "SHARD_ROWS", 7)
    for module in ("parquet", "hf"):
        monkeypatch.setattr(f"carrara.exporting.formats.{module}.FILE_BYTES", 3000)
    monkeypatch.setattr("carrara.exporting.arrow_tables.BATCH_ROWS", 4)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.usefixtures("small_shards")
def test_import_of_an_export_is_the_same_table(form: str, mixed: Dataset, tmp_path: Path) -> None:
    reports = list(export_pictures(mixed, tmp_path / "out", form))
    assert reports[-1].done == reports[-1].total == len(mixed) == 30
    again = take_in(tmp_path / "out", tmp_path / "again")
    wanted = everything(mixed)
    assert {"captions_more", "captioned_by", "url", "map_id", "boxes", "caption_zh_tw"} <= wanted.keys()
    assert everything(again) == wanted
    assert (tmp_path / "again" / "rejected.jsonl").read_text() == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "out"]


@pytest.mark.parametrize("form", FORMATS)
def test_the_emoji_set_there_and_back(form: str, tmp_path: Path) -> None:
    dataset = take_in("emoji", tmp_path / "emoji", subset="Activities")
    list(export_pictures(dataset, tmp_path / "out", form))
    assert everything(take_in(tmp_path / "out", tmp_path / "again")) == everything(dataset)


def test_what_others_read(mixed: Dataset, tmp_path: Path) -> None:
    """The names and descriptions by which Hugging Face's programs know pictures and captions."""
    for form in FORMATS:
        list(export_pictures(mixed, tmp_path / form, form))
    table = pq.read_table(tmp_path / "parquet" / "pictures-00000.parquet")
    about = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert (about["image"], about["map"], about["text"]["dtype"]) == (
        {"_type": "Image"},
        {"_type": "Image"},
        "string",
    )
    assert table["image"][0].as_py()["bytes"] == mixed.take([0], ["image"])["image"][0]
    state = json.loads((tmp_path / "hf" / "state.json").read_text())
    assert [f["filename"] for f in state["_data_files"]] == ["data-00000-of-00001.arrow"]
    line = json.loads((tmp_path / "folder" / "metadata.jsonl").read_text().splitlines()[0])
    assert (tmp_path / "folder" / line["file_name"]).read_bytes() == mixed.take([0], ["image"])["image"][0]
    assert (tmp_path / "folder" / line["file_name"]).with_suffix(".txt").read_text() == line["text"]


def test_into_the_folder_where_one_is(
    mixed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    list(export_pictures(mixed, Path(), "folder"))
    assert len(take_in(tmp_path / "here", tmp_path / "again")) == len(mixed)


def test_what_cannot_be_exported(mixed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no format is called 'parket'; did you mean 'parquet'"):
        list(export_pictures(mixed, tmp_path / "out", "parket"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="is there already; expected a new name"):
        list(export_pictures(mixed, tmp_path / "out", "hf"))
    with pytest.raises(
        UserError, match=r"cannot write.*\(no shard of it was finished, and nothing is kept\)"
    ):
        list(export_pictures(mixed, tmp_path / "out" / "mine" / "deep", "hf"))
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == tmp_path / "disk")
    with pytest.raises(UserError, match=r"disk is a mount point.*expected a new name, like .*/disk/hf$"):
        list(export_pictures(mixed, tmp_path / "disk", "hf"))
    monkeypatch.setattr(webdataset_format, "write", full)
    with pytest.raises(UserError, match=r"cannot write .*full: No space.*nothing is kept\)"):
        list(export_pictures(mixed, tmp_path / "full", "webdataset"))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["disk", "mine", "out"]


def full(*_: Any) -> Iterator[int]:
    raise OSError(28, "No space left on device")


def test_a_link_to_an_empty_folder(mixed: Dataset, tmp_path: Path) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    list(export_pictures(mixed, tmp_path / "link", "parquet"))
    assert (tmp_path / "link").is_symlink()
    assert [p.name for p in (tmp_path / "disk" / "real").iterdir()] == ["pictures-00000.parquet"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "link"]


@pytest.mark.usefixtures("small_shards")
def test_a_killed_export(
    mixed: Dataset, tmp_path: Path, start_python: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    process = start_python(f"""
import os, signal
from pathlib import Path
from carrara.exporting.formats import webdataset
from carrara.exporting.exporting import export_pictures
from carrara.dataset.dataset import Dataset
webdataset.SHARD_ROWS = 7
for report in export_pictures(Dataset.open({str(mixed.path)!r}), Path({str(tmp_path / "out")!r}), "webdataset"):
    if report.done == 20:
        os.kill(os.getpid(), signal.SIGKILL)
""")
    assert process.wait(200) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    first, *_ = export_pictures(mixed, tmp_path / "out", "webdataset")
    assert first.done == 14
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert len(take_in(tmp_path / "out", tmp_path / "again")) == 30


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stopped(dataset: Dataset, out: Path, form: str, at: int) -> int:
    """An export that is given up; how many rows it began behind."""
    reports = export_pictures(dataset, out, form)
    first = next(reports).done
    with closing(reports):
        next(report for report in reports if report.done >= at)
    assert not out.exists()
    return first


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.usefixtures("small_shards")
def test_what_is_finished_of_an_export_is_kept(
    form: str, mixed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(export_pictures(mixed, tmp_path / "whole", form))
    out, part = tmp_path / "out", tmp_path / ".out.part"
    assert stopped(mixed, out, form, 11) == 0
    with closing(export_pictures(mixed, out, form)) as reports:
        next(reports)
        with pytest.raises(UserError, match="another process is exporting to"):
            next(export_pictures(mixed, out, form))
    kept = stopped(mixed, out, form, 20)
    assert 4 <= kept < 11
    (tmp_path / ".out.part" / "stray").touch()
    # Killed between the journal and the moving of a shard, between the last shard and the name …
    journal = tmp_path / ".out.part.jsonl"
    *_, last = map(json.loads, journal.read_text().splitlines())
    (part / ".shard").mkdir(exist_ok=True)
    for name in {name.partition("/")[0] for name in last["files"]}:
        (part / name).rename(part / ".shard" / name)
    with monkeypatch.context() as patch:
        patch.setattr("os.rename", refusing(os.rename, out))
        with pytest.raises(UserError, match=r"cannot write .*out: no more.*the same command goes on"):
            list(export_pictures(mixed, out, form))
    # … and twice so.
    with monkeypatch.context() as patch:
        patch.setattr("os.rename", refusing(os.rename, out))
        with pytest.raises(UserError, match="cannot write"):
            list(export_pictures(mixed, out, form))
    assert [report.done for report in export_pictures(mixed, out, form)] == [30]
    assert tree(out) == tree(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def refusing(rename: Callable[..., None], target: Path, *, done: bool = False) -> Callable[..., None]:
    """Fails where the target gets its name, or after that was done."""

    def refused(old: Path, new: Path) -> None:
        if new != target or done:
            rename(old, new)
        if new == target:
            raise OSError(5, "no more")

    return refused


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("lost", ["all", "one", "the last note", "nothing, but renamed"])
@pytest.mark.usefixtures("small_shards")
def test_of_what_was_finished_only_what_is_there_is_believed(
    lost: str, form: str, mixed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, part, journal = (tmp_path / name for name in ("out", ".out.part", ".out.part.jsonl"))
    list(export_pictures(mixed, tmp_path / "whole", form))
    with monkeypatch.context() as patch:
        patch.setattr("os.rename", refusing(os.rename, out, done="renamed" in lost))
        with pytest.raises(UserError, match="cannot write"):
            list(export_pictures(mixed, out, form))
    if lost == "all":
        shutil.rmtree(part)
    elif lost == "one":
        max(path for path in part.rglob("*") if path.is_file()).unlink()
    elif lost == "the last note":  # killed before it was written
        journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    else:
        out.rename(tmp_path / "elsewhere")
        assert journal.exists()
    list(export_pictures(mixed, out, form))
    assert tree(out) == tree(tmp_path / "whole")
    assert not part.exists()
    assert not journal.exists()


def test_an_interrupted_look_at_what_is_kept_throws_nothing_away(
    mixed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset_format, "SHARD_ROWS", 7)
    out = tmp_path / "out"
    stopped(mixed, out, "webdataset", 29)
    with monkeypatch.context() as patch:
        patch.setattr("carrara.exporting.exporting._digest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(export_pictures(mixed, out, "webdataset"))
    assert stopped(mixed, out, "webdataset", 29) == 28


def interrupted(*_: Any) -> bytes:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("small_shards")
def test_what_no_longer_holds_is_written_again(mixed: Dataset, tmp_path: Path) -> None:
    shutil.copytree(mixed.path, tmp_path / "data")
    dataset, out = Dataset.open(tmp_path / "data"), tmp_path / "out"
    stopped(dataset, out, "webdataset", 29)
    amend(dataset, {"caption": {9: "another word"}})
    assert stopped(dataset, out, "webdataset", 29) == 7
    (tmp_path / ".out.part" / "pictures-000002.tar").write_bytes(b"cut off")
    assert stopped(dataset, out, "webdataset", 29) == 14
    assert stopped(dataset, out, "parquet", 15) == 0  # nothing of another format
    list(export_pictures(dataset, out, "webdataset"))
    list(export_pictures(dataset, tmp_path / "whole", "webdataset"))
    assert tree(out) == tree(tmp_path / "whole")
