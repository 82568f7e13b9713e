"""Imports that are under way or were killed: a folder each, by ticket, with the journal of what was written."""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrara.dataset.store import TABLE, UNFINISHED, lock, newest, release
from carrara.errors import UserError, one_line
from carrara.files import Journal

if TYPE_CHECKING:
    import lance

    from carrara.dataset.store import Store


JOURNAL = "journal.jsonl"
NOBODYS = "{}"  # the ticket of a folder that has no journal yet: only cleaning takes it
DOWNLOADS = "downloads"  # the folder of what was fetched for it


def folder_of(store: Store, ticket: str) -> Path:
    """The folder of an import for as long as it is not complete."""
    return store.work / UNFINISHED / hashlib.sha256(ticket.encode()).hexdigest()[:16]


def fragments_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fragments that an import still means to publish, by the lines of its journal."""
    found: list[dict[str, Any]] = []
    for line in lines[1:]:
        found = line["instead"] if "instead" in line else found + line["fragments"]
    return found


def last_active(folder: Path) -> float:
    """When something in it was last written: what is appended to a file does not touch its folder."""
    return max(p.stat().st_mtime for p in (folder, *folder.glob("*"), *folder.glob("downloads/*")))


def sweep(store: Store, *, which: Callable[[str], bool], before: float = math.inf) -> int:
    """Throws away what killed imports left, of those whose ticket is one of ``which``; how many there were.

    One that is under way is left alone, and one that did something after the time ``before``. UserError where one
    cannot be removed.
    """
    root, swept = store.work / UNFINISHED, 0
    for folder in sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []:
        try:
            held = lock(folder)
        except (UserError, FileNotFoundError):
            continue
        try:
            if last_active(folder) > before:
                continue
            lines = list(Journal(folder / JOURNAL))
            if not which(str(lines[0].get("ticket")) if lines else NOBODYS):
                continue
            forget(store, fragments_of(lines))
            throw_away(folder)
            swept += 1
        finally:
            release(held)
    with contextlib.suppress(OSError):
        root.rmdir()
    return swept


def throw_away(folder: Path) -> None:
    """Removes a folder. UserError where it cannot be."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"cannot remove {folder}: {one_line(error)}") from None


def forget(store: Store, fragments: list[dict[str, Any]]) -> None:
    """Removes the files of fragments that no version of the table mentions."""
    if not fragments or not store.has_table():
        return
    left = {file["path"] for fragment in fragments for file in fragment["files"]} - _files_of(newest(store))
    if left:  # published and joined to others since: a version before that may still be read
        left -= _files_of_versions(store)
    for path in sorted(left):
        store.remove(f"{TABLE}/data/{path}")


def _files_of(table: lance.LanceDataset) -> set[str]:
    return {file.path for part in table.get_fragments() for file in part.data_files()}


def _files_of_versions(store: Store) -> set[str]:
    """The data files of every version that is there."""

    def there() -> set[int]:
        return {int(version["version"]) for version in table.versions()}

    table, found = newest(store), set[str]()
    for number in there():
        try:
            found |= _files_of(table.checkout_version(number))
        except (OSError, ValueError):
            if number in there():  # it was not cleaned away meanwhile
                raise
    return found
