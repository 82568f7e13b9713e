"""A version has a number and may have a name; it can be opened as it was, trained on, kept or cleaned away."""

import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carrara.dataset.dataset import Dataset
from carrara.dataset.derived import Derivation, derive, derived
from carrara.dataset.loader import Reading
from carrara.dataset.store import store_at
from carrara.dataset.unfinished_imports import sweep
from carrara.dataset.versions import clean, tag, tags, untag, versions
from carrara.dataset.word_changes import amend
from carrara.errors import UserError
from carrara.importing.importing import import_pictures
from conftest import Here, small_autoencoder, steps

MakePng = Callable[..., bytes]


def sizes(columns: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.array([[len(data), k] for k, data in enumerate(columns["image"])], np.float16)


def lengths(columns: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.array([[len(text or "")] for text in columns["caption"]], np.float32)


@pytest.fixture
def grown(folder: Path, tmp_path: Path, make_png: MakePng) -> Path:
    """Thirty pictures, tagged "first"; then one caption is another, and five pictures came."""
    list(import_pictures(folder, tmp_path / "data"))
    tag(Dataset.open(tmp_path / "data"), "first")
    for k in range(40, 45):
        (folder / f"y{k}.png").write_bytes(make_png(k))
    (folder / "x3.txt").write_text("other words")
    list(import_pictures(folder, tmp_path / "data"))
    return tmp_path / "data"


def test_what_each_version_brought(grown: Path) -> None:
    dataset = Dataset.open(grown)
    list(derive(dataset, Derivation("size", {"k": 1}, sizes, batch=8)))
    amend(dataset, {"caption": {1: "x"}})
    found = versions(dataset)
    assert [v.number for v in found] == list(range(1, dataset.version + 1))
    said = [v.what for v in found]
    assert (found[0].pictures, said[0]) == (0, "an empty table")
    first = next(k for k, v in enumerate(found) if v.tags == ("first",))
    assert [v.pictures for v in found[first : first + 3]] == [30, 35, 35]
    assert said[first : first + 2] == ["30 pictures added", "5 pictures added"]
    assert "caption" in said[first + 2]
    assert "of 1 pictures changed" in said[first + 2]
    assert any(what.startswith("size_") and what.endswith(" added") for what in said)
    assert "amended" in said[-1]


def test_opened_by_tag_or_number(grown: Path, tmp_path: Path) -> None:
    now, then = Dataset.open(grown), Dataset.open(f"{grown}@first")
    assert (len(now), len(then)) == (35, 30)
    assert then.column("caption")[3] == "picture number 3"
    assert now.column("caption")[3] == "other words"
    assert then.path == grown
    assert Dataset.open(f"{grown}@{then.version}").hash == then.hash != now.hash
    for wrong, said in {
        "frist": r"has no version called 'frist'; did you mean 'first'\?",
        "99": r"has no version 99; its versions are 1 …",
    }.items():
        with pytest.raises(UserError, match=said):
            Dataset.open(f"{grown}@{wrong}")
    with pytest.raises(UserError, match="can only be added to the newest version"):
        list(import_pictures(tmp_path / "source", f"{grown}@first"))
    (tmp_path / "at@home").mkdir()
    list(import_pictures(tmp_path / "source", tmp_path / "at@home" / "a@b"))
    assert len(Dataset.open(tmp_path / "at@home" / "a@b")) == 35


def test_what_is_derived_for_an_old_version(grown: Path) -> None:
    """From pictures: for its rows, and kept in the newest. From words: only where they are the same still."""
    then = Dataset.open(f"{grown}@first")
    *_, last = derive(then, Derivation("size", {"k": 1}, sizes, batch=8))
    assert derived(then, "size", {"k": 1}) == last.column
    assert last.column
    assert len(then.column(last.column)) == len(then) == 30
    now = Dataset.open(grown)
    assert derived(now, "size", {"k": 1}) is None  # the five that came
    list(derive(now, Derivation("size", {"k": 1}, sizes, batch=8)))
    column = now.column(last.column)
    assert column[:30] == then.column(last.column)
    assert column[30:] == [[float(len(d)), k] for k, d in enumerate(now.column("image")[30:])]
    then.refresh()
    assert (len(then), then.column("caption")[3]) == (30, "picture number 3")
    mixed = then.take([29, 2], ["source", last.column, "id"])
    assert list(mixed) == ["source", last.column, "id"]
    assert mixed[last.column] == [column[29], column[2]]
    with pytest.raises(UserError, match=rf"the words of .* are others now than at version {then.version},"):
        list(derive(then, Derivation("length", {"k": 1}, lengths, batch=8, reading=Reading(("caption",)))))
    list(derive(now, Derivation("length", {"k": 1}, lengths, batch=8, reading=Reading(("caption",)))))
    then.refresh()
    assert derived(then, "length", {"k": 1}) is None


def test_cleaning_keeps_what_has_a_name(grown: Path, folder: Path, make_png: MakePng) -> None:
    dataset = Dataset.open(grown)
    list(derive(dataset, Derivation("size", {"k": 1}, sizes, batch=8)))
    before = dataset.arrow(dataset.columns)
    (grown / "import.partial" / "dead").mkdir(parents=True)
    kept = clean(dataset, older_than=timedelta(hours=1))
    assert (kept.versions, kept.given_up) == (0, 0)
    done = clean(dataset, older_than=timedelta(0))
    assert done.versions >= 3
    assert done.bytes > 0
    assert done.given_up == 1
    assert kept.files_joined > 1  # by the first already
    assert [v.tags for v in versions(dataset) if v.tags] == [("first",)]
    assert dataset.arrow(dataset.columns).equals(before)
    assert len(Dataset.open(f"{grown}@first")) == 30
    (folder / "x9.png").write_bytes(make_png(99))  # and it goes on as before
    list(import_pictures(folder, grown))
    dataset.refresh()
    assert len(dataset) == 36
    assert dataset.column("id")[:35] == before["id"].to_pylist()
    untag(dataset, "first")
    assert tags(dataset) == {}
    with pytest.raises(UserError, match="has no tag 'first'"):
        untag(dataset, "first")
    assert clean(dataset, older_than=timedelta(0)).versions >= 1
    assert len(versions(dataset)) == 1


def test_cleaning_beside_an_import(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_png: MakePng
) -> None:
    """What an import has written but not published stays, whatever is cleaned meanwhile."""
    monkeypatch.setattr("carrara.dataset.writer.BATCH_ROWS", 4)
    for k in range(3):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{k}.png").write_bytes(make_png(70 + k))
    list(import_pictures(tmp_path / "a", tmp_path / "data"))
    under_way = import_pictures(folder, tmp_path / "data")
    while next(under_way).done < 20:
        pass
    time.sleep(0.01)
    assert clean(Dataset.open(tmp_path / "data"), older_than=timedelta(0)).given_up == 0
    list(under_way)
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.column("source") == ["0.png", "1.png", "2.png", *(f"x{k}.png" for k in range(30))]
    assert all(dataset.column("image"))


def test_cleaning_between_a_killed_import_and_its_repetition(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_png: MakePng
) -> None:
    """Everything was published but the journal is still there: what a version with a name reads is not removed."""
    data, again = tmp_path / "data", tmp_path / "again"
    again.mkdir()
    (again / "a.png").write_bytes(make_png(70))
    list(import_pictures(folder, data))
    with monkeypatch.context() as patch:
        patch.setattr(
            "carrara.dataset.writer.Writer.finish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            list(import_pictures(again, data))
    tag(Dataset.open(data), "trained")
    before = Dataset.open(f"{data}@trained").arrow(["id", "image"])
    assert clean(Dataset.open(data), older_than=timedelta(hours=1)).given_up == 0
    list(import_pictures(again, data))  # the same once more, and it forgets its journal
    assert Dataset.open(f"{data}@trained").arrow(["id", "image"]).equals(before)
    assert len(Dataset.open(data)) == len(before)


def test_looking_at_what_was_killed_does_not_make_it_young(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    list(import_pictures(folder, data))
    dead = data / "import.partial" / "dead"
    dead.mkdir(parents=True)
    (dead / "journal.jsonl").write_text('{"ticket": "of another"}\n')
    week = time.time() - 7 * 86400
    for path in (dead / "journal.jsonl", dead):
        os.utime(path, (week, week))
    assert sweep(store_at(data), which=lambda ticket: ticket == "of nobody") == 0
    assert clean(Dataset.open(data), older_than=timedelta(days=1)).given_up == 1
    assert not dead.exists()


def test_a_run_remembers_and_keeps_the_version_that_it_saw(
    folder: Path, tmp_path: Path, make_png: MakePng
) -> None:
    from carrara.training.stages import train_autoencoder

    list(import_pictures(folder, tmp_path / "data"))
    seen = Dataset.open(tmp_path / "data")
    steps(train_autoencoder(small_autoencoder("2steps"), seen, tmp_path / "run"))
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["version"] == seen.version
    assert tags(seen) == {about["tag"]: seen.version}
    # A column more is no reason to begin again; other pictures are, and it is said where the old ones are.
    list(derive(seen, Derivation("size", {"k": 1}, sizes, batch=8)))
    assert steps(train_autoencoder(small_autoencoder("2steps"), seen, tmp_path / "run")) == []
    (folder / "more.png").write_bytes(make_png(99))
    list(import_pictures(folder, tmp_path / "data"))
    clean(Dataset.open(tmp_path / "data"), older_than=timedelta(0))
    named = f"{tmp_path / 'data'}@{about['tag']}"
    with pytest.raises(UserError, match=f"begun with other pictures or captions.*; its data is {named}"):
        train_autoencoder(
            small_autoencoder("2steps"), Dataset.open(tmp_path / "data"), tmp_path / "run"
        ).__next__()
    assert steps(train_autoencoder(small_autoencoder("2steps"), Dataset.open(named), tmp_path / "run")) == []


def test_as_a_user(here: Here, grown: Path) -> None:
    named = here("data", "tag", grown, "second")
    assert f"{grown}@second is version" in named.out
    assert "'first' is version" in here("data", "tag", grown, "first").refusal
    assert "cannot name a version" in here("data", "tag", grown, "12").refusal
    listed = here("data", "versions", grown)
    assert listed.status == 0
    assert "30  first   30 pictures added" in listed.out
    assert here("data", "tag", grown, "first", "--remove").status == 0
    assert "cleaned: " in here("data", "clean", grown, "--keep-hours", 0).out
    assert tags(Dataset.open(grown)).keys() == {"second"}
