"""Damaged small files of a table on this machine, tags and manifests, are set aside, so that the rest can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from carrara.errors import DAMAGE, is_panic, of_lance
from carrara.files import DAMAGED, json_object, set_aside
from carrara.terminal import note

if TYPE_CHECKING:
    import lance

_MAGIC = b"LANC"  # what a whole manifest ends with
_LAST = 2**64 - 1  # from which the names of manifests count down
_TAG = {"branch", "version", "createdAt", "updatedAt", "manifestSize", "metadata"}


def set_aside_versions(table: Path) -> bool:
    """Gives another name to manifests that cannot be read: these versions are lost. Whether there were any."""
    found = [m for m in sorted(table.glob("_versions/*.manifest")) if _is_damaged(m, table)]
    for manifest in found:
        aside = set_aside(manifest)
        note(f"a version of {table.parent} is damaged and was set aside as {aside.name}")
    return bool(found)


def _is_damaged(manifest: Path, table: Path) -> bool:
    """Whether it is empty, cut short or, by the library's word, nonsense."""
    import lance

    if not manifest.read_bytes().endswith(_MAGIC):
        return True
    number = int(manifest.stem) if manifest.stem.isdecimal() else 0
    try:
        lance.dataset(str(table), version=min(number, _LAST - number))
    except BaseException as error:
        return is_of_library(error) and (is_panic(error) or of_lance(error).startswith(DAMAGE))
    return False


def is_of_library(error: BaseException) -> bool:
    """Whether it may be what the table's library says of a file."""
    return isinstance(error, OSError | RuntimeError | ValueError) or is_panic(error)


def tags_of(table: lance.LanceDataset) -> dict[str, int]:
    """The tags of a table with their versions; a damaged one gets another name, with a note."""
    try:
        return _listed(table)
    except (OSError, RuntimeError, ValueError):
        damaged = [
            f for f in _tag_files(table, "*.json") if not (json_object(f.read_bytes()) or {}).keys() >= _TAG
        ]
        if not damaged:
            raise
    for file in damaged:
        note(f"the tag {file.stem!r} is damaged and was set aside as {set_aside(file)}")
    return _listed(table)


def damaged_tags(table: lance.LanceDataset) -> list[Path]:
    """Those that were set aside: nobody knows which version they are to keep."""
    return list(_tag_files(table, f"*{DAMAGED}"))


def _listed(table: lance.LanceDataset) -> dict[str, int]:
    return {name: int(about["version"]) for name, about in table.tags.list().items()}


def _tag_files(table: lance.LanceDataset, names: str) -> Iterator[Path]:
    """None where the table is in object storage, in which an object is whole or not there."""
    yield from () if "://" in table.uri else sorted(Path(table.uri).glob(f"_refs/tags/{names}"))
