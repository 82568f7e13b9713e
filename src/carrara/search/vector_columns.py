"""Which columns hold vectors: of pictures or of which captions, and made by which embedder; their keys say it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from carrara.dataset.columns import DERIVED_KEY

if TYPE_CHECKING:
    import lance

    from carrara.dataset.dataset import Dataset

SEEN = "seen"  # the derived column of pictures; that of a caption column is `meaning` of its name
PICTURES = "image"
SPELLING = "ngrams"  # the embedder that goes by the spelling alone, taken where there is no other


def meaning(column: str) -> str:
    """The name of the derived column for the texts of a caption column."""
    return f"meaning_{column}"


def vector_key(embedder: str, key: Mapping[str, Any], of: str, *, joint: bool) -> dict[str, Any]:
    """The key of a derived column of vectors: the embedder's own, and what they are of."""
    return {"embedder": embedder, "by": dict(key), "of": of, "joint": joint}


@dataclass(frozen=True)
class VectorColumn:
    """Vectors in the table: ``of`` is "image" or a caption column, ``key`` what the embedder says of itself.

    Columns of one ``space`` can be compared; in a ``joint`` one texts with pictures too.
    """

    column: str
    embedder: str
    key: Mapping[str, Any] = field(hash=False)
    of: str
    joint: bool
    width: int

    @property
    def space(self) -> str:
        """The same for all columns that one embedder made."""
        return json.dumps([self.embedder, self.key], sort_keys=True)


def vector_columns(dataset: Dataset) -> list[VectorColumn]:
    """All of them, in the order they were made."""
    found = []
    for one in dataset.table.schema:
        text = (one.metadata or {}).get(DERIVED_KEY)
        key = json.loads(text) if text else {}
        # A list of free length (a column of some rows only) is none that can be searched.
        if {"embedder", "by", "of", "joint"} <= key.keys() and (
            width := getattr(one.type, "list_size", 0)
        ) > 0:
            found.append(VectorColumn(one.name, key["embedder"], key["by"], key["of"], key["joint"], width))
    return found


def lacking(dataset: Dataset, column: VectorColumn) -> int:
    """How many rows have no vector yet; a version of the table is looked at once."""
    known, key = _LACKING.setdefault(dataset, {}), (dataset.version, column.column)
    if key not in known:
        fields = {field.name(): field.id() for field in dataset.table.lance_schema.fields()}
        parts = dataset.table.get_fragments()
        known[key] = sum(_absent(dataset, part, column.column, fields[column.column]) for part in parts)
    return known[key]


def _absent(dataset: Dataset, part: lance.LanceFragment, column: str, field: int) -> int:
    """How many of a fragment's rows have no value; the column is read only where its file says that some have none."""
    from lance.file import LanceFileReader

    for file in part.data_files():
        if field not in file.fields:
            continue
        about = LanceFileReader(f"{dataset.store.table}/data/{file.path}").metadata()
        pages = about.columns[file.column_indices[file.fields.index(field)]].pages
        # As Lance puts a page's layout into words; where it has others some day, the values are counted.
        if all("AllValidItem" in (told := str(page.encoding)) and "Nullable" not in told for page in pages):
            return 0
        return int(part.count_rows(filter=f"{column} IS NULL"))
    return int(part.count_rows())  # rows that came later have no place for it yet


_LACKING: WeakKeyDictionary[Dataset, dict[tuple[int, str], int]] = WeakKeyDictionary()


def newest(columns: Sequence[VectorColumn], *, of_pictures: bool, joint: bool) -> list[VectorColumn]:
    """Those of the space that was made last: one of pictures, or one a caption column; empty where there is none.

    One that goes by spelling alone is the last choice.
    """
    chosen = [c for c in columns if (c.of == PICTURES) == of_pictures and c.joint == joint]
    chosen = [c for c in chosen if c.embedder != SPELLING] or chosen
    return [c for c in chosen if c.space == chosen[-1].space]
