"""Loads columns for training: the exact order, looked up by a thread, so that training never waits."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carrara.dataset.columns import DERIVED_SHAPE, KINDS
from carrara.dataset.dataset import Dataset
from carrara.dataset.order import Batch, batches, bucketed
from carrara.errors import UserError
from carrara.geometry import SideOrSize, extent

if TYPE_CHECKING:
    import pyarrow as pa

    from carrara.images.decode import Crop

IN_MEMORY = 512 * 2**20

T = TypeVar("T")
Column = Tensor | list[Any]


@dataclass(frozen=True)
class Loaded:
    """A batch with its columns: tensors for pictures, derived columns and numbers; lists for words.

    ``bucket`` is the one that the batch is from; 0 where there are none.
    """

    rows: npt.NDArray[np.int64]
    seen: int
    seeds: npt.NDArray[np.uint64]
    columns: Mapping[str, Column]
    bucket: int = 0


@dataclass(frozen=True)
class Bucket:
    """The rows that are trained on at one (height, width).

    ``columns`` maps names that all buckets share to the bucket's own derived columns, as in
    ``{"latent.0": "latent_1234abcd"}``.
    """

    rows: npt.NDArray[np.int64]
    size: tuple[int, int]
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """Which columns of a data set are read, and how.

    ``image`` comes as ``[b channels h w]``, uint8 or with 16 ``bits`` uint16, the part that ``crop`` names, a picture
    beside it as `picture_columns.read` says (without a ``size`` both as their bytes), a derived column as float16 or
    float32 ``[b, *shape]``, whole numbers as int64 ``[b]``, words as a list with None where there are none.
    ``own`` maps columns to those of the table that hold them, where these are called otherwise.
    """

    columns: Sequence[str] = ("image",)
    size: SideOrSize | None = None
    channels: int = 3
    bits: int = 8
    crop: Crop = "centre"
    own: Mapping[str, str] = field(default_factory=dict)


def load(
    dataset: Dataset,
    reading: Reading,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    split: str | None = "train",
    rows: npt.NDArray[np.int64] | None = None,
    buckets: Sequence[Bucket] = (),
) -> Generator[Loaded, None, None]:
    """Batches without end, in the order that (seed, start) fixes, at most four of them in advance.

    They are of the split, or of ``rows`` where given, or of ``buckets``: then each batch is from one of them, at
    its size and with its columns under their shared names, and ``start`` is a multiple of ``batch``.

    Closing the iterator stops the thread. UserError where there are no rows or a column does not exist; ValueError
    where pictures are read without a size. No bucket may be empty.
    """
    if buckets and (reading.size is not None or rows is not None):
        raise ValueError("buckets bring their own rows and sizes")
    pictures = [name for name in reading.columns if _is_picture(name)]
    if not buckets and reading.size is None and pictures:
        raise ValueError(f"the column {pictures[0]!r} needs a size")
    if buckets:
        order = bucketed([bucket.rows for bucket in buckets], batch=batch, seed=seed, start=start)
        parts = [(each.rows, replace(reading, size=each.size, own=each.columns)) for each in buckets]
    else:
        where = f"the split {split!r}" if rows is None else "the rows to train on"
        rows = dataset.indices(split) if rows is None else rows
        if len(rows) == 0:
            raise UserError(f"{dataset.path} has no pictures in {where}; it has {len(dataset)} in all")
        order = batches(rows, batch=batch, seed=seed, start=start)
        parts = [(rows, reading)]
    fetches = []
    held = sum(len(part) * _decoded_bytes(how) for part, how in parts)
    for part, how in parts:
        fetch = Fetch(dataset, how, keep=part if held <= IN_MEMORY else None)
        dataset.take(part[:1], fetch.stored)  # names a missing column here rather than in the thread
        fetches.append(fetch)
    return in_background((fetches[found.bucket](found) for found in order), ahead=4)


class Fetch:
    """Turns a Batch into its columns; decoded pictures of ``keep``, if given, stay in memory."""

    def __init__(
        self, dataset: Dataset, reading: Reading, *, keep: npt.NDArray[np.int64] | None = None
    ) -> None:
        self.dataset, self.reading = dataset, reading
        self.own = {name: reading.own.get(name, name) for name in reading.columns}
        self._shapes = {name: shape(dataset, stored) for name, stored in self.own.items()}
        self._kept: dict[str, _Kept] = {}
        if keep is not None and reading.size is not None:
            self._kept = {name: _Kept(keep) for name in reading.columns if _is_picture(name)}

    @property
    def stored(self) -> list[str]:
        """The columns of the table that are read."""
        return list(self.own.values())

    def __call__(self, batch: Batch) -> Loaded:
        size = self.reading.size
        names = [name for name in self.own if size is None or not _is_picture(name)]
        found: dict[str, Column] = {}
        if names:
            table = self.dataset.take_arrow(batch.rows, [self.own[name] for name in names])
            found = {name: to_column(table[self.own[name]], self._shapes[name]) for name in names}
        if size is not None:
            for name in [name for name in self.own if name not in names]:
                read = partial(self._decoded, name, size)
                kept = self._kept.get(name)
                found[name] = kept(batch.rows, read) if kept else read(batch.rows)
        return Loaded(batch.rows, batch.seen, batch.seeds, found, batch.bucket)

    def _decoded(self, name: str, size: SideOrSize, rows: npt.NDArray[np.int64]) -> Tensor:
        how = self.reading
        if name == "image":
            return self.dataset.pictures(rows, size, how.channels, bits=how.bits, crop=how.crop)
        return self.dataset.beside(rows, name, size, crop=how.crop)


class _Kept:
    """The pictures of some rows, each decoded when it is first asked for.

    torch cannot put uint16 at an index, and numbers up to 65535 come as int64: both are kept as int16's two bytes.
    """

    def __init__(self, rows: npt.NDArray[np.int64]) -> None:
        self._rows = np.unique(rows)
        self._have = np.zeros(len(self._rows), bool)
        self._kept: Tensor | None = None

    def __call__(
        self, rows: npt.NDArray[np.int64], decoded: Callable[[npt.NDArray[np.int64]], Tensor]
    ) -> Tensor:
        places = np.searchsorted(self._rows, rows)
        missing = np.unique(places[~self._have[places]])
        if len(missing):
            new = decoded(self._rows[missing])
            self._kind = new.dtype
            if self._kept is None:
                stored = torch.uint8 if new.dtype == torch.uint8 else torch.int16
                self._kept = torch.empty(len(self._rows), *new.shape[1:], dtype=stored)
            self._kept[missing] = (
                new.view(torch.int16) if new.dtype == torch.uint16 else new.to(self._kept.dtype)
            )
            self._have[missing] = True
        assert self._kept is not None
        found = self._kept[torch.from_numpy(places)]
        if self._kind == torch.int64:
            return found.to(torch.int64) & 0xFFFF
        return found.view(torch.uint16) if self._kind == torch.uint16 else found


def _is_picture(column: str) -> bool:
    return column == "image" or column in KINDS


def _decoded_bytes(how: Reading) -> int:
    """What the decoded pictures of one row take up."""
    height, width = extent(how.size or 0)
    bits = {"image": how.channels * how.bits} | {k: kind.channels * kind.bits for k, kind in KINDS.items()}
    return sum(bits.get(name, 0) for name in how.columns) * height * width // 8


def shape(dataset: Dataset, column: str) -> tuple[int, ...] | None:
    """The shape of one value of a derived column; None for a column of words or numbers."""
    import json

    if column not in dataset.columns:
        return None
    metadata = dataset.schema.field(column).metadata or {}
    text = metadata.get(DERIVED_SHAPE)
    return tuple(json.loads(text)) if text is not None else None


def to_column(values: pa.ChunkedArray, shape: tuple[int, ...] | None) -> Column:
    """Arrow values as ``[b, *shape]`` of their own type, ``int64 [b]`` for whole numbers, or a list."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
        if values.null_count:
            raise UserError("a derived column is not filled for all of these rows; derive it again")
        flat = values.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return torch.from_numpy(flat.reshape(len(values), *(shape or (-1,))).copy())
    if pa.types.is_integer(values.type) and not values.null_count:
        return torch.from_numpy(values.to_numpy().astype(np.int64))
    words: list[Any] = values.to_pylist()
    return words


def in_background(items: Iterator[T], *, ahead: int) -> Generator[T, None, None]:
    """The same items, prepared by a thread, at most ``ahead`` waiting; its exception is raised at its place.

    The thread ends when the items do, when the iterator is closed, or with the program.
    """
    ready: queue.Queue[Callable[[], T] | None] = queue.Queue(maxsize=max(1, ahead))
    stop = threading.Event()

    def put(answer: Callable[[], T] | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(answer, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(lambda item=item: item)  # type: ignore[misc]
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(_raiser(error))

    thread = threading.Thread(target=work, name="carrara-loader", daemon=True)
    thread.start()
    try:
        while (answer := ready.get()) is not None:
            yield answer()
    finally:
        stop.set()
        thread.join()


def _raiser(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer
