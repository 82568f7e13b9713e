"""Versions of a data set: what each of them brought, names for those to keep, and the others cleaned away."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.dataset.columns import IDS
from carrara.dataset.commits import committed
from carrara.dataset.damaged_files import damaged_tags, is_of_library, set_aside_versions, tags_of
from carrara.dataset.dataset import Dataset
from carrara.dataset.known_rows import is_said
from carrara.dataset.store import STAGING, Store, lock, newest, release
from carrara.dataset.unfinished_imports import last_active, sweep, throw_away
from carrara.dataset.word_changes import amend
from carrara.errors import UserError, nearest, refusal

if TYPE_CHECKING:
    import lance

FILE_BYTES = 2 * 2**30  # about what a file of the compacted table holds
FILE_ROWS = 2**15
AT_ONCE = 64  # pictures beside others that are restored together


@dataclass(frozen=True)
class Version:
    """A version of the table: its number, since when, how many pictures, its tags, what made it."""

    number: int
    when: datetime
    pictures: int
    tags: tuple[str, ...]
    what: str


@dataclass
class Cleaned:
    """What a cleaning took away so far: old versions and their bytes, files joined, unfinished work."""

    versions: int = 0
    bytes: int = 0
    files_joined: int = 0
    given_up: int = 0

    def __str__(self) -> str:
        words = f"{self.versions} old versions removed, {self.bytes / 1e6:.1f} MB freed"
        words += f"; {self.files_joined} files joined" if self.files_joined else ""
        return words + (
            f"; {self.given_up} unfinished imports and encodings removed" if self.given_up else ""
        )


def versions(dataset: Dataset) -> list[Version]:
    """All versions that are there, the oldest first."""
    table = newest(dataset.store)
    named: dict[int, list[str]] = {}
    for name, number in tags(dataset).items():
        named.setdefault(number, []).append(name)
    found = []
    before: lance.LanceDataset | None = None
    for about in _versions(dataset.store):
        number = int(about["version"])
        this = table.checkout_version(number)
        found.append(
            Version(
                number,
                about["timestamp"],
                this.count_rows(),
                tuple(named.get(number, ())),
                _what(this, before),
            )
        )
        before = this
    return found


def _versions(store: Store) -> Any:
    """What Lance says of every version; those whose manifest is damaged are set aside."""
    try:
        return newest(store).versions()
    except BaseException as error:
        is_here = store.path == store.work
        if not (is_of_library(error) and is_here and set_aside_versions(Path(store.table))):
            raise
        return newest(store).versions()


def _what(this: lance.LanceDataset, before: lance.LanceDataset | None) -> str:
    """What is another than in the version before, or what the commit said of itself."""
    if before is None:
        return "the first that is kept" if this.version > 1 else "an empty table"
    said: list[str] = []
    more = this.count_rows() - before.count_rows()
    now, then = this.schema.names, before.schema.names
    if more:
        said.append(f"{more} pictures added")
    if new := [name for name in now if name not in then]:
        said.append(f"{', '.join(new)} added")
    if gone := [name for name in then if name not in now]:
        said.append(f"{', '.join(gone)} dropped")
    if said or this.version != before.version + 1:
        return "; ".join(said) or "changes that are not kept one by one"
    with contextlib.suppress(OSError, ValueError):
        transaction = this.read_transaction(this.version)
        message = next(iter((transaction.transaction_properties or {}).values()), "") if transaction else ""
        kind = type(transaction.operation).__name__ if transaction else ""
        return message or {"Rewrite": "files joined", "CreateIndex": "an index"}.get(kind, "values changed")
    return "values changed"


def tags(dataset: Dataset) -> dict[str, int]:
    """The names of versions and their numbers."""
    return tags_of(newest(dataset.store))


def tag(dataset: Dataset, name: str, *, move: bool = False) -> None:
    """Names the version that ``dataset`` is at; cleaning keeps it. UserError where the name is taken or is none.

    With ``move`` a name that is taken goes over.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name) or ".." in name or name.endswith((".", ".lock")):
        raise UserError(
            f"{name!r} cannot name a version; expected letters, digits, '-', '_', '.', a letter first"
        )
    there = tags(dataset)
    table = newest(dataset.store)
    if name not in there:
        table.tags.create(name, dataset.version)
    elif move:
        table.tags.update(name, dataset.version)
    elif there[name] != dataset.version:
        raise UserError(
            f"{name!r} is version {there[name]} of {dataset.path} already; remove it first, or take another"
        )


def untag(dataset: Dataset, name: str) -> None:
    """Takes a name away. UserError where there is none such."""
    if name not in (there := tags(dataset)):
        raise UserError(f"{dataset.path} has no tag {name!r}{nearest(name, there)}")
    newest(dataset.store).tags.delete(name)


def clean(dataset: Dataset, *, older_than: timedelta) -> Cleaned:
    """Removes versions that are older and have no tag, and what killed work left longer ago; then joins small files.

    So a full disk has room again before anything is written. Rows keep their numbers. Who reads a version that is
    removed meanwhile fails: trainings tag theirs, whatever else reads should take less long than ``older_than``.
    UserError where something cannot be removed, or files cannot be joined, with what was removed.
    """
    dataset.check_newest("be cleaned")
    store, done = dataset.store, Cleaned()
    if store.path == store.work and not os.access(
        store.work, os.W_OK
    ):  # also of a file system that is read-only
        raise UserError(f"{store.path} cannot be cleaned: it is write-protected")
    with store.writing():
        _remove_old(store, older_than, done)
        limit = time.time() - older_than.total_seconds()
        done.given_up += sweep(store, which=lambda _: True, before=limit)
        done.given_up += _sweep_staging(store.work / STAGING, limit)
        joined: list[int] = []
        try:
            committed(store, lambda table: joined.append(_compact(table)))
        except (OSError, RuntimeError, ValueError) as error:
            if (reason := refusal(error)) is None:
                raise
            raise UserError(f"{done}; the small files of {store.path} are not joined: {reason}") from None
        done.files_joined = joined[-1]
        _remove_old(store, older_than, done)  # where nothing is kept: also the one with the small files
    dataset.refresh()
    return done


def _remove_old(store: Store, older_than: timedelta, done: Cleaned) -> None:
    """Removes versions without a tag that are older, and counts them. UserError where one stays."""
    table, limit = newest(store), time.time() - older_than.total_seconds()
    if lost := damaged_tags(table):
        raise UserError(
            f"{lost[0]} was a tag, of a version that nobody knows now; remove it to clean all the same"
        )
    kept = {table.version, *tags_of(table).values()}
    old = [int(v["version"]) for v in _versions(store) if v["timestamp"].timestamp() <= limit]
    if gone := [number for number in old if number not in kept]:
        removed = table.cleanup_old_versions(versions=gone, error_if_tagged_old_versions=False)
        # Lance counts what it meant to remove, also where the system did not let it.
        if left := {int(v["version"]) for v in newest(store).versions()} & set(gone):
            raise UserError(
                f"cannot remove version {min(left)} of {store.path}: its files are write-protected"
            )
        done.versions, done.bytes = done.versions + len(gone), done.bytes + int(removed.bytes_removed)


@dataclass(frozen=True)
class Restored:
    """Rows that say again what they did, and those that say something else now and were left so."""

    rows: int
    left: int


def restore(dataset: Dataset, *, changed: bool = False) -> Restored:
    """Gives the newest version what ``dataset``, an older one, says of pictures and the newest does not.

    Words and pictures beside a picture come back, splits and groups stay. With ``changed`` also where the newest says
    something else. They count as set by hand: a later import leaves them. UserError where ``dataset`` is the newest.
    """
    if not dataset.pinned:
        raise UserError(
            f"which version of {dataset.path} has what is to come back? Expected {dataset.path}@NUMBER; "
            f"`carrara data versions {dataset.path}` lists them"
        )
    newest_one = Dataset.open(dataset.path)
    rows, left = set[int](), set[int]()
    for column in filter(is_said, dataset.columns):
        if column in ("split", "group"):
            continue
        before = dataset.column(column)
        now = (
            newest_one.column(column)[: len(before)] if column in newest_one.columns else [None] * len(before)
        )
        other = [k for k, (a, b) in enumerate(zip(before, now, strict=True)) if a is not None and a != b]
        wanted = [row for row in other if changed or now[row] is None]
        left |= set(other) - set(wanted)
        rows |= set(wanted)
        kind = next((kind for kind, name in IDS.items() if name == column), None)
        together = AT_ONCE if kind else max(1, len(wanted))
        for start in range(0, len(wanted), together):
            some = wanted[start : start + together]
            values: dict[str, dict[int, Any]] = {column: {row: before[row] for row in some}}
            if kind:
                values[kind] = dict(zip(some, dataset.take(some, [kind])[kind], strict=True))
            amend(newest_one, values, was={column: {row: now[row] for row in some}})
    return Restored(len(rows), len(left - rows))


def _compact(table: lance.LanceDataset) -> int:
    rows = max(1, table.count_rows())
    held = sum(file.file_size_bytes or 0 for part in table.get_fragments() for file in part.data_files())
    target = int(min(FILE_ROWS, max(1, FILE_BYTES * rows // max(1, held))))
    metrics: Any = table.optimize.compact_files(target_rows_per_fragment=target)
    return int(metrics.files_removed)


def _sweep_staging(root: Path, before: float) -> int:
    """Removes values of columns that nobody goes on with. UserError where they cannot be removed."""
    swept = 0
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        try:
            held = lock(folder)
        except (UserError, OSError):
            continue
        try:
            if last_active(folder) <= before:
                throw_away(folder)
                swept += 1
        finally:
            release(held)
    return swept
