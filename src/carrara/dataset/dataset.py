"""The data set: one Lance table, a picture a row: its bytes as given, its words, what was derived."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from carrara.dataset import description, ranges, sql_condition
from carrara.dataset.columns import (
    DERIVED_FROM,
    DERIVED_KEY,
    FLAGS,
    KINDS,
    LEFT_OUT,
    ORIGIN,
    SPLITS,
    caption_language,
    id_column,
)
from carrara.dataset.damaged_files import tags_of
from carrara.dataset.description import ABOUT, FORMAT
from carrara.dataset.store import TABLE, UNFINISHED, store_at
from carrara.dataset.store import newest as store_newest
from carrara.errors import UserError, nearest, of_lance

if TYPE_CHECKING:
    import lance
    import pyarrow as pa
    from torch import Tensor

    from carrara.dataset.store import Store
    from carrara.geometry import SideOrSize
    from carrara.images.boxes import Box
    from carrara.images.decode import Crop


Rows = Sequence[int] | npt.NDArray[np.int64]
_OUT = f"array_has(string_to_array({FLAGS}, ' '), '{LEFT_OUT}')"


class Dataset:
    """Pictures and their columns by row number, 0 … len - 1; a row keeps its number for good.

    Columns: ``id`` (SHA-256 of the bytes), ``image`` (the bytes), ``width``, ``height`` (as shown), ``mode``
    (as in the file), ``caption`` (language not stated) and one ``caption_<language>`` each, ``label``,
    ``group``, ``category``, ``split``, ``source``, ``licence``, and where any picture has such, ``url`` (where it
    is from), ``flags`` (sorted words to filter by, spaces between), ``boxes`` and the pictures beside it
    (`columns.KINDS`) with their ids; any caption and label may be None. Safe to use from threads, not from forked
    processes.
    """

    def __init__(
        self, store: Store, table: lance.LanceDataset, about: dict[str, Any], *, pinned: bool = False
    ) -> None:
        self.store = store
        self.path = store.path
        self.table = table
        self.about = about
        self.pinned = pinned  # pictures and words stay those of this version; what is derived later is seen
        self._newest = store_newest(store) if pinned else table

    @classmethod
    def open(cls, path: str | Path, *, version: int | str | None = None) -> Dataset:
        """The data set in a folder or at ``s3://bucket/path``, at its newest version or a recorded one.

        "PATH@12" and "PATH@tag" name a version too. UserError where there is none.
        """
        path, named = split_version(path)
        version = named if version is None else version
        store = store_at(path)
        about = description.about(store)
        if about is None or not store.has_table():
            raise UserError(_why_not(store))
        if (written := about.get("format")) != FORMAT:
            raise UserError(
                f"{path} has data format {written}; this Carrara reads format {FORMAT}: update Carrara"
            )
        try:
            table = store_newest(store)
            if version is not None:
                table = table.checkout_version(_version_of(store, table, version))
            return cls(store, table, about, pinned=version is not None)
        except UserError:
            raise
        except (ValueError, OSError) as error:
            raise UserError(f"{store.table} cannot be read: {of_lance(error)}") from None

    def refresh(self) -> None:
        """Moves this handle to the newest version, e.g. after a column was derived or pictures were added.

        One that was opened at a recorded version keeps its pictures and words, and sees what was derived for them.
        """
        self._newest = store_newest(self.store)
        if not self.pinned:
            self.table = self._newest
        for remembered in ("captions", "labels", "hash", "_later"):
            self.__dict__.pop(remembered, None)

    def check_newest(self, wanted: str) -> None:
        """UserError where this is an old version: what was cannot ``wanted`` ("be changed")."""
        if self.pinned:
            raise UserError(
                f"version {self.version} of {self.path} cannot {wanted}, only the newest can; open {self.path}"
            )

    def __len__(self) -> int:
        return int(self.table.count_rows())

    @property
    def version(self) -> int:
        """The version of the table; with the path it names these rows and columns for good."""
        return int(self.table.version)

    @property
    def columns(self) -> list[str]:
        """The names of all columns, derived ones included."""
        return list(self.schema.names)

    @property
    def schema(self) -> pa.Schema:
        """All columns with their types and metadata, but for what the table keeps for imports alone."""
        import pyarrow as pa

        own = [field for field in self.table.schema if field.name not in self._later | {ORIGIN}]
        return pa.schema([*own, *(self._newest.schema.field(name) for name in sorted(self._later))])

    @functools.cached_property
    def _later(self) -> frozenset[str]:
        """The derived columns that the newest version has for the rows of this older one.

        Rows are only ever added behind these, so what was derived from pictures holds; what was derived from
        words holds where these are the same still.
        """
        if not self.pinned:
            return frozenset()
        found = {f.name: f.metadata for f in self._newest.schema if f.metadata and DERIVED_KEY in f.metadata}
        return frozenset(
            name
            for name, metadata in found.items()
            if all(map(self.same_now, json.loads(metadata.get(DERIVED_FROM, b"[]"))))
        )

    def same_now(self, name: str) -> bool:
        """Whether a column has the same values in the newest version, for the rows of this one."""
        if not self.pinned:
            return True
        name = id_column(name) if name in KINDS else name
        if name not in self.table.schema.names or name not in self._newest.schema.names:
            return False
        own, now = (t.to_table(columns=[name], scan_in_order=True)[name] for t in (self.table, self._newest))
        return bool(own.equals(now.slice(0, len(self))))

    def without(self, column: str) -> npt.NDArray[np.int64]:
        """The rows, ascending, that have no value in a column."""
        table = self._newest if column in self._later else self.table
        rows = sql_condition.rows_where(table, f"{column} IS NULL")
        return rows[rows < len(self)]

    @functools.cached_property
    def captions(self) -> dict[str, str]:
        """Language to caption column ("de": "caption_de", "und": "caption"), of those with any caption."""
        found = {language: c for c in self.columns if (language := caption_language(c)) is not None}
        return {language: column for language, column in found.items() if self.caption_counts[column]}

    @functools.cached_property
    def caption_counts(self) -> dict[str, int]:
        """How many captions each column of them has: in one pass, however many they are."""
        found = {c: 0 for c in self.columns if caption_language(c) is not None}
        for batch in self.table.to_batches(columns=list(found)):
            for name, values in zip(batch.schema.names, batch.columns, strict=True):
                found[name] += len(values) - values.null_count
        return found

    @functools.cached_property
    def labels(self) -> list[str]:
        """The different labels, sorted."""
        return sorted({label for label in self.column("label") if label is not None})

    def column(self, name: str) -> list[Any]:
        """One whole column as Python values (meant for words and numbers, not for pictures)."""
        values: list[Any] = self.arrow([name])[name].to_pylist()
        return values

    def arrow(self, columns: Sequence[str]) -> pa.Table:
        """Whole columns as an Arrow table, in row order."""
        rows = len(self)
        return self._both(
            columns, lambda t, names: t.to_table(columns=names, scan_in_order=True).slice(0, rows)
        )

    def take(self, indices: Rows, columns: Sequence[str]) -> dict[str, list[Any]]:
        """The values of ``columns`` at these rows, in the order asked, repeats included."""
        table = self.take_arrow(indices, columns)
        return {name: table[name].to_pylist() for name in columns}

    def take_arrow(self, indices: Rows, columns: Sequence[str]) -> pa.Table:
        """`take` as an Arrow table: the fast way for derived columns."""
        rows = [int(i) for i in indices]
        return self._both(columns, lambda table, names: table.take(rows, columns=names))

    def _both(
        self, columns: Sequence[str], read: Callable[[lance.LanceDataset, list[str]], pa.Table]
    ) -> pa.Table:
        """The columns of this version, and those that were derived later, as one table."""
        names = self._known(columns)
        later = [name for name in names if name in self._later]
        if not later:
            return read(self.table, names)
        if len(later) == len(names):
            return read(self._newest, names)
        found = read(self.table, [name for name in names if name not in later])
        for name, values in zip(later, read(self._newest, later).itercolumns(), strict=True):
            found = found.append_column(self._newest.schema.field(name), values)
        return found.select(names)

    def indices(self, split: str | None = "train", where: str | None = None) -> npt.NDArray[np.int64]:
        """Row numbers, ascending, where an SQL condition holds: of one split less what is left out (None: of all)."""
        if split is not None and split not in SPLITS:
            raise UserError(f"no split is called {split!r}{nearest(split, SPLITS)}")
        conditions = [f"split = '{split}'"] if split else []
        conditions += [f"({FLAGS} IS NULL OR NOT {_OUT})"] if split and FLAGS in self.columns else []
        conditions += [sql_condition.enclosed(where)] if where is not None else []
        if not conditions:
            return np.arange(len(self), dtype=np.int64)
        return sql_condition.asked_rows(self.table, conditions, where, self.path)

    def pictures(
        self, indices: Rows, size: SideOrSize, channels: int = 3, *, bits: int = 8, crop: Crop = "centre"
    ) -> Tensor:
        """``[n channels h w]``, uint8 or, with 16 ``bits``, uint16: decoded, scaled to cover ``size`` and cropped.

        UserError names the first picture that cannot have these channels.
        """
        from carrara.images.decode import pixels, stack

        span = self.span("image")
        read = functools.partial(pixels, size=size, channels=channels, bits=bits, crop=crop, span=span)
        return self._decoded(indices, "image", read) if len(indices) else stack([], size, channels, bits=bits)

    def beside(self, indices: Rows, name: str, size: SideOrSize, *, crop: Crop = "centre") -> Tensor:
        """``[n c h w]``: the pictures in the column ``name`` of `columns.KINDS`, cropped as theirs are.

        Their types and channels are those of `picture_columns.read`. UserError names the first picture that has none.
        """
        from carrara.dataset.picture_columns import read

        if not len(indices):
            raise ValueError("no rows were asked for")
        return self._decoded(indices, name, lambda data: read(name, data, size, crop, self.span(name)))

    def span(self, column: str) -> tuple[float, float] | None:
        """What is black and white in a column's pictures whose numbers do not say it; None: as their kind has it."""
        return ranges.of(self.about).get(column)

    def _decoded(self, indices: Rows, column: str, read: Callable[[bytes], Tensor]) -> Tensor:
        import torch

        from carrara.errors import BadPicture

        found = []
        for row, data in zip(indices, self.take(indices, [column])[column], strict=True):
            try:
                if data is None:
                    raise BadPicture(f"it has no {column}")
                found.append(read(data))
            except BadPicture as error:
                source = self.take([row], ["source"])["source"][0]
                raise UserError(f"{self.path}: the picture {source!r} cannot be used: {error}") from None
        return torch.stack(found)

    def boxes(self, indices: Rows) -> list[list[Box] | None]:
        """What is where in these pictures; None for one of which nobody said it."""
        from carrara.images.boxes import COLUMN, parse

        return [parse(text) for text in self.take(indices, [COLUMN])[COLUMN]]

    def fingerprint(self) -> str:
        """A hash of which pictures there are, in order (SHA-256 over their ids): for a model's passport."""
        digest = hashlib.sha256()
        for batch in self.table.to_batches(columns=["id"]):
            for name in batch["id"].to_pylist():
                digest.update(bytes.fromhex(name))
        return digest.hexdigest()

    @functools.cached_property
    def hash(self) -> str:
        """A hash of all that training may see, in row order: the ids, also of pictures beside, and all words."""
        from carrara.images.boxes import COLUMN

        digest = hashlib.sha256(self.fingerprint().encode())
        names = [
            "label",
            "group",
            "category",
            "split",
            *sorted(c for c in self.columns if caption_language(c)),
            *(c for c in (COLUMN, *map(id_column, KINDS)) if c in self.columns),
        ]
        for name in names:
            digest.update(name.encode())
            for batch in self.table.to_batches(columns=[name]):
                for value in batch[name].to_pylist():
                    digest.update(b"\1\0" if value is None else value.encode() + b"\0")
        if FLAGS in self.columns and len(
            out := sql_condition.asked_rows(self.table, [_OUT], None, self.path)
        ):
            digest.update(out.tobytes())
        if spans := ranges.of(self.about):
            digest.update(json.dumps(spans, sort_keys=True).encode())
        return digest.hexdigest()

    def _known(self, columns: Sequence[str]) -> list[str]:
        for name in columns:
            if name not in self.columns:
                raise UserError(f"{self.path} has no column {name!r}{nearest(name, self.columns)}")
        return list(columns)


def split_version(path: str | Path) -> tuple[Path, str | None]:
    """ "data@v1" as its path and its version or tag; a folder that has the sign in its name is one."""
    found, _, named = str(path).rpartition("@")
    if not found or "/" in named or Path(path).exists():
        return Path(path), None
    return Path(found), named


def _version_of(store: Store, table: lance.LanceDataset, named: int | str) -> int:
    """The number of a version that is named by itself or by a tag. UserError where there is none."""
    tags = tags_of(table)
    if str(named) in tags:
        return tags[str(named)]
    if not str(named).isdigit():
        raise UserError(f"{store.path} has no version called {str(named)!r}{nearest(str(named), tags)}")
    there = [int(version["version"]) for version in table.version_refs()]
    if int(named) not in there:
        raise UserError(f"{store.path} has no version {named}; its versions are {there[0]} … {there[-1]}")
    return int(named)


def _why_not(store: Store) -> str:
    path = store.path
    if path != store.work:
        return f"there is no data set at {path}"
    if (path / TABLE).is_dir() and (path / UNFINISHED).is_dir():
        return f"the import into {path} has not finished; the same `carrara data import` again continues it"
    if path.is_dir():
        inside = [p.parent.name for p in sorted(path.glob(f"*/{ABOUT}"))]
        hint = (
            f"; did you mean {str(path / inside[0])!r}?"
            if inside
            else "; make one with `carrara data import`"
        )
        return f"{path} is not a Carrara data set (no {ABOUT} in it){hint}"
    if path.exists():
        return f"{path} is a file; expected a data set, a folder that `carrara data import` made"
    return f"there is no data set at {path}{nearest_path(path)}"


def nearest_path(path: Path) -> str:
    """A clause that names the existing path closest to one that does not exist."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    try:
        names = [p.name for p in parent.iterdir()]
    except OSError:
        return ""
    import difflib

    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {str(parent / close[0])!r}?" if close else ""
